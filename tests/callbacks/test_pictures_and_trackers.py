"""Pictures and scalars reach TensorBoard, W&B and MLflow, and every run has a folder of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from logged import scalars
from matplotlib.figure import Figure
from PIL import Image
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TextSource
from xtoken_pl.callbacks import PictureMonitor
from xtoken_pl.callbacks.trackers import log_picture
from xtoken_pl.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
PICTURES = {f"pictures/{kind}/{name}" for kind in ("audit", "spans", "top_tokens") for name in ("split", "same")}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    write_model(root / "student", packing_tokenizer(), seed=1)
    write_model(root / "split", splitting_tokenizer(), seed=2)
    write_model(root / "same", packing_tokenizer(), seed=3)
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text[:400]}) + "\n" for text in TEXTS[:4]))
    callbacks = ["callbacks.TeacherMonitor", "callbacks.PictureMonitor", "callbacks.HFExport"]
    config: dict[str, Any] = {
        "seed_everything": 1,
        "model": {
            "student": {"model": "student"},
            "teachers": {"split": {"model": "split", "loss": "xtoken_pl.ProjectionKL"}, "same": {"model": "same"}},
        },
        "data": {
            "train": {"path": "texts.jsonl"},
            "val": {"path": "texts.jsonl"},
            "sequence_length": 48,
            "batch_size": 2,
            "num_workers": 0,
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "limit_val_batches": 1,
            "val_check_interval": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": "runs", "name": "test"},
            },
            "callbacks": [
                *({"class_path": f"xtoken_pl.{callback}"} for callback in callbacks),
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}},
            ],
        },
    }
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    return root


@pytest.fixture(autouse=True)
def _in_the_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes to a network."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")


def fit(*arguments: str) -> None:
    main(["fit", "--config", "run.yaml", *arguments])


@pytest.fixture(scope="module")
def tensorboard(workspace: Path) -> Path:
    """The folder of a run that TensorBoard logs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        fit()
    return workspace / "runs/test/version_0"


def is_picture(content: bytes) -> bool:
    """Of a readable size, and with more than one colour."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return min(image.size) > 100 and len(image.getcolors(maxcolors=image.width * image.height) or []) > 10


def check_folder(folder: Path) -> None:
    for file in ("config.yaml", "checkpoints/last.ckpt", "export/model.safetensors"):
        assert (folder / file).is_file(), file


def test_tensorboard_gets_every_picture(tensorboard: Path) -> None:
    check_folder(tensorboard)
    events = EventAccumulator(str(tensorboard), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == PICTURES
    for tag in PICTURES:
        # Drawn at the first validation, which is the sanity check; the next that is due would be the sixth.
        assert [image.step for image in events.Images(tag)] == [0]
        assert is_picture(events.Images(tag)[0].encoded_image_string)


@pytest.mark.slow
def test_mlflow_gets_the_same_scalars_and_pictures_and_the_run_can_go_on(workspace: Path, tensorboard: Path) -> None:
    overlay = ["--config", str(CONFIGS / "trackers/mlflow.yaml")]
    fit(*overlay)
    (folder,) = (path.parent for path in (workspace / "runs/mlflow").glob("*/*/metrics"))
    check_folder(folder)
    metrics = {
        str(path.relative_to(folder / "metrics")): [float(line.split()[1]) for line in path.read_text().splitlines()]
        for path in (folder / "metrics").rglob("*")
        if path.is_file()
    }
    # Where a metric is a file, none can be below it.
    expected = {tag.replace("/", ".").replace(".", "/", 1): values for tag, values in scalars(tensorboard).items()}
    expected.pop("hp_metric", None)
    assert "train/kd.split" in metrics
    assert metrics.keys() == expected.keys()
    for tag, values in expected.items():
        assert metrics[tag] == pytest.approx(values, rel=1e-5), tag
    pictures = list((folder / "artifacts/images").glob("*.png"))
    assert {path.name.split("+")[0].replace("~", "/") for path in pictures} == PICTURES
    assert all(is_picture(path.read_bytes()) for path in pictures)

    fit(*overlay, "--ckpt_path", "last", "--trainer.max_steps", "3")
    folders = {path.parent for path in (workspace / "runs/mlflow").glob("*/*/metrics")}
    (other,) = folders - {folder}
    check_folder(other)
    assert len((other / "metrics/train/loss").read_text().splitlines()) == 1  # the third step


@pytest.fixture
def _no_run_stays_open() -> Iterator[None]:
    yield
    import wandb

    wandb.teardown()


def stored_records(path: Path) -> Iterator[bytes]:
    """The records of W&B's offline file, a LevelDB log: blocks of 32 KiB, a record may be cut at their ends."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left_in_block = 2**15 - place % 2**15
        if left_in_block < 7:
            place += left_in_block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


