"""What losses find out about a batch from its tokens, before it goes to the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from xtoken_pl.batch import DistillBatch, RowCuts
from xtoken_pl.losses.base import SpanLoss


def plan_losses(batch: DistillBatch, losses: Mapping[str, SpanLoss]) -> DistillBatch:
    """The batch with the plan of every teacher's loss, and cut where all plans allow it; unchanged where there is none.

    Args:
        batch: Of all teachers.
        losses: By teacher.
    """
    plans = {
        name: plan
        for name, view in batch.teachers.items()
        if view.plan is None and (plan := losses[name].plan(batch.student, view)) is not None
    }
    if not plans:
        return batch
    teachers = {name: replace(view, plan=plans.get(name, view.plan)) for name, view in batch.teachers.items()}
    known = {name: view.plan for name, view in teachers.items() if view.plan is not None}
    cuts = RowCuts.of(len(batch.student.labels), {name: view.spans for name, view in teachers.items()}, known)
    # A batch on a device gets its plan there; RowCuts and what is kept on the host stay as they are.
    return replace(batch, teachers=teachers, cuts=cuts).to(batch.student.labels.device)
