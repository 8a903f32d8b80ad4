"""What it costs to cut an optimizer step into batches, and how far dynamic scaling moves: ``python -m
benchmarks.accumulation``.

The quickstart's models and texts, 32 windows of 256 tokens a step. The student is random, or the export of a run whose
folder the environment's ``XTOKEN_PL_STUDENT`` names.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from benchmarks.measure import Figure, run, seconds
from xtoken_pl import (
    DistillDataModule,
    MultiTeacherDistillModule,
    OptimizerRecipe,
    ProjectionKL,
    Student,
    Teacher,
    TextSource,
)
from xtoken_pl.batch import DistillBatch, TeacherBatch, TokenBatch
from xtoken_pl.callbacks import DynamicLossScaling
from xtoken_pl.cli.prepare import prepare
from xtoken_pl.data import collate, whole_steps
from xtoken_pl.scoring.tasks import HiddenRows
from xtoken_pl.training.totals import StepSums

_NUM_STEPS, _WINDOWS = 5, 32
#: Number of batches of a step.
_CUTS = (1, 4, 32)
#: An export of the quickstart's run; without it the student is random.
_EXPORT = os.environ.get("XTOKEN_PL_STUDENT")


def figures() -> Iterator[Figure]:
    """The time of counting a step's tokens and spans ahead, and the gradient's relative deviation from the unsplit."""
    prepare()
    module, windows = _module()
    optimizer, _ = module.optimizer_recipe.build(module.parameters(), 100)
    sums = {num_batches: StepSums() for num_batches in _CUTS}
    deviations: dict[int, list[float]] = {num_batches: [] for num_batches in _CUTS[1:]}
    counting: list[float] = []
    for step in range(_NUM_STEPS):
        gradients: dict[int, Tensor] = {}
        for num_batches in reversed(_CUTS):  # the unsplit step last: its gradient is applied
            module._step_sums = sums[num_batches]
            batches = _batches(windows, step, num_batches)
            optimizer.zero_grad()
            taken = seconds(partial(_accumulate, module, batches))
            if num_batches == max(_CUTS):
                counting.append(seconds(partial(_count, batches)) / taken)
            gradients[num_batches] = _gradient(module)
        for num_batches, values in deviations.items():
            moved = (gradients[num_batches] - gradients[1]).norm() / gradients[1].norm()
            values.append(100 * moved.item())
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    yield Figure("accumulation: counting the step's tokens ahead", 100 * statistics.median(counting), "% of a step", 2)
    for num_batches, (first, *values) in deviations.items():
        label = f"dynamic scaling, {num_batches} x {_WINDOWS // num_batches} windows: deviation of the gradient"
        # In the first step there is no step before, whose losses are expected.
        note = f"{min(values):.2f} to {max(values):.2f} over {len(values)} steps; {first:.2f} in the first one"
        yield Figure(label, statistics.median(values), "%", 1, note=note)


class _Remembering(MultiTeacherDistillModule):
    """Runs the teacher once over each window, however often and in whatever batch it comes."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._hidden: dict[bytes, Tensor] = {}

    def teacher_rows(self, name: str, view: TeacherBatch) -> HiddenRows:
        """Looks the rows of each window up, or computes them."""
        tokens = view.tokens
        num_rows = torch.bincount(tokens.rows // tokens.input_ids.shape[1], minlength=len(tokens.input_ids)).tolist()
        hidden, head = [], self.loaded_teachers[name].head
        for place, (num, labels) in enumerate(zip(num_rows, tokens.labels.split(num_rows), strict=True)):
            ids, mask = tokens.input_ids[place], tokens.attention_mask[place]
            key = ids[mask.bool()].numpy().tobytes()
            if key not in self._hidden:
                rows = tokens.rows.split(num_rows)[place] - place * len(ids)
                alone = TokenBatch(ids[None], mask[None], rows, labels)
                computed = super().teacher_rows(name, replace(view, tokens=alone))
                assert isinstance(computed, HiddenRows)
                self._hidden[key] = computed.hidden
            hidden.append(self._hidden[key])
            assert len(hidden[-1]) == num
        return HiddenRows(torch.cat(hidden), tokens.labels, head)


def _accumulate(module: MultiTeacherDistillModule, batches: list[DistillBatch]) -> None:
    for place, batch in enumerate(whole_steps(batches, [len(batches)])):
        cast(dict[str, Any], module.training_step(batch, place))["loss"].backward()


def _count(batches: list[DistillBatch]) -> None:
    for _ in whole_steps(batches, [len(batches)]):
        pass


def _gradient(module: MultiTeacherDistillModule) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None])


def _batches(windows: Any, step: int, num_batches: int) -> list[DistillBatch]:
    size = _WINDOWS // num_batches
    first = step * _WINDOWS
    return [
        collate([windows[index] for index in range(begin, begin + size)], ["smollm2"])
        for begin in range(first, first + _WINDOWS, size)
    ]


def _module() -> tuple[MultiTeacherDistillModule, Any]:
    pl.seed_everything(0, verbose=False)
    student = Student(model=_EXPORT) if _EXPORT else Student(model="quickstart/student", weights="random")
    teacher = Teacher(model="quickstart/teacher-smollm2", loss=ProjectionKL())
    recipe = OptimizerRecipe(learning_rate=1e-3, warmup_fraction=0.0)
    module = _Remembering(student, {"smollm2": teacher}, optimizer=recipe)
    module.kd_scale = DynamicLossScaling.scale
    source = TextSource(path="quickstart/corpus/train.jsonl")
    data = DistillDataModule(source, sequence_length=256, num_workers=0)
    module.connect(data)
    data.setup("fit")
    module.configure_model()
    module.train()
    order = torch.randperm(_NUM_STEPS * _WINDOWS).tolist()
    windows = [data.window("train", index) for index in order]
    return module, windows


if __name__ == "__main__":
    run(figures)
