"""What to change where a run does not fit: each change is planned, not estimated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from xtoken_pl.plan.moments import MemoryPlan
from xtoken_pl.plan.run import Run, is_cached

#: GPUs of a usual node, over which a student that is not sharded could be.
_NODE = 8
#: GB that are enough for any batch, as the module says.
_LEAST_LOGITS_MEMORY = 500_000_000


@dataclass(frozen=True)
class Change:
    """A setting that lowers the peak.

    Attributes:
        text: What to set.
        saves: Bytes of the peak.
        run: With it.
        is_exact: Whether the student learns the same, up to rounding, on the same GPUs.
    """

    text: str
    saves: int
    run: Run
    is_exact: bool


@dataclass(frozen=True)
class Way:
    """Changes, one after another, with which a run fits."""

    texts: list[str]
    peak: int


def single_changes(plan: MemoryPlan) -> list[Change]:
    """All changes that lower the peak, by how much they save."""
    changes = [
        Change(text, plan.peak.total - MemoryPlan.of(run).peak.total, run, is_exact)
        for text, run, is_exact in _possible(plan.run)
    ]
    return sorted((change for change in changes if change.saves > 0), key=lambda change: -change.saves)


def way_to_fit(plan: MemoryPlan, usable: int) -> Way | None:
    """The change that saves most, and again, until the run fits; None if it never does.

    What leaves the results as they are comes first.
    """
    texts: list[str] = []
    while plan.peak.total > usable:
        changes = single_changes(plan)
        if not changes:
            return None
        best = next((change for change in changes if change.is_exact), changes[0])
        texts.append(best.text)
        plan = MemoryPlan.of(best.run)
    return Way(texts, plan.peak.total)


def _possible(run: Run) -> Iterator[tuple[str, Run, bool]]:
    """What to set, the run with it, and whether that is exact."""
    if not run.student.activation_checkpointing:
        student = replace(run.student, activation_checkpointing=True)
        yield "model.student.activation_checkpointing: true", replace(run, student=student), True
    if run.batch_size > 1:
        smaller = run.batch_size // 2
        text = f"data.batch_size: {smaller} (and trainer.accumulate_grad_batches x {run.batch_size / smaller:g})"
        yield text, replace(run, batch_size=smaller), True
    if run.logits_memory > _LEAST_LOGITS_MEMORY:
        yield "model.logits_memory: 0.5", replace(run, logits_memory=_LEAST_LOGITS_MEMORY), True
    if run.spread == "buckets":
        yield "strategy DDPStrategy with gradient_as_bucket_view: true", replace(run, spread="views"), True
    if run.spread != "sharded":
        size = max(run.num_gpus, _NODE)
        sharded = replace(run, spread="sharded", num_gpus=size, data_parallel_size=size)
        yield f"strategy ModelParallelStrategy over {size} GPUs", sharded, size == run.num_gpus
    for name in run.teachers:
        yield from _of_teacher(run, name)


def _of_teacher(run: Run, name: str) -> Iterator[tuple[str, Run, bool]]:
    teacher, setting = run.teachers[name], f"model.teachers.{name}"

    def changed(**values: Any) -> Run:
        return replace(run, teachers={**run.teachers, name: replace(teacher, **values)})

    if is_cached(teacher):
        return
    if teacher.dtype in ("float32", "float64"):
        yield f"{setting}.dtype: bfloat16", changed(dtype="bfloat16"), False
    if not teacher.cpu_offload and teacher.quantization is None:
        yield f"{setting}.cpu_offload: true", changed(cpu_offload=True), True
        yield f"{setting}.quantization: 8bit", changed(quantization="8bit"), False
        yield f"{setting}.quantization: 4bit", changed(quantization="4bit"), False
    if "cache" in {field.name for field in fields(teacher)}:
        text = f"{setting}.cache: a folder written by `python -m xtoken_pl cache --teacher {name}`"
        yield text, changed(cache="planned"), False
