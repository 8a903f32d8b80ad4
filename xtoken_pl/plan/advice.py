"""Suggests changes for a run that does not fit; each change is planned, not estimated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from xtoken_pl.plan.moments import MemoryPlan
from xtoken_pl.plan.run import Run, Writing
from xtoken_pl.plan.shared_models import shared_models
from xtoken_pl.plan.terms import is_quantized
from xtoken_pl.specs import Server, Teacher

#: GPUs of a typical node, over which an unsharded student could be sharded.
_NODE = 8
#: Bytes that are enough for any batch, see ``logits_memory`` of the module.
_LEAST_LOGITS_MEMORY = 500_000_000


class Price(IntEnum):
    """Cost of a change other than time."""

    NOTHING = 0
    OTHER_RESULTS = 1
    MORE_GPUS = 2


@dataclass(frozen=True)
class Change:
    """A setting that lowers the peak.

    Attributes:
        text: The setting.
        saves: Reduction of the peak in bytes.
        run: The run with this change.
        price: Cost other than time.
    """

    text: str
    saves: int
    run: Run
    price: Price


@dataclass(frozen=True)
class Way:
    """Successive changes after which a run fits."""

    texts: list[str]
    peak: int


def single_changes(plan: MemoryPlan) -> list[Change]:
    """Returns all changes that lower the peak, largest saving first."""
    changes = [
        Change(text, plan.peak.total - MemoryPlan.from_run(run).peak.total, run, price)
        for text, run, price in _possible(plan)
    ]
    return sorted((change for change in changes if change.saves > 0), key=lambda change: -change.saves)


def way_to_fit(plan: MemoryPlan, usable: int) -> Way | None:
    """Repeats the cheapest change (the largest saving among equals) until the run fits; None if it never does."""
    texts: list[str] = []
    while plan.peak.total > usable:
        changes = single_changes(plan)
        if not changes:
            return None
        best = min(changes, key=lambda change: (change.price, -change.saves))
        texts.append(best.text)
        plan = MemoryPlan.from_run(best.run)
    return Way(texts, plan.peak.total)


def _possible(plan: MemoryPlan) -> Iterator[tuple[str, Run, Price]]:
    """Yields each applicable change: its setting, the run with it, and its price."""
    run, student_is_quantized = plan.run, is_quantized(plan.student)
    if not run.student.activation_checkpointing:
        student = replace(run.student, activation_checkpointing=True)
        yield "model.student.activation_checkpointing: true", replace(run, student=student), Price.NOTHING
    if run.batch_size > 1:
        smaller = run.batch_size // 2
        text = f"data.batch_size: {smaller} (and trainer.accumulate_grad_batches x {run.batch_size / smaller:g})"
        writing = run.writing and replace(run.writing, num_batches=run.writing.num_batches * run.batch_size // smaller)
        yield text, replace(run, batch_size=smaller, writing=writing), Price.NOTHING
    if run.writing is not None:
        yield from _possible_for_writing(run, run.writing)
    if run.logits_memory > _LEAST_LOGITS_MEMORY:
        yield "model.logits_memory: 0.5", replace(run, logits_memory=_LEAST_LOGITS_MEMORY), Price.NOTHING
    if run.spread == "buckets":
        yield "strategy DDPStrategy with gradient_as_bucket_view: true", replace(run, spread="views"), Price.NOTHING
    if run.student.adapter is not None and not student_is_quantized and run.spread != "sharded":
        for bits in ("8bit", "4bit"):
            text = f"model.student.quantization: {bits}"
            yield text, replace(run, student=replace(run.student, quantization=bits)), Price.OTHER_RESULTS
    if run.spread != "sharded" and not student_is_quantized:
        size = max(run.num_gpus, _NODE)
        sharded = replace(run, spread="sharded", num_gpus=size, data_parallel_size=size)
        price = Price.MORE_GPUS if size > run.num_gpus else Price.NOTHING
        yield f"trainer.strategy: fsdp2, over {size} GPUs", sharded, price
    if run.precision in ("32-true", "bf16-mixed"):
        text = "trainer.precision: bf16-true (the student's weights and AdamW's moments in bfloat16)"
        yield text, replace(run, precision="bf16-true"), Price.OTHER_RESULTS
    yield from _possible_for_teachers(plan)


def _possible_for_writing(run: Run, writing: Writing) -> Iterator[tuple[str, Run, Price]]:
    def changed(**values: int) -> Run:
        return replace(run, writing=replace(writing, **values))

    num_rows = writing.num_rows(run.batch_size)
    if num_rows > 1:
        text = f"model.rollouts.engine: xtoken_pl.rollouts.TransformersEngine with batch_size: {num_rows // 2}"
        yield text, changed(batch_size=num_rows // 2), Price.NOTHING
    for name in ("num_samples", "max_new_tokens"):
        if (value := getattr(writing, name)) > 1:
            yield f"model.rollouts.{name}: {value // 2}", changed(**{name: value // 2}), Price.OTHER_RESULTS


def _possible_for_teachers(plan: MemoryPlan) -> Iterator[tuple[str, Run, Price]]:
    """Changes of the teachers that run in this process; those that share their weights change together."""
    run, models = plan.run, shared_models(plan.run.teachers, plan.teachers)

    def changed(names: Iterable[str], **values: Any) -> Run:
        teachers = {name: replace(run.teachers[name], **values) for name in names}
        return replace(run, teachers={**run.teachers, **teachers})

    for model in dict.fromkeys(models.values()):
        teacher, names, setting = model.source, model.names, model.setting
        if teacher.dtype in ("float32", "float64"):
            yield f"{setting}.dtype: bfloat16", changed(names, dtype="bfloat16"), Price.OTHER_RESULTS
        if not teacher.cpu_offload and not is_quantized(model.skeleton):
            yield f"{setting}.cpu_offload: true", changed(names, cpu_offload=True), Price.NOTHING
        if model.skeleton.stored is None:
            without = " (and cpu_offload: false)" if teacher.cpu_offload else ""
            for bits in ("8bit", "4bit"):
                quantized = changed(names, quantization=bits, cpu_offload=False)
                yield f"{setting}.quantization: {bits}{without}", quantized, Price.OTHER_RESULTS
        if run.cacheable.issuperset(names):
            yield " and ".join(map(_caching, names)), changed(names, cache="planned"), Price.OTHER_RESULTS
        if run.servable.issuperset(names) and not any(run.teachers[name].adapter for name in names):
            served = changed(names, server=Server(url="http://planned"), quantization=None, cpu_offload=False)
            text = f"{setting}.server: the address of a vLLM or SGLang server that runs the teacher on other GPUs"
            yield f"{text}{_without_weights(teacher)}", served, Price.MORE_GPUS


def _caching(name: str) -> str:
    return f"model.teachers.{name}.cache: a directory written by `python -m xtoken_pl cache --teacher {name}`"


def _without_weights(teacher: Teacher) -> str:
    """Names the options that a served teacher must not have."""
    given = {"cpu_offload": teacher.cpu_offload, "quantization": teacher.quantization}
    names = [name for name, value in given.items() if value]
    return f" (and no {' or '.join(names)})" if names else ""
