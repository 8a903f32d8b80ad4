"""What a run wrote for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def scalars(folder: Path) -> dict[str, list[float]]:
    """The values of every scalar of a run, by tag, in the order of the steps."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def train_scalars(folder: Path) -> dict[str, list[float]]:
    """Those of the training steps."""
    return {tag: values for tag, values in scalars(folder).items() if tag.startswith("train/")}
