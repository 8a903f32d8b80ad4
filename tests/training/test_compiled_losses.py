"""A compiled loss gives what the loss gives, from one graph for each pass, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch
from fake_vocabularies import STUDENT, TEACHER, random_projection
from head_rows import Rows
from small_models import packing_tokenizer, reversing_tokenizer
from torch._dynamo.utils import counters

from xtoken_pl import BytePrefixKL, CanonicalVocabulary, HybridKL, ProjectionKL, SpanLoss, Teacher
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.training.binding import bind_loss
from xtoken_pl.utilities.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ProjectionKL, HybridKL])
def test_compiled_loss_has_the_values_and_gradients_of_the_loss(kind: type[SpanLoss]) -> None:
    losses = kind(), kind()
    for loss in losses:
        loss.bind(STUDENT, TEACHER, random_projection())
    losses[1].compile(dynamic=True)
    torch.compiler.reset()
    counters.clear()
    num_graphs = []
    for num_rows in (300, 350):  # pieces of several sizes, all scored twice
        rows = Rows(num_rows=num_rows)
        results = []
        for loss in losses:
            scores = rows.evaluate(LogitMemory(4e4), loss)
            results.append((scores.spans["t"].loss.detach(), *rows.gradients(scores)))
        for expected, compiled in zip(*results, strict=True):
            torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-6)
        num_graphs.append(counters["stats"]["unique_graphs"])
    assert num_graphs[0] == num_graphs[1] <= 4  # without and with a gradient; sizes of 1 are special
    assert not counters["graph_break"]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[SpanLoss]:
    """The losses that are compiled."""
    found: list[SpanLoss] = []
    monkeypatch.setattr(SpanLoss, "compile", lambda self, *, dynamic: found.append(self), raising=False)
    return found


@pytest.mark.parametrize("compile_loss", [False, True])
def test_the_bound_copy_is_compiled_if_the_teacher_says_so(compiled: list[SpanLoss], *, compile_loss: bool) -> None:
    teacher = Teacher(model="t", loss=HybridKL(), compile_loss=compile_loss)
    loss = bind_loss("t", teacher, *_vocabularies())
    assert [each is loss for each in compiled] == [True] * compile_loss
    assert loss is not teacher.loss


def test_a_loss_with_a_plan_is_not_compiled(compiled: list[SpanLoss]) -> None:
    teacher = Teacher(model="t", loss=BytePrefixKL(), compile_loss=True)
    with pytest.raises(UserError, match="BytePrefixKL of teacher 't' plans each batch; leave compile_loss out"):
        bind_loss("t", teacher, *_vocabularies())
    assert not compiled


def _vocabularies() -> tuple[CanonicalVocabulary, CanonicalVocabulary]:
    student, teacher = (CanonicalVocabulary.from_tokenizer(make()) for make in (packing_tokenizer, reversing_tokenizer))
    return student, teacher
