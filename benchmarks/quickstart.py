"""The quickstart's run, without what a benchmark does not measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.profilers import Profiler

from xtoken_pl.cli.fit import DistillCLI, run_cli

_CONFIGS = Path(__file__).parents[1] / "configs"


def fit(
    names: Sequence[str],
    num_steps: int,
    folder: str,
    *options: str,
    callbacks: Sequence[str] = (),
    callback: pl.Callback | None = None,
    profiler: Profiler | None = None,
) -> None:
    """Trains without validation, checkpoints and progress bar.

    Args:
        names: Configurations.
        num_steps: Optimizer steps.
        folder: Directory of the logs.
        options: Further options of ``fit``.
        callbacks: Callbacks of the package in place of the configurations'.
        callback: A callback of the benchmark.
        profiler: Lightning's profiler.
    """

    class Fit(DistillCLI):
        def before_fit(self) -> None:
            super().before_fit()
            trainer: Any = self.trainer
            trainer.callbacks += [] if callback is None else [callback]
            trainer.profiler = profiler or trainer.profiler

    trainer = {
        "max_steps": num_steps,
        "limit_val_batches": 0,
        "logger.init_args.save_dir": folder,
        "enable_progress_bar": "false",
        "enable_checkpointing": "false",
        "callbacks": f"[{', '.join(f'xtoken_pl.callbacks.{name}' for name in callbacks)}]",
    }
    files = [word for name in names for word in ("--config", str(_CONFIGS / f"{name}.yaml"))]
    run_cli(Fit, ["fit", *files, *(f"--trainer.{name}={value}" for name, value in trainer.items()), *options])
