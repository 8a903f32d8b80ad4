"""A step of a 1-billion student with a 4-billion teacher against one on cross-entropy alone."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import Optimizer

from benchmarks.gpu_check.marks import Marks
from benchmarks.gpu_check.models import Pair, SharingModule, batch_for, optimizer_of, train
from benchmarks.gpu_check.setting import Setting
from benchmarks.measure import Figure
from xtoken_pl import BytePrefixKL, HybridKL, ProjectionKL, SpanLoss
from xtoken_pl.batch import DistillBatch
from xtoken_pl.plan.moments import MemoryPlan
from xtoken_pl.plan.run import Run
from xtoken_pl.scoring.memory import LogitMemory

#: Memory for logits in GB, the default first and what differs most from it next, should the time not be enough.
_MEMORIES = (0.5, 8.0, 2.0, 1.0, 4.0)
#: Memory in miniature, in proportion to the vocabularies.
_MINIATURE = 1e-3
_WARM_UP, _STEPS = 1, 3
_CE = "CE"
_LOSSES: dict[str, type[SpanLoss]] = {
    "CE + P-KL": ProjectionKL,
    "CE + H-KL": HybridKL,
    "CE + byte-prefix KL": BytePrefixKL,
}
_PARTS = (
    "student's forward pass",
    "teacher's forward pass",
    "scoring",
    "scoring, backward",
    "student's backward pass",
    "optimizer",
)


@dataclass(frozen=True)
class _Measured:
    """Seconds of each part of the median step, and bytes that were allocated at most; None on a CPU."""

    parts: dict[str, float]
    peak: int | None

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def figures(setting: Setting) -> Iterator[Figure]:
    """For every loss and memory budget: speed, shares of the parts, and memory against the plan."""
    marks = Marks(setting.device)
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair.build(setting, Path(folder))
        modules = {_CE: SharingModule(pair, None, marks)}
        modules |= {name: SharingModule(pair, kind(), marks) for name, kind in _LOSSES.items()}
        batches = {name: batch_for(module, pair) for name, module in modules.items()}
        optimizer = optimizer_of(modules[_CE])  # all modules have one student
        peaks: dict[tuple[str, float], int] = {}
        for memory in _MEMORIES:
            baseline = None
            for name, module in modules.items():
                module.logit_memory = LogitMemory(_budget(setting, memory))
                found = _measure(setting, module, batches[name], optimizer, marks)
                baseline = baseline or found
                yield from _of_step(name, memory, found, baseline, len(batches[name].student.labels))
                if found.peak is not None:
                    # The teacher, which the plan of a run without one does not have, is there.
                    peaks[name, memory] = found.peak - (pair.teacher.num_bytes if name == _CE else 0)
        yield from _memory(setting, pair, peaks)


def _budget(setting: Setting, memory: float) -> float:
    return memory * 1e9 * (1.0 if setting.is_full else _MINIATURE)


def _measure(
    setting: Setting, module: SharingModule, batch: DistillBatch, optimizer: Optimizer, marks: Marks
) -> _Measured:
    for _ in range(_WARM_UP):
        train(module, batch, optimizer, marks)
    marks.take()
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    steps: list[dict[str, float]] = []
    for _ in range(_STEPS if setting.is_full else 1):
        train(module, batch, optimizer, marks)
        steps.append(marks.take())
    middle = statistics.median_low(sum(step.values()) for step in steps)
    parts = next(step for step in steps if sum(step.values()) == middle)
    peak = torch.cuda.max_memory_allocated() if setting.on_gpu else None
    module.logit_memory = LogitMemory(1.0)  # gives its matrices back
    if setting.on_gpu:
        torch.cuda.empty_cache()
    return _Measured(parts, peak)


def _of_step(name: str, memory: float, found: _Measured, baseline: _Measured, num_tokens: int) -> Iterator[Figure]:
    where = f"{name}, logits_memory {memory:g}"
    yield Figure(
        f"{where}: speed",
        num_tokens / found.seconds,
        "tokens/s",
        note=f"{num_tokens:,} tokens in {found.seconds:.3g} s",
    )
    if found is not baseline:
        teacher = found.parts.get("teacher's forward pass", 0.0)
        note = f"{(found.seconds - teacher) / baseline.seconds:.3g} x without the teacher's forward pass"
        yield Figure(f"{where}: a step against one with CE alone", found.seconds / baseline.seconds, "x", note=note)
    if memory in _MEMORIES[:2]:
        for part in _PARTS:
            if part in found.parts:
                taken = found.parts[part]
                yield Figure(f"{where}: {part}", 100 * taken / found.seconds, "%", note=f"{1000 * taken:.3g} ms")


def _memory(setting: Setting, pair: Pair, peaks: dict[tuple[str, float], int]) -> Iterator[Figure]:
    """The planned memory, without its allowances; on a GPU also what was allocated at most, which it must bound."""
    for name, kind in {_CE: None, **_LOSSES}.items():
        smallest = min(_MEMORIES)
        planned = _planned(pair, None if kind is None else kind(), int(_budget(setting, smallest)))
        for memory in sorted(_MEMORIES):
            # The budget is a term of every moment.
            bound = planned + _budget(setting, memory) - _budget(setting, smallest)
            where = f"{name}, logits_memory {memory:g}"
            if (peak := peaks.get((name, memory))) is None:
                yield Figure(f"{where}: planned memory", bound / 1e9, "GB")
            else:
                note = f"{100 * (peak / bound - 1):+.1f}% of what is planned"
                yield Figure(f"{where}: memory allocated at most", peak / 1e9, "GB", bound / 1e9, note=note)


def _planned(pair: Pair, loss: SpanLoss | None, budget: int) -> int:
    student, teachers = pair.specs(loss)
    plan = MemoryPlan.from_run(Run(student, teachers, 1, pair.num_tokens, budget, precision="bf16-mixed"))
    return max(
        sum(size for term, size in moment.terms.items() if not term.startswith("allowance")) for moment in plan.moments
    )
