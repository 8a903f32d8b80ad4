"""A loss that reads hidden states has the gradient of one dense evaluation, however its rows are cut and kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from own_losses import hidden_cosine
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, write_model
from torch import Tensor, nn

from xtoken_pl import MultiTeacherDistillModule, SpanLoss, StaticWeighting, Student, Teacher
from xtoken_pl.batch import RowCuts, SpanBatch
from xtoken_pl.data import Windower, collate
from xtoken_pl.losses import RowContent, SpanBlock, SpanScores
from xtoken_pl.losses.base import SideRows
from xtoken_pl.models import Head
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.logit_gradients import LogitGradients
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.tasks import HiddenRows, RowScores, TeacherTask
from xtoken_pl.teachers.source import check_source
from xtoken_pl.utilities.errors import UserError

H_S, H_T, V_S, V_T = 4, 6, 11, 13
#: Lengths of the spans on both sides; a row of no span stands behind each.
STUDENT_LENGTHS, TEACHER_LENGTHS = [1, 2, 1, 3, 1, 1, 2], [2, 1, 1, 2, 1, 3, 1]


class HiddenSurprise(SpanLoss):
    """Reads the hidden states and the surprise of all rows of a span."""

    needs_hidden_states = True

    def forward(self, block: SpanBlock) -> SpanScores:
        student, teacher = block.student, block.teacher
        assert student.hidden is not None
        assert teacher.hidden is not None
        assert not teacher.hidden.requires_grad
        ours = student.sum_by_span(student.hidden.tanh().sum(1) * student.token_log_probs())
        loss = (ours - teacher.mean_rows(teacher.hidden).sum(1)).square()
        return SpanScores(loss, torch.zeros_like(loss.detach()), self.agreement(ours[:, None], ours[:, None]))


class LogProbsOnly(SpanLoss):
    """Reads no hidden states."""

    def forward(self, block: SpanBlock) -> SpanScores:
        assert block.student.hidden is None
        assert block.teacher.hidden is None
        loss = -block.student.first_rows()[:, :3].sum(1)
        return SpanScores(loss, torch.zeros_like(loss.detach()), self.agreement(loss[:, None], loss[:, None]))


class Problem:
    """Hidden states and heads of both sides, in float64, with spans of several rows."""

    def __init__(self, repeats: int = 6) -> None:
        self.generator = torch.Generator().manual_seed(0)
        sides = [self._side(lengths * repeats) for lengths in (STUDENT_LENGTHS, TEACHER_LENGTHS)]
        (first, length, span), (teacher_first, teacher_length, teacher_span) = sides
        self.spans = SpanBatch(first, length, teacher_first, teacher_length, span, teacher_span)
        self.hidden = self._normal(len(span), H_S).requires_grad_()
        self.teacher_hidden = self._normal(len(teacher_span), H_T)
        self.head, self.teacher_head = self._head(V_S, H_S), self._head(V_T, H_T)
        self.labels = torch.randint(V_S, (len(span),), generator=self.generator)
        self.teacher_labels = torch.randint(V_T, (len(teacher_span),), generator=self.generator)

    @staticmethod
    def _side(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        num_spans = len(lengths)
        rows = [place for place, length in enumerate(lengths) for place in [place] * length + [num_spans]]
        first = [rows.index(place) for place in range(num_spans)]
        return torch.tensor(first), torch.tensor(lengths), torch.tensor(rows)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def _head(self, size: int, hidden: int) -> nn.Linear:
        layer = nn.Linear(hidden, size, bias=False)
        layer.weight = nn.Parameter(self._normal(size, hidden))
        return layer

    def tasks(self, losses: dict[str, SpanLoss], temperature: float) -> dict[str, TeacherTask]:
        teacher = HiddenRows(self.teacher_hidden, self.teacher_labels, Head(self.teacher_head, V_T, None))
        return {name: TeacherTask(teacher, self.spans, loss, temperature) for name, loss in losses.items()}

    def evaluate(
        self, losses: dict[str, SpanLoss], budget: float, temperature: float = 1.0, hidden: Tensor | None = None
    ) -> RowScores:
        hidden = self.hidden if hidden is None else hidden
        student = HiddenRows(hidden, self.labels, Head(self.head, V_S, None))
        cuts = RowCuts.from_spans(len(self.labels), dict.fromkeys(losses, self.spans))
        return evaluate_rows(student, self.tasks(losses, temperature), cuts, LogitMemory(budget))

    def dense(self, losses: dict[str, SpanLoss], temperature: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy and losses of the whole batch at once, by autograd alone."""
        logits = self.hidden @ self.head.weight.t()
        spans = self.spans
        student = SideRows(
            (logits / temperature).log_softmax(-1), self.labels, spans.student_first, spans.student_length,
            spans.student_span, hidden=self.hidden,
        )  # fmt: skip
        teacher_logits = (self.teacher_hidden @ self.teacher_head.weight.t()).detach()
        teacher = SideRows(
            (teacher_logits / temperature).log_softmax(-1), self.teacher_labels, spans.teacher_first,
            spans.teacher_length, spans.teacher_span, hidden=self.teacher_hidden,
        )  # fmt: skip
        plain = SpanBlock(replace(student, hidden=None), replace(teacher, hidden=None))
        nats = -logits.log_softmax(-1).gather(1, self.labels[:, None]).squeeze(1)
        return nats, {
            name: temperature**2 * loss(SpanBlock(student, teacher) if loss.needs_hidden_states else plain).loss
            for name, loss in losses.items()
        }

    def gradients(self, nats: Tensor, losses: dict[str, Tensor], parameters: Sequence[Tensor] = ()) -> list[Tensor]:
        """Of the hidden states, the head and parameters, with a different weight for every row and span."""
        total = (nats * torch.linspace(0.5, 1.5, len(nats), dtype=nats.dtype)).sum()
        for place, loss in enumerate(losses.values()):
            total = total + (loss * torch.linspace(1.0, 3.0 + place, len(loss), dtype=loss.dtype)).sum()
        return list(torch.autograd.grad(total, [self.hidden, self.head.weight, *parameters]))


