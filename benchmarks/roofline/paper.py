"""The paper's runs, from the configurations that are shipped and the sizes of the models on the hub."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.roofline.heads import Tables
from benchmarks.roofline.step import Step
from xtoken_pl.cli.parts_cli import run_with_parts
from xtoken_pl.cli.plan import PlanOptions
from xtoken_pl.data import DistillDataModule
from xtoken_pl.plan.run import Run
from xtoken_pl.training.module import MultiTeacherDistillModule

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/helpers"))  # the models' sizes are those of the tests
from published_configs import write_configs

ROOT = Path(__file__).parents[2]

#: Best run of the paper: Phi-4-mini by H-KL and Llama-3.2-3B by KL.
BEST = "llama1b_from_phi4mini_llama3b"
#: Strategies on 1, 8 and 128 GPUs.
STRATEGIES = ("one_h100", "fsdp2_8_h100", "fsdp2_16_nodes")
#: Tokens of the models' tokenizers.
VOCABULARIES = {"": 128_256, "phi": 200_019, "llama": 128_256, "qwen": 151_669}
#: What W and the partitions hold for Llama 3's vocabulary and the teacher's; tests build them from the tokenizers.
TABLES = {
    "phi": Tables(common=103_861, entries=154_213, reached=104_324),
    "qwen": Tables(common=109_701, entries=151_851, reached=109_826),
    "llama": Tables(),
}


@dataclass(frozen=True)
class Settings:
    """A run, and the batches of its optimizer step."""

    run: Run
    num_batches: int


def settings_of(recipe: str, strategy: str) -> Settings:
    """Reads a run from `configs/paper/RECIPE.yaml` and `configs/strategy/STRATEGY.yaml`, without any download."""
    found: list[Settings] = []

    def read(
        module: MultiTeacherDistillModule, data: DistillDataModule, trainer: Mapping[str, Any], _: PlanOptions
    ) -> None:
        found.append(Settings(Run.from_parts(module, data, trainer), trainer.get("accumulate_grad_batches") or 1))

    files = ["paper/base", f"paper/{recipe}", f"strategy/{strategy}"]
    configs = [word for file in files for word in ("--config", str(ROOT / f"configs/{file}.yaml"))]
    with patch.object(sys, "argv", sys.argv[:1]):  # Lightning warns of arguments that are not its own
        run_with_parts(read, PlanOptions, ["plan", *configs])
    return found[0]


def paper_steps(recipe: str = BEST, strategies: tuple[str, ...] = STRATEGIES) -> list[Step]:
    """Computes a step of the paper's run on each number of GPUs."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        write_configs(Path(folder))
        found = [settings_of(recipe, strategy) for strategy in strategies]
        return [Step.from_run(one.run, one.num_batches, VOCABULARIES, TABLES) for one in found]
