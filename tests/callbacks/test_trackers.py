"""Scalars and pictures reach TensorBoard, W&B and MLflow, and every run has a directory of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from logged import scalars
from PIL import Image
from small_run import monitored_run, write_models, write_texts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xtoken_pl.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
PICTURES = {f"pictures/{kind}/{name}" for kind in ("audit", "spans", "top_tokens") for name in ("split", "same")}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    write_models(root)
    write_texts(root, length=400)
    config = monitored_run()
    config["model"]["teachers"]["same"] = {"model": "same"}
    config["trainer"] |= {"max_steps": 2, "limit_val_batches": 1, "val_check_interval": 1}
    names = ("TeacherMonitor", "PictureMonitor", "HFExport")
    checkpoints = config["trainer"]["callbacks"][-1]
    config["trainer"]["callbacks"] = [*({"class_path": f"xtoken_pl.callbacks.{name}"} for name in names), checkpoints]
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    return root


@pytest.fixture(autouse=True)
def _in_the_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes to the workspace, with all network access of the trackers disabled."""
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
    """Directory of a run logged by TensorBoard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        fit()
    return workspace / "runs/test/version_0"


def is_picture(content: bytes) -> bool:
    """Whether the image is larger than 100 pixels and has more than ten colours."""
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
        # Drawn at the first validation, which is the sanity check; the next would be at the sixth.
        assert [image.step for image in events.Images(tag)] == [0]
        assert is_picture(events.Images(tag)[0].encoded_image_string)


@pytest.mark.slow
def test_mlflow_gets_the_same_scalars_and_pictures_and_the_run_can_resume(workspace: Path, tensorboard: Path) -> None:
    overlay = ["--config", str(CONFIGS / "trackers/mlflow.yaml")]
    fit(*overlay)
    (folder,) = (path.parent for path in (workspace / "runs/mlflow").glob("*/*/metrics"))
    check_folder(folder)
    metrics = {
        str(path.relative_to(folder / "metrics")): [float(line.split()[1]) for line in path.read_text().splitlines()]
        for path in (folder / "metrics").rglob("*")
        if path.is_file()
    }
    # Each metric is a file, so no metric can be below another one.
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
    """The records of W&B's offline file, a LevelDB log: 32 KiB blocks; a record may continue in the next block."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left_in_block = 2**15 - place % 2**15
        if left_in_block < 7:
            place += left_in_block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a complete record, or its last part
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
    wandb.teardown()  # its service finishes writing the file
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


def test_runs_without_a_logger_share_a_directory_and_keep_every_configuration(workspace: Path) -> None:
    without = ["--trainer.logger", "false", "--trainer.callbacks", "[]", "--trainer.max_steps", "1"]
    without += ["--trainer.default_root_dir", "alone", "--trainer.enable_checkpointing", "false"]
    fit(*without)
    before = Path("alone/config.yaml").read_text()
    fit(*without, "--seed_everything", "7")
    assert Path("alone/config.yaml").read_text() == before
    assert yaml.safe_load(Path("alone/config_2.yaml").read_text())["seed_everything"] == 7
