"""A correction of the progress that Lightning keeps in checkpoints."""

from __future__ import annotations

from typing import Any


def close_finished_epoch(checkpoint: dict[str, Any]) -> None:
    """Marks an epoch as completed in a checkpoint that was saved at its end (in ``on_train_epoch_end``).

    Lightning counts it as completed only behind the hooks in which checkpoints are saved. A run that is limited by
    ``max_steps`` then went through that epoch once more, without a batch: hooks ran twice, it counted as two, and with
    ``max_epochs`` set, too, training ended early.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    epochs, batches = loop.get("epoch_progress"), loop.get("epoch_loop.batch_progress")
    if epochs is None or batches is None:
        return
    now = epochs["current"]
    if not now["ready"] == now["started"] == now["processed"] == now["completed"] + 1:
        return
    for counts in epochs.values():
        counts["completed"] = counts["processed"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False
