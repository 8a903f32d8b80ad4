"""What the scripts of this folder share: a small run through the command line, and how to look at what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers"), str(TESTS / "failures")]

from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model  # noqa: E402

from xtoken_pl.checkpoints import check_whole  # noqa: E402

#: Seconds after which a command is taken to hang.
PATIENCE = 300

CONFIG = """
seed_everything: 1
model:
  student: {model: student}
  teachers:
    split: {model: split, loss: xtoken_pl.ProjectionKL}
  optimizer: {learning_rate: 1.0e-3}
data:
  train: {path: texts/*.jsonl}
  sequence_length: 64
  batch_size: 2
  num_workers: 0
trainer:
  accelerator: cpu
  max_steps: 8
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: checkpoints, every_n_train_steps: 2, save_top_k: -1, filename: "{step}"}
"""


def prepare(folder: Path) -> None:
    """Models, texts and `run.yaml`."""
    write_model(folder / "student", packing_tokenizer(), seed=1, hidden_size=64)
    write_model(folder / "split", splitting_tokenizer(), seed=2)
    (folder / "texts").mkdir()
    for number in range(2):
        lines = [json.dumps({"text": text[:150]}) + "\n" for text in TEXTS[10 * number : 10 * number + 10]]
        (folder / f"texts/{number}.jsonl").write_text("".join(lines))
    (folder / "run.yaml").write_text(CONFIG)


def command(*arguments: str, verb: str = "fit") -> list[str]:
    """A verb of the command line on `run.yaml`."""
    return [sys.executable, "-m", "xtoken_pl", verb, "--config", "run.yaml", *arguments]


def run(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command in the folder; one that takes too long raises."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS / "helpers"), str(TESTS / "failures")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def succeed(folder: Path, arguments: list[str]) -> str:
    """Runs a command that must go well; returns what it said."""
    done = run(folder, arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def fail(folder: Path, arguments: list[str], *messages: str) -> None:
    """Runs a command that must fail, and say why."""
    done = run(folder, arguments)
    said = done.stdout + done.stderr
    assert done.returncode != 0, f"nothing failed:\n{said[-4000:]}"
    for message in messages:
        assert message in said, f"{message!r} was not said:\n{said[-4000:]}"
    (line,) = [line for line in said.splitlines() if messages[0] in line][-1:]
    print(f"said: {line.strip()}")


def saved(folder: Path) -> list[str]:
    """The checkpoints of a run, every one of them whole."""
    paths = sorted((folder / "checkpoints").glob("*.ckpt"))
    for path in paths:
        check_whole(path)
    return [path.name for path in paths]


def demonstrate(scenario: Callable[[Path], None]) -> None:
    """Plays a scenario in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        scenario(Path(folder))
    print("nothing that had been saved was lost")
