"""Teachers whose rows come with the batch, exact to float32, in both layouts, as of a cache or a server."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from xtoken_pl import MultiTeacherDistillModule, Server, Student, Teacher
from xtoken_pl.batch import AllRows, DistillBatch, KnownRows, SpanStartRows, TeacherBatch, TopTokens
from xtoken_pl.batch.quantization import bits_of
from xtoken_pl.losses import RowKind
from xtoken_pl.scoring.tasks import HiddenRows

SERVER = Server(url="http://localhost:1/v1", top_k="all")


def served_module(live: MultiTeacherDistillModule, patch: pytest.MonkeyPatch) -> MultiTeacherDistillModule:
    """The module with every teacher behind a server that is never asked, since batches hold the rows."""
    patch.setattr("xtoken_pl.teachers.served.checks.check_server", lambda *_: None)
    teachers: dict[str, Teacher] = {
        name: replace(teacher, server=SERVER, dtype="float32") for name, teacher in live.teachers.items()
    }
    student: Student = live.student_source
    module = MultiTeacherDistillModule(student, teachers)
    module.setup("fit")
    module.configure_model()
    return module.eval()


def with_known_rows(live: MultiTeacherDistillModule, batch: DistillBatch, kind: RowKind) -> DistillBatch:
    """The batch with all teachers' rows."""
    views = {
        name: replace(view, known=_known(live, name, view, kind)) if len(view.spans) else view
        for name, view in batch.teachers.items()
    }
    return replace(batch, teachers=views)


@torch.no_grad()
def _known(live: MultiTeacherDistillModule, name: str, view: TeacherBatch, kind: RowKind) -> KnownRows:
    rows = live.teacher_rows(name, view)
    assert isinstance(rows, HiddenRows)
    log_probs = rows.head.log_probs(rows.hidden, 1.0).float()
    observed = log_probs.gather(1, rows.labels[:, None]).squeeze(1)
    if kind == "all":
        return AllRows(TopTokens(bits_of(log_probs.numpy()), None, None), bits_of(observed.numpy()))
    first, span = view.spans.teacher_first, view.spans.teacher_span
    log_span = observed.new_zeros(len(view.spans) + 1).index_add(0, span, observed)[:-1]
    continuation = log_span - observed[first]
    top = TopTokens(bits_of(log_probs[first].numpy()), None, None)
    return SpanStartRows(top, bits_of(continuation.numpy()), bits_of(log_span.numpy()))
