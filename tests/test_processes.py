"""Two processes compute the same losses as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from logged import scalars
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

CONFIG = """
seed_everything: 1
model:
  student: {model: student}
  teachers:
    split: {model: split, alpha: 0.5, loss: xtoken_pl.ProjectionKL, learn_projection: true}
    hybrid: {model: split, alpha: 0.2, loss: xtoken_pl.HybridKL}
    prefix: {model: split, alpha: 0.2, loss: xtoken_pl.BytePrefixKL}
    same: {model: same, alpha: 0.3, loss: auto}
  weighting: {class_path: xtoken_pl.ConfidenceWeighting, init_args: {sharpness: 2.0}}
  optimizer: {learning_rate: 1.0e-2, warmup_fraction: 0.0}
data:
  train: {path: texts.jsonl}
  sequence_length: 64
  num_workers: 0
trainer:
  accelerator: cpu
  max_steps: 4
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  logger: {class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: runs, name: NAME}}
  callbacks:
    - class_path: xtoken_pl.callbacks.DynamicLossScaling
    - class_path: xtoken_pl.callbacks.TeacherMonitor
    - class_path: xtoken_pl.callbacks.HFExport
    - class_path: xtoken_pl.callbacks.ProjectionExport
"""


def losses(folder: Path, name: str, *arguments: str) -> dict[str, list[float]]:
    (folder / f"{name}.yaml").write_text(CONFIG.replace("NAME", name))
    command = [sys.executable, "-m", "xtoken_pl", "fit", "--config", f"{name}.yaml", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    logged = scalars(folder / "runs" / name / "version_0")
    return {tag: values for tag, values in logged.items() if tag.startswith("train/")}


def test_two_processes_with_uneven_shares_give_the_losses_of_one(tmp_path: Path) -> None:
    write_model(tmp_path / "student", packing_tokenizer(), seed=1)
    write_model(tmp_path / "split", splitting_tokenizer(), seed=2)
    write_model(tmp_path / "same", packing_tokenizer(), seed=3)
    # Two windows of different lengths are the whole epoch, so that every step sees both, in whatever order.
    lines = [json.dumps({"text": text}) + "\n" for text in (TEXTS[0][:60], TEXTS[1][:25])]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    one = losses(tmp_path, "one", "--data.batch_size", "2")
    two = losses(tmp_path, "two", "--data.batch_size", "1", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert one.keys() == two.keys()
    assert (tmp_path / "runs/two/version_0/export/model.safetensors").is_file()
    assert (tmp_path / "runs/two/version_0/projections/split.safetensors").is_file()
    assert 0.5 < one["train/alpha/same"][0] < 0.99  # by confidence, and not its own 0.3
    assert one["train/loss"][0] > 1.2 * one["train/loss"][-1]  # it learned, so that the gradients mattered
    for tag, values in one.items():
        assert two[tag] == pytest.approx(values, rel=1e-4), tag
