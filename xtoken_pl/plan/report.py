"""Renders a plan as a table for the terminal and as a dictionary."""

from __future__ import annotations

from typing import Any

from xtoken_pl.plan.advice import Change, Way
from xtoken_pl.plan.moments import MemoryPlan
from xtoken_pl.plan.skeleton import Skeleton
from xtoken_pl.specs import Student, Teacher

_GB = 1e9
_SPREAD = {
    "alone": "no sharding",
    "buckets": "DDP",
    "views": "DDP, gradients as views of its buckets",
    "sharded": "FSDP2",
}


def table(plan: MemoryPlan, usable: int, changes: list[Change], way: Way | None) -> str:
    """Renders the plan as text, in GB of 1e9 bytes.

    Args:
        plan: The plan.
        usable: Usable bytes of a GPU.
        changes: Single changes that save memory; empty if the run fits.
        way: Changes after which the run fits; None if there are none or none are needed.
    """
    run, peak = plan.run, plan.peak
    written = f", {run.writing.num_rows(run.batch_size):,} rollouts at a time" if run.writing else ""
    lines = [
        f"{run.num_gpus:,} GPU{'s' * (run.num_gpus > 1)} ({_SPREAD[run.spread]}"
        f"{f' over {run.data_parallel_size:,}' if run.spread == 'sharded' else ''}, {run.precision}), "
        f"{run.num_windows} windows of {run.sequence_length:,} tokens on each{written}; "
        "sizes per GPU, in GB of 1e9 bytes",
        _model_line("student", run.student, plan.student),
        *(_model_line(f"teacher {name}", run.teachers[name], plan.teachers.get(name)) for name in run.teachers),
        "",
        f"{'term':<48}{'maximum':>9}{'at the peak':>13}",
    ]
    largest = {term: max(moment.terms.get(term, 0) for moment in plan.moments) for term in _terms(plan)}
    lines += [f"{term:<48}{_gb(size):>9}{_gb(peak.terms.get(term, 0)):>13}" for term, size in largest.items()]
    lines += ["", f"{'moment':<48}{'':>9}{'total':>13}"]
    lines += [
        f"{moment.name:<48}{'':>9}{_gb(moment.total):>13}{'  <- peak' if moment is peak else ''}"
        for moment in plan.moments
    ]
    lines += ["", *_verdict(plan, usable, changes, way)]
    return "\n".join(lines)


def to_dict(plan: MemoryPlan, usable: int, changes: list[Change], way: Way | None) -> dict[str, Any]:
    """Returns the contents of :func:`table` as a dictionary, sizes in bytes."""
    return {
        "num_gpus": plan.run.num_gpus,
        "usable_bytes": usable,
        "peak_bytes": plan.peak.total,
        "peak_moment": plan.peak.name,
        "fits": plan.peak.total <= usable,
        "parameters": {"student": plan.student.num_parameters}
        | {f"teacher {name}": skeleton.num_parameters for name, skeleton in plan.teachers.items()},
        "moments": {moment.name: dict(moment.terms) for moment in plan.moments},
        "changes": [{"change": change.text, "saves_bytes": change.saves} for change in changes],
        "fits_with": None if way is None else {"changes": way.texts, "peak_bytes": way.peak},
    }


def _verdict(plan: MemoryPlan, usable: int, changes: list[Change], way: Way | None) -> list[str]:
    total = plan.peak.total
    where = f"{_gb(total)} of {_gb(usable)} GB at the peak ({plan.peak.name})"
    if total <= usable:
        return [f"fits: {where}, {_gb(usable - total)} GB left"]
    lines = [f"does not fit: {where}, {_gb(total - usable)} GB over the limit. Each change alone:"]
    lines += [f"  {change.text} saves {_gb(change.saves)} GB" for change in changes]
    if way is None:
        return [*lines, "even all of them together are not enough: use larger GPUs or smaller models"]
    lines.append(f"fits with {_gb(way.peak)} GB after:")
    return [*lines, *(f"  {text}" for text in way.texts)]


def _terms(plan: MemoryPlan) -> list[str]:
    """Terms in the order of the step, allowances last."""
    found = dict.fromkeys(term for moment in plan.moments for term in moment.terms)
    return sorted(found, key=lambda term: term.startswith("allowance"))


def _model_line(role: str, source: Student | Teacher, skeleton: Skeleton | None) -> str:
    if skeleton is None:
        assert isinstance(source, Teacher)
        return f"{role} {source.model}: {source.origin}; no weights here"
    dtype = str(skeleton.dtype).removeprefix("torch.")
    line = f"{role} {source.model}: {skeleton.num_parameters:,} parameters, {_form(source, skeleton, dtype)}"
    if not skeleton.has_adapter:
        return line
    does = "are trained (adapter)" if isinstance(source, Student) else "belong to its adapter"
    return f"{line}; {skeleton.num_adapter_parameters:,} of them {does}"


def _form(source: Student | Teacher, skeleton: Skeleton, dtype: str) -> str:
    """Form in which the weights are held: the dtype, or how they are quantized."""
    stored = skeleton.stored
    if stored is None or source.quantization is not None:
        return source.quantization or dtype
    return f"{stored.method}, stays quantized" if stored.is_kept else f"{dtype}, dequantized from {stored.method}"


def _gb(size: float) -> str:
    return f"{size / _GB:,.2f}"