def losses_of(name: str) -> dict[str, SpanLoss]:
    cosine = hidden_cosine(H_S, H_T).double()
    cosine.register_buffer("same_bytes", torch.arange(V_S))
    generator = torch.Generator().manual_seed(1)
    cosine.map.weight.data += 0.1 * torch.randn(H_T, H_S, generator=generator, dtype=torch.float64)
    frozen = {"cosine": cosine.requires_grad_(name == "cosine")}
    surprise: dict[str, SpanLoss] = {"surprise": HiddenSurprise()}
    log_probs: dict[str, SpanLoss] = {"log_probs": LogProbsOnly()}
    choices: dict[str, dict[str, SpanLoss]] = {
        "cosine": frozen,
        "frozen cosine": frozen,
        "surprise": surprise,
        "several": log_probs | surprise | frozen,
    }
    return choices[name]


#: In bytes: a block of one span; some blocks are kept; all are.
BUDGETS = [1.0, 4e4, 1e8]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", ["cosine", "frozen cosine", "surprise", "several"])
def test_gradients_are_those_of_a_dense_evaluation(name: str, budget: float, temperature: float) -> None:
    problem, losses = Problem(), losses_of(name)
    parameters = [p for loss in losses.values() for p in loss.parameters() if p.requires_grad]
    scores = problem.evaluate(losses, budget, temperature)
    node: Any = scores.token_nats.grad_fn
    num_kept, num_blocks = len(node.evaluation.kept), len(node.evaluation.blocks)
    if budget == BUDGETS[0] or parameters:
        assert num_kept == 0
    elif budget == BUDGETS[2]:
        assert num_kept == num_blocks
    ours = problem.gradients(scores.token_nats, {n: s.loss for n, s in scores.spans.items()}, parameters)
    nats, dense = problem.dense(losses, temperature)
    theirs = problem.gradients(nats, dense, parameters)
    assert all(gradient.abs().max() > 1e-3 for gradient in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)
    for loss_name, span_scores in scores.spans.items():
        torch.testing.assert_close(span_scores.loss, dense[loss_name], rtol=1e-9, atol=1e-10)


