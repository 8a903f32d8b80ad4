"""``python -m xtoken_pl plan``: how much memory a run needs on each GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtoken_pl.cli.parts_cli import run_with_parts
from xtoken_pl.data import DistillDataModule
from xtoken_pl.plan.advice import single_changes, way_to_fit
from xtoken_pl.plan.moments import MemoryPlan
from xtoken_pl.plan.report import table, to_dict
from xtoken_pl.plan.run import Run
from xtoken_pl.plan.terms import usable_bytes
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path, check_target


def run(arguments: list[str]) -> None:
    """Runs the verb."""
    run_with_parts(plan_run, PlanOptions, arguments)


@dataclass(frozen=True)
class PlanOptions:
    """What a run is planned for.

    Attributes:
        gpu_memory: Of each GPU, in the GB that it is sold with: 24, 40, 80, 141.
        num_gpus: Instead of trainer.devices x trainer.num_nodes (1 a node where devices are auto). Sharded models are
            spread over all of them.
        json_output: A JSON file to write.
        overwrite: Replace a file that exists.
    """

    gpu_memory: float = 80.0
    num_gpus: int | None = None
    json_output: str | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Refuses what cannot be planned or written.

        Raises:
            UserError: If ``gpu_memory`` is not > 0.
            UserError: If ``json_output`` exists and is not to be replaced.
        """
        if not (math.isfinite(self.gpu_memory) and self.gpu_memory > 0):
            raise UserError(f"gpu_memory must be > 0 GB, got {self.gpu_memory}; 80 is an H100's")
        if self.json_output is not None:
            check_target(Path(self.json_output), kind="file", overwrite=self.overwrite)


def plan_run(
    module: MultiTeacherDistillModule, data: DistillDataModule, trainer: Mapping[str, Any], options: PlanOptions
) -> None:
    """Prints the plan of a run, and writes it where that is asked for.

    Args:
        trainer: The configuration's section.
    """
    options.check()
    plan = MemoryPlan.from_run(Run.from_parts(module, data, trainer, options.num_gpus))
    usable = usable_bytes(options.gpu_memory)
    fits = plan.peak.total <= usable
    changes = [] if fits else single_changes(plan)
    way = None if fits else way_to_fit(plan, usable)
    print(table(plan, usable, changes, way))
    if options.json_output is not None:
        with atomic_path(options.json_output, kind="file", overwrite=options.overwrite) as part:
            part.write_text(json.dumps(to_dict(plan, usable, changes, way), indent=2) + "\n", encoding="utf-8")
        print(f"written to {options.json_output}")
