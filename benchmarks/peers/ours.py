"""A run of this package: ``python -m benchmarks.peers.ours --job ... --run uld --steps 11 --output ...``."""

from __future__ import annotations

import json
import tempfile
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.peers.recording import Recorder, run_arguments
from benchmarks.peers.runs import RUNS
from benchmarks.quickstart import fit


class RecordSteps(pl.Callback):
    """Passes the beginning of training and the end of every step to a recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.student: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts measuring when the models are loaded."""
        module: Any = pl_module
        self.student = module.student
        self.recorder.begin()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends a step; callbacks that log come before this one."""
        self.recorder.num_tokens.append(int(batch.student.attention_mask.sum()))
        self.recorder.losses.append(float(outputs["loss"]))
        self.recorder.end_step()


def main() -> None:
    """Trains with the quickstart's configuration, fixed weights of both losses, and the data loaded by this process."""
    arguments = run_arguments(__doc__)
    run, job = RUNS[arguments.run], json.loads((arguments.job / "job.json").read_text())
    options = [
        f"--model.student.model={job['student']}",
        "--model.student.weights=pretrained",
        "--data.num_workers=0",
        "--trainer.accelerator=cpu",
        f"--seed_everything={job['seed']}",
    ]
    if run.loss:
        options.append(f"--model.teachers.smollm2.loss.class_path=xtoken_pl.{run.loss}")
    else:
        options.append("--model.kd_weight=0")
    recorder = Recorder()
    callback = RecordSteps(recorder)
    with tempfile.TemporaryDirectory() as folder:
        fit(["quickstart"], arguments.steps, folder, *options, callback=callback)
    recorder.write(arguments.output, torch.get_num_threads(), "torch", "transformers", "lightning")
    if arguments.student is not None:
        callback.student.save_pretrained(arguments.student)


if __name__ == "__main__":
    main()