def test_kept_and_recomputed_blocks_of_one_batch_agree() -> None:
    problem, losses = Problem(repeats=48), losses_of("surprise")
    scores = problem.evaluate(losses, 2e5)
    node: Any = scores.token_nats.grad_fn
    assert 0 < len(node.evaluation.kept) < len(node.evaluation.blocks)
    mixed = problem.gradients(scores.token_nats, {"surprise": scores.spans["surprise"].loss})
    for mine, other in zip(mixed, problem.gradients(*problem.dense(losses)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("budget", BUDGETS[::2])
@pytest.mark.parametrize("name", ["frozen cosine", "surprise"])
def test_gradcheck(name: str, budget: float) -> None:
    problem, losses = Problem(repeats=1), losses_of(name)

    def scored(hidden: Tensor) -> tuple[Tensor, ...]:
        scores = problem.evaluate(losses, budget, hidden=hidden)
        return scores.token_nats, *(spans.loss for spans in scores.spans.values())

    assert torch.autograd.gradcheck(scored, problem.hidden)


def test_losses_without_hidden_states_keep_none() -> None:
    node: Any = Problem().evaluate(losses_of("several"), BUDGETS[2]).token_nats.grad_fn
    (kept, *_) = node.evaluation.kept.values()
    assert kept.units.keys() == {"log_probs", "surprise", "cosine"}
    assert kept.hidden_units.keys() == {"surprise", "cosine"}
    assert all(piece.shape[1] == H_S for unit in kept.hidden_units.values() for piece in unit)


def test_half_precision_is_shown_in_single_with_the_same_gradient() -> None:
    problem = Problem()
    expected, *_ = problem.gradients(*problem.dense({"t": HiddenSurprise()}))
    seen: list[torch.dtype] = []

    class Watching(HiddenSurprise):
        def forward(self, block: SpanBlock) -> SpanScores:
            assert block.student.hidden is not None
            assert block.teacher.hidden is not None
            seen.extend((block.student.hidden.dtype, block.teacher.hidden.dtype))
            return super().forward(block)

    problem.hidden = problem.hidden.detach().bfloat16().requires_grad_()
    problem.teacher_hidden = problem.teacher_hidden.bfloat16()
    for head in (problem.head, problem.teacher_head):
        head.bfloat16()
    scores = problem.evaluate({"t": Watching()}, BUDGETS[2])
    gradient, _ = problem.gradients(scores.token_nats, {"t": scores.spans["t"].loss})
    assert {*seen} == {torch.float32}
    assert gradient.dtype == torch.bfloat16
    assert (gradient.double() - expected).norm() < 0.05 * expected.norm()  # bfloat16 has 8 bits


def test_gradients_in_the_logits_leave_the_hidden_states_as_they_are() -> None:
    """For looking at: the loss reads the model's hidden states there, and not what stands in for them."""
    problem, losses = Problem(), losses_of("surprise")
    cuts = RowCuts.from_spans(len(problem.labels), {"surprise": problem.spans})
    student = HiddenRows(problem.hidden.detach(), problem.labels, Head(problem.head, V_S, None))
    logits = (problem.hidden @ problem.head.weight.t()).detach()
    at = LogitGradients(torch.arange(len(logits)), logits, student, cuts, LogitMemory(BUDGETS[2]))
    found = at.of_teacher("surprise", problem.tasks(losses, 1.0)["surprise"])
    leaf = logits.clone().requires_grad_()
    spans = problem.spans
    student_side = SideRows(
        leaf.log_softmax(-1), problem.labels, spans.student_first, spans.student_length, spans.student_span,
        hidden=problem.hidden.detach(),
    )  # fmt: skip
    teacher_side = SideRows(
        leaf.new_zeros(len(problem.teacher_labels), V_T), problem.teacher_labels, spans.teacher_first,
        spans.teacher_length, spans.teacher_span, hidden=problem.teacher_hidden,
    )  # fmt: skip
    losses["surprise"](SpanBlock(student_side, teacher_side)).loss.sum().backward()
    torch.testing.assert_close(found, leaf.grad, rtol=1e-9, atol=1e-10)


def test_a_teacher_of_whom_rows_alone_are_known_is_refused_by_name() -> None:
    expected = "'phi' (HiddenSurprise) reads hidden states of the teacher, and its server has no hidden states; take"
    with pytest.raises(UserError, match=re.escape(expected)):
        check_source("phi", "its server", RowContent("all"), HiddenSurprise(), StaticWeighting(), "way out")


def test_the_documented_loss_trains_the_student_and_its_map(tmp_path: Path) -> None:
    student = write_model(tmp_path / "student", packing_tokenizer(), seed=1)
    teacher = write_model(tmp_path / "teacher", reversing_tokenizer(), seed=2, hidden_size=16)
    teachers = {"t": Teacher(model=teacher, loss=hidden_cosine(32, 16))}
    module = MultiTeacherDistillModule(Student(model=student), teachers, ce_weight=0.0)
    module.setup("fit")
    module.configure_model()
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 64)([TEXTS[0][:400]])
    batch = collate([{key: column[0] for key, column in columns.items()}], ["t"])
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        outputs: Any = module.training_step(batch, 0)
        losses.append(outputs["kd"].item())
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
    loss: Any = module.losses["t"]
    assert loss.map.weight.grad.any()
    assert all(parameter.grad.any() for parameter in module.student.model.layers.parameters())
    assert 0.5 < losses[0] < 1.5  # another model's hidden states have nothing in common with the student's
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        agreement = module.eval().score(batch).spans["t"].agreement
    assert agreement is not None
    assert set(agreement.tolist()) <= {0.0, 1.0}
