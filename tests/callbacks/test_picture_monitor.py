"""PictureMonitor draws at the chosen validations and does not change training."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TextSource
from xtoken_pl.callbacks import PictureMonitor
from xtoken_pl.callbacks.trackers import log_picture


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    write_model(root / "student", packing_tokenizer(), seed=1)
    write_model(root / "split", splitting_tokenizer(), seed=2)
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text[:400]}) + "\n" for text in TEXTS[:4]))
    return root


@pytest.fixture(autouse=True)
def _in_the_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)


Fit = Callable[..., pl.Trainer]


@pytest.fixture
def train(workspace: Path, tmp_path: Path) -> Fit:
    """Returns a function that trains four steps, with a sanity check first and a validation after each step."""

    def train(monitor: PictureMonitor, logger: Any, **options: Any) -> pl.Trainer:
        teachers = {"split": Teacher(model="split", loss=ProjectionKL())}
        source = TextSource(path="texts.jsonl")
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=logger,
            callbacks=[monitor],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **{"val_check_interval": 1, "limit_val_batches": 1, "max_steps": 4, **options},
        )
        data = DistillDataModule(source, source, sequence_length=48, batch_size=2, num_workers=0)
        trainer.fit(MultiTeacherDistillModule(Student(model="student"), teachers), data)
        return trainer

    return train


def steps_of(folder: Path) -> dict[str, list[int]]:
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return {tag.split("/")[1]: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [0, 2, 4]), ({"num_sanity_val_steps": 0}, [1, 3]), ({"limit_val_batches": 0}, [])],
    ids=["by default", "without a sanity check", "without validation"],
)
def test_predictions_are_drawn_at_the_first_and_every_nth_validation(
    train: Fit, tmp_path: Path, options: dict[str, Any], expected: list[int]
) -> None:
    train(PictureMonitor(every_n_validations=2, num_spans=2), TensorBoardLogger(tmp_path, "", ""), **options)
    found = steps_of(tmp_path)
    assert found.pop("audit") == [0]
    assert found == ({"spans": expected[:1], "top_tokens": expected} if expected else {})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: CSVLogger(folder), "CSVLogger does not support pictures"),
        (lambda _: False, "there is no logger for pictures"),
    ],
    ids=["CSVLogger", "none"],
)
def test_nothing_is_computed_without_a_logger_for_pictures(
    train: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, message: str
) -> None:
    def no_picture(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    for name in ("predict", "CoverageAudit", "spans_figure", "predictions_figure", "first_sequence"):
        monkeypatch.setattr(f"xtoken_pl.callbacks.picture_monitor.{name}", no_picture)
    with pytest.warns(UserWarning, match=message) as caught:
        train(PictureMonitor(every_n_validations=1), make(tmp_path))
    assert sum(message in str(warning.message) for warning in caught) == 1


def test_training_is_unchanged_by_pictures(train: Fit, tmp_path: Path) -> None:
    class Losses(PictureMonitor):
        def __init__(self, *, draws: bool) -> None:
            super().__init__(num_spans=1)
            self.draws, self.values = draws, list[float]()

        def on_validation_batch_end(self, *arguments: Any, **options: Any) -> None:
            if self.draws:
                super().on_validation_batch_end(*arguments, **options)

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            self.values.append(outputs["total"].item())

    found = []
    for draws in (True, False):
        pl.seed_everything(1)
        losses = Losses(draws=draws)
        train(losses, TensorBoardLogger(tmp_path, str(draws), ""), max_steps=2)
        found.append(losses.values)
    assert found[0] == found[1]
    assert len(found[0]) == 2


@pytest.mark.parametrize("name", ["every_n_validations", "num_spans", "top_k"])
def test_options_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        PictureMonitor(**{name: 0})  # type: ignore[arg-type]


def test_figure_is_logged_as_drawn(tmp_path: Path) -> None:
    figure = Figure(figsize=(3, 2))
    figure.patch.set_facecolor((1.0, 0.0, 0.0))
    trainer = pl.Trainer(accelerator="cpu", logger=TensorBoardLogger(tmp_path, "", ""), enable_checkpointing=False)
    log_picture(trainer, "pictures/red", figure, step=7)
    trainer.loggers[0].finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (image,) = events.Images("pictures/red")
    assert (image.step, image.width, image.height) == (7, 300, 200)
    assert Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB").getpixel((150, 100)) == (255, 0, 0)
