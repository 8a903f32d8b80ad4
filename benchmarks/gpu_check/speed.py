"""A step of a 1-billion student with a 4-billion teacher against one on cross-entropy alone."""

from __future__ import annotations

import gc
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
_MEMORIES = (2.0, 0.5, 8.0, 1.0, 4.0)
#: Memory in miniature, in proportion to the vocabularies.
_MINIATURE = 1e-3
#: Teacher tokens that the paper's runs keep, and in miniature.
_TOP_K, _MINIATURE_TOP_K = 8192, 32
_WARM_UP, _STEPS = 1, 3
_CE = "CE"
_LONGEST_REASON = 200
#: cuBLAS and cuBLASLt have 32 MiB each on a Hopper GPU, in the thread of the forward and in that of the backward pass.
#: torch allocates them as it does tensors; the plan counts them among its allowances.
_WORKSPACES = 4 * 2**25
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
    """For every memory budget and loss: speed, shares of the parts, and memory against the plan."""
    marks = Marks(setting.device)
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair.build(setting, Path(folder))
        losses = _losses(setting)
        modules = {name: SharingModule(pair, loss, marks) for name, loss in losses.items()}
        batches = {name: batch_for(module, pair).to("cpu") for name, module in modules.items()}
        for module in modules.values():
            module.losses.to("cpu")  # as the batches: a run has one loss on its device, not all of them
        optimizer = optimizer_of(modules[_CE])  # all modules have one student
        for memory in _MEMORIES:
            baseline: _Measured | None = None
            for name, loss in losses.items():
                if memory != _MEMORIES[0] and getattr(loss, "teacher_top_k", None) is not None:
                    continue
                where, found = f"{name}, logits_memory {memory:g}", None
                modules[name].logit_memory = LogitMemory(_budget(setting, memory))
                try:
                    found = _measure(setting, modules[name], batches[name], optimizer, marks)
                except torch.OutOfMemoryError as error:  # of one loss and budget: the others may fit
                    yield out_of_memory(where, error)
                _free(setting, modules[name], optimizer, marks)
                if name == _CE:
                    baseline = found
                if found is not None:
                    yield from _of_step(where, memory, found, baseline, len(batches[name].student.labels))
                yield _memory(setting, pair, loss, memory, where, found)


def _losses(setting: Setting) -> dict[str, SpanLoss | None]:
    """By name; a loss of few teacher tokens is measured with the first memory budget alone."""
    top_k = _TOP_K if setting.is_full else _MINIATURE_TOP_K
    return {
        _CE: None,
        "CE + P-KL": ProjectionKL(),
        "CE + H-KL": HybridKL(),
        "CE + byte-prefix KL": BytePrefixKL(),
        f"CE + P-KL, top {top_k:,}": ProjectionKL(teacher_top_k=top_k),
    }


def out_of_memory(where: str, error: torch.OutOfMemoryError) -> Figure:
    """A figure that misses its target, with the first sentences of the error."""
    reason = " ".join(str(error).split())[:_LONGEST_REASON]
    return Figure(f"{where}: out of memory", 1, "", 0, note=reason)


def _budget(setting: Setting, memory: float) -> float:
    return memory * 1e9 * (1.0 if setting.is_full else _MINIATURE)


def _measure(
    setting: Setting, module: SharingModule, batch: DistillBatch, optimizer: Optimizer, marks: Marks
) -> _Measured:
    batch = batch.to(module.device)
    module.losses.to(module.device)
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
    return _Measured(parts, torch.cuda.max_memory_allocated() if setting.on_gpu else None)


def _free(setting: Setting, module: SharingModule, optimizer: Optimizer, marks: Marks) -> None:
    """Leaves the models on the device, and the optimizer's state; also after a step that has failed."""
    marks.take()
    optimizer.zero_grad()
    module.losses.to("cpu")
    module.logit_memory = LogitMemory(1.0)  # gives its matrices back
    gc.collect()
    if setting.on_gpu:
        torch.cuda.empty_cache()


def _of_step(
    where: str, memory: float, found: _Measured, baseline: _Measured | None, num_tokens: int
) -> Iterator[Figure]:
    yield Figure(
        f"{where}: speed",
        num_tokens / found.seconds,
        "tokens/s",
        note=f"{num_tokens:,} tokens in {found.seconds:.3g} s",
    )
    if baseline is not None and found is not baseline:
        teacher = found.parts.get("teacher's forward pass", 0.0)
        note = f"{(found.seconds - teacher) / baseline.seconds:.3g} x without the teacher's forward pass"
        yield Figure(f"{where}: a step against one with CE alone", found.seconds / baseline.seconds, "x", note=note)
    if memory in _MEMORIES[:2]:
        for part in _PARTS:
            if part in found.parts:
                taken = found.parts[part]
                yield Figure(f"{where}: {part}", 100 * taken / found.seconds, "%", note=f"{1000 * taken:.3g} ms")


def _memory(
    setting: Setting, pair: Pair, loss: SpanLoss | None, memory: float, where: str, found: _Measured | None
) -> Figure:
    """The planned memory, without its allowances; on a GPU what was allocated at most, which it must bound."""
    planned = _planned(pair, loss, int(_budget(setting, memory)))
    if found is None or found.peak is None:
        return Figure(f"{where}: planned memory", planned / 1e9, "GB")
    # The teacher, which the plan of a run without one does not have, is there.
    peak = found.peak - (pair.teacher.num_bytes if loss is None else 0)
    bound = planned + _WORKSPACES
    note = f"{100 * (peak / planned - 1):+.1f}% of what is planned, {planned / 1e9:.4g} GB"
    return Figure(f"{where}: memory allocated at most", peak / 1e9, "GB", bound / 1e9, note=note)


def _planned(pair: Pair, loss: SpanLoss | None, budget: int) -> int:
    student, teachers = pair.specs(loss)
    plan = MemoryPlan.from_run(Run(student, teachers, 1, pair.num_tokens, budget, precision="bf16-mixed"))
    return max(
        sum(size for term, size in moment.terms.items() if not term.startswith("allowance")) for moment in plan.moments
    )
