"""Trains a student by an adapter under a strategy, and goes on from checkpoints; started by test_adapters.py.

python adapted_processes.py STRATEGY FOLDER, with the folder of `test_adapters.workspace`. The run of one process comes
first: the others go on from its checkpoint, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from strategies import Recorder
from torch.distributed.tensor import DTensor

from xtoken_pl import (
    DistillDataModule,
    LoRA,
    MultiTeacherDistillModule,
    OptimizerRecipe,
    ProjectionKL,
    Student,
    Teacher,
    TextSource,
)
from xtoken_pl.callbacks import HFExport, TeacherMonitor
from xtoken_pl.utilities.processes import gather

NUM_STEPS = 4


def strategy(name: str) -> dict[str, Any]:
    """The Trainer's arguments; one process sees the windows that two share."""
    sizes: dict[str, Any] = {"data_parallel_size": 2, "tensor_parallel_size": 1}
    split = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2, save_distributed_checkpoint=False)
    choices: dict[str, dict[str, Any]] = {
        "one": {"devices": 1},
        "ddp": {"devices": 2, "strategy": "ddp"},
        "fsdp2": {"devices": 2, "strategy": ModelParallelStrategy(**sizes, save_distributed_checkpoint=False)},
        "distributed": {"devices": 2, "strategy": ModelParallelStrategy(**sizes, save_distributed_checkpoint=True)},
        "tensor": {"devices": 2, "strategy": split},
    }
    return choices[name]


class Copies(pl.Callback):
    """Compares what both processes of a group hold whole, and draw."""

    def __init__(self) -> None:
        #: ``of_gradients`` is the largest difference, of the largest entry, before anything is averaged.
        self.found: dict[str, float] = {"of_gradients": 0.0}

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for weight in self._copied(pl_module):
            if weight.grad is not None:
                first, second = gather(weight.grad.to_local())
                difference = (first - second).abs().max() / first.abs().max().clamp_min(1e-30)
                self.found["of_gradients"] = max(self.found["of_gradients"], difference.item())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        states = gather(torch.get_rng_state())
        self.found["draw_alike"] = torch.equal(states[0], states[1])
        pairs = [gather(weight.detach().to_local()) for weight in self._copied(pl_module)]
        self.found["number"] = len(pairs)
        self.found["are_equal"] = all(torch.equal(first, second) for first, second in pairs)

    def _copied(self, module: pl.LightningModule) -> list[DTensor]:
        """Trained weights that are sharded over one process, and not split: those that are whole in both."""
        weights = [weight for weight in module.parameters() if isinstance(weight, DTensor) and weight.requires_grad]
        return [weight for weight in weights if weight.device_mesh.ndim == weight.device_mesh.size() == 1]


def train(name: str, folder: Path, *callbacks: pl.Callback, ckpt_path: Path | None, dropout: float = 0.0) -> Any:
    """The scalars of every step."""
    pl.seed_everything(1, verbose=False)
    # Weights in half precision below an adapter in single: sharding has to gather both at a time.
    student = Student(
        model=str(folder / "student"),
        adapter=LoRA(rank=4, dropout=dropout),
        activation_checkpointing=True,
        dtype="bfloat16" if name == "distributed" else "float32",
    )
    teacher = Teacher(model=str(folder / "split"), loss=ProjectionKL(), learn_projection=True)
    optimizer = OptimizerRecipe(learning_rate=1e-2, warmup_fraction=0.0)
    module = MultiTeacherDistillModule(student, {"split": teacher}, optimizer=optimizer)
    arguments, recorder = strategy(name), Recorder()
    data = DistillDataModule(
        TextSource(path=str(folder / "texts.jsonl")),
        sequence_length=64,
        batch_size=4 // (1 if name == "tensor" else arguments["devices"]),
        num_workers=0,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=NUM_STEPS,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=bool(callbacks) and not dropout,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[TeacherMonitor(), recorder, *callbacks],
        **arguments,
    )
    trainer.fit(module, data, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    return recorder.steps


def main(name: str, folder: Path) -> None:
    """A whole run, and runs that go on from its checkpoint and from that of one process."""
    if name == "dropout":
        copies = Copies()
        train("tensor", folder, copies, ckpt_path=None, dropout=0.5)
        if rank_zero_only.rank == 0:
            (folder / "copies.json").write_text(json.dumps(copies.found))
        return
    output = folder / "processes" / name
    checkpoints = ModelCheckpoint(output, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    exports = [HFExport(str(output / form), form=form) for form in ("merged", "adapter")]
    results = {"whole": train(name, folder, checkpoints, *exports, ckpt_path=None)}
    results["resumed"] = train(name, folder, ckpt_path=output / "step=2.ckpt")
    if name in ("fsdp2", "tensor"):
        one = folder / "processes/one/step=2.ckpt"
        results["after one"] = train(name, folder, ckpt_path=one)
    if rank_zero_only.rank == 0:
        (output / "losses.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
