"""``python -m xtoken_pl plan``: how much memory a run needs on each GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xtoken_pl.cli.outputs import check_output, write_output
from xtoken_pl.cli.parts_cli import run_with_parts
from xtoken_pl.data import DistillDataModule
from xtoken_pl.plan.advice import single_changes, way_to_fit
from xtoken_pl.plan.moments import MemoryPlan
from xtoken_pl.plan.report import table, to_dict
from xtoken_pl.plan.run import Run
from xtoken_pl.plan.terms import usable_bytes
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.errors import UserError


def run(arguments: list[str]) -> None:
    """Runs the verb."""
    run_with_parts(plan_run, PlanOptions, arguments)


@dataclass(frozen=True)
class PlanOptions:
    """Options of ``plan`` in addition to those of ``fit``.

    Attributes:
        gpu_memory: Memory of each GPU in the GB that it is sold with: 24, 40, 80, 141.
        num_gpus: Number of GPUs that sharded models are spread over; trainer.devices x trainer.num_nodes by default (1
            per node if devices are auto).
        json_output: A JSON file to write.
        overwrite: Replace a file that exists.

    Raises:
        UserError: If ``gpu_memory`` is not > 0.
    """

    gpu_memory: float = 80.0
    num_gpus: int | None = None
    json_output: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gpu_memory) and self.gpu_memory > 0):
            raise UserError(f"gpu_memory must be > 0 GB, got {self.gpu_memory}; 80 is an H100's")


def plan_run(
    module: MultiTeacherDistillModule, data: DistillDataModule, trainer: Mapping[str, Any], options: PlanOptions
) -> None:
    """Prints the plan of a run and writes it to the file of the options, if any.

    Args:
        module: The run's module, without weights.
        data: The run's data module.
        trainer: Section ``trainer`` of the configuration.
        options: Options of the verb.
    """
    check_output("json_output", options.json_output, overwrite=options.overwrite)
    plan = MemoryPlan.from_run(Run.from_parts(module, data, trainer, options.num_gpus))
    usable = usable_bytes(options.gpu_memory)
    fits = plan.peak.total <= usable
    changes = [] if fits else single_changes(plan)
    way = None if fits else way_to_fit(plan, usable)
    print(table(plan, usable, changes, way))
    content = json.dumps(to_dict(plan, usable, changes, way), indent=2) + "\n"
    write_output(
        options.json_output, lambda part: part.write_text(content, encoding="utf-8"), overwrite=options.overwrite
    )