@pytest.mark.slow
@pytest.mark.usefixtures("_no_run_stays_open")
def test_wandb_gets_the_same_scalars_and_pictures(workspace: Path, tensorboard: Path) -> None:
    import wandb
    from wandb.proto import wandb_internal_pb2

    fit("--config", str(CONFIGS / "trackers/wandb.yaml"))
    run = wandb.run
    assert run is not None
    check_folder(workspace / "runs/xtoken_pl" / run.id)
    wandb.finish()
    wandb.teardown()  # its service writes the file to the end
    (folder,) = (workspace / "runs/wandb").glob(f"offline-run-*-{run.id}")
    tags: dict[str, list[Any]] = {}
    kinds: set[str] = set()
    for content in stored_records(folder / f"run-{run.id}.wandb"):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        kinds.add(record.WhichOneof("record_type"))
        for item in record.history.item:
            path = list(item.nested_key) or [item.key]
            if len(path) == 1 or path[-1] == "filenames":  # of a picture
                tags.setdefault(path[0], []).append(json.loads(item.value_json))
    assert {"header", "history", "exit"} <= kinds  # all of the file was read
    expected = scalars(tensorboard)
    expected.pop("hp_metric", None)
    assert {tag for tag in tags if not tag.startswith(("_", "trainer/"))} - {"epoch"} == (
        expected.keys() - {"epoch"} | PICTURES
    )
    for tag in expected.keys() - {"epoch"}:
        assert tags[tag] == pytest.approx(expected[tag], rel=1e-5), tag
    for tag in PICTURES:
        ((file,),) = tags[tag]
        assert is_picture((folder / "files" / file).read_bytes())


def test_runs_without_a_logger_share_a_folder_and_keep_every_configuration(workspace: Path) -> None:
    without = ["--trainer.logger", "false", "--trainer.callbacks", "[]", "--trainer.max_steps", "1"]
    without += ["--trainer.default_root_dir", "alone", "--trainer.enable_checkpointing", "false"]
    fit(*without)
    before = Path("alone/config.yaml").read_text()
    fit(*without, "--seed_everything", "7")
    assert Path("alone/config.yaml").read_text() == before
    assert yaml.safe_load(Path("alone/config_2.yaml").read_text())["seed_everything"] == 7


# The callback ----------------------------------------------------------------------------------------------------

Fit = Callable[..., pl.Trainer]


@pytest.fixture
def train(workspace: Path, tmp_path: Path) -> Fit:
    """Four steps with a validation after each, by a sanity check before them."""

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
def test_a_comparison_is_drawn_first_and_then_every_so_often(
    train: Fit, tmp_path: Path, options: dict[str, Any], expected: list[int]
) -> None:
    train(PictureMonitor(every_n_validations=2, num_spans=2), TensorBoardLogger(tmp_path, "", ""), **options)
    found = steps_of(tmp_path)
    assert found.pop("audit") == [0]
    assert found == ({"spans": expected[:1], "top_tokens": expected} if expected else {})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: CSVLogger(folder), "CSVLogger takes no pictures"),
        (lambda _: False, "there is no logger to take pictures"),
    ],
    ids=["CSVLogger", "none"],
)
def test_without_a_place_for_pictures_nothing_is_computed(
    train: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, message: str
) -> None:
    def no_picture(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    for name in ("predict", "CoverageAudit", "spans_figure", "predictions_figure", "first_sequence"):
        monkeypatch.setattr(f"xtoken_pl.callbacks.picture_monitor.{name}", no_picture)
    with pytest.warns(UserWarning, match=message) as caught:
        train(PictureMonitor(every_n_validations=1), make(tmp_path))
    assert sum(message in str(warning.message) for warning in caught) == 1


def test_training_is_the_same_with_pictures(train: Fit, tmp_path: Path) -> None:
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


def test_a_figure_arrives_as_it_was_drawn(tmp_path: Path) -> None:
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
