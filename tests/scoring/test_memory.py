"""What the memory budget decides, and what it does not: the numbers."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_losses import STUDENT, TEACHER, V_S, V_T, random_labels, random_projection
from torch import Tensor, nn

from xtoken_pl import GOLD, ProjectionKL, SpanLoss
from xtoken_pl.batch import Block, RowCuts, SpanBatch
from xtoken_pl.losses import SpanBlock, SpanScores
from xtoken_pl.models import Head
from xtoken_pl.models.head import accumulate_product, logits
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.evaluation import Evaluation
from xtoken_pl.scoring.memory import LogitMemory, MemoryPlan
from xtoken_pl.scoring.tasks import HiddenRows, RowScores, TeacherTask

H, N = 5, 40
ROW_BYTES = 4 * (V_S + V_T)
NOTHING_KEPT, ALL_KEPT = 10 * ROW_BYTES, 1e6


class Rows:
    """Random rows of both sides, one span a row, heads padded beyond their vocabularies, a student's bias."""

    def __init__(self, dtype: torch.dtype = torch.float32, *, num_rows: int = N, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        spans = torch.arange(num_rows)
        ones = torch.ones_like(spans)
        self.spans = SpanBatch(spans, ones, spans, ones, spans, spans)
        self.student_layer = self._layer(V_S + 3, generator, dtype, bias=True)
        self.teacher_layer = self._layer(V_T + 2, generator, dtype, bias=False).requires_grad_(False)
        self.hidden = torch.randn(num_rows, H, generator=generator, dtype=dtype).requires_grad_()
        self.teacher_hidden = torch.randn(num_rows, H, generator=generator, dtype=dtype)
        self.labels, self.teacher_labels = random_labels(num_rows, V_S, 1), random_labels(num_rows, V_T, 2)

    @staticmethod
    def _layer(size: int, generator: torch.Generator, dtype: torch.dtype, *, bias: bool) -> nn.Linear:
        layer = nn.Linear(H, size, bias=bias, dtype=dtype)
        for parameter in layer.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
        return layer

    def evaluate(self, memory: LogitMemory, loss: SpanLoss | None = None, temperature: float = 1.0) -> RowScores:
        if loss is None:
            loss = ProjectionKL()
            loss.bind(STUDENT, TEACHER, random_projection())
        student = HiddenRows(self.hidden, self.labels, Head(self.student_layer, V_S, None))
        teacher = HiddenRows(self.teacher_hidden, self.teacher_labels, Head(self.teacher_layer, V_T, None))
        tasks = {"t": TeacherTask(teacher, self.spans, loss, temperature)}
        return evaluate_rows(student, tasks, RowCuts.from_spans(len(self.hidden), {"t": self.spans}), memory)

    @property
    def inputs(self) -> list[Tensor]:
        return [self.hidden, self.student_layer.weight, self.student_layer.bias]

    def gradients(self, scores: RowScores, **options: Any) -> tuple[Tensor, ...]:
        weights = torch.linspace(0.5, 1.5, len(self.hidden), dtype=torch.float64)
        total = (weights * scores.token_nats).sum() + (weights.flip(0) * scores.spans["t"].loss).sum()
        return torch.autograd.grad(total, [x for x in self.inputs if x.requires_grad], **options)


def assert_equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], atol: float = 1e-10) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=atol, atol=atol)


def num_kept(scores: RowScores) -> tuple[int, int]:
    """How many blocks were kept, and of how many."""
    node: Any = scores.token_nats.grad_fn
    return len(node.evaluation.kept), len(node.evaluation.blocks)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_what_is_kept_gives_the_gradients_of_what_is_computed_again(temperature: float) -> None:
    rows = Rows(torch.float64, num_rows=700)
    budgets = (NOTHING_KEPT, 2e5, ALL_KEPT)
    scores = [rows.evaluate(LogitMemory(budget), temperature=temperature) for budget in budgets]
    (no, _), (some, several), (all_, every) = (num_kept(each) for each in scores)
    assert no == 0 < some < several
    assert all_ == every
    flat, mixed, kept = (rows.gradients(each) for each in scores)
    assert_equal(mixed, flat)
    assert_equal(kept, flat)


def test_padded_rows_of_the_head_have_no_gradient() -> None:
    rows = Rows()
    _, weight, bias = rows.gradients(rows.evaluate(LogitMemory(NOTHING_KEPT)))
    assert not weight[V_S:].any()
    assert not bias[V_S:].any()
    assert weight[:V_S].all()


@pytest.mark.parametrize("budget", [NOTHING_KEPT, ALL_KEPT])
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_frozen_input_gets_no_gradient_and_changes_no_other(budget: float, frozen: int) -> None:
    rows = Rows(torch.float64)
    expected = list(rows.gradients(rows.evaluate(LogitMemory(budget))))
    rows.inputs[frozen].requires_grad_(False)
    del expected[frozen]
    assert_equal(rows.gradients(rows.evaluate(LogitMemory(budget))), tuple(expected))


@pytest.mark.parametrize("budget", [NOTHING_KEPT, ALL_KEPT])
def test_batches_that_wait_for_their_backward_pass_do_not_share_memory(budget: float) -> None:
    memory = LogitMemory(budget)
    batches = [Rows(torch.float64, seed=seed) for seed in (1, 2)]
    waiting = [(rows, rows.evaluate(memory)) for rows in batches]
    together = [rows.gradients(scores) for rows, scores in waiting]
    alone = [rows.gradients(rows.evaluate(LogitMemory(budget))) for rows in batches]
    for ours, theirs in zip(together, alone, strict=True):
        assert_equal(ours, theirs)


@pytest.mark.parametrize("budget", [NOTHING_KEPT, ALL_KEPT])
def test_a_second_backward_pass_gives_the_same(budget: float) -> None:
    rows = Rows(torch.float64)
    scores = rows.evaluate(LogitMemory(budget))
    assert_equal(rows.gradients(scores, retain_graph=True), rows.gradients(scores))


def test_a_step_after_validation_uses_the_same_memory() -> None:
    """Lightning validates in inference mode, whose tensors cannot be changed outside of it."""
    rows, memory = Rows(torch.float64), LogitMemory(ALL_KEPT)
    with torch.inference_mode():
        rows.evaluate(memory)
    assert_equal(rows.gradients(rows.evaluate(memory)), rows.gradients(rows.evaluate(LogitMemory(ALL_KEPT))))


@pytest.mark.parametrize(
    ("budget", "num_matrices"),
    [(NOTHING_KEPT, 2), (ALL_KEPT, 4)],  # logits of both sides; kept: probabilities and the gradient of one loss
)
def test_memory_is_lent_again_and_does_not_grow(budget: float, num_matrices: int) -> None:
    rows, memory = Rows(), LogitMemory(budget)
    sizes = []
    for _ in range(3):
        scores = rows.evaluate(memory)
        rows.gradients(scores)
        node: Any = scores.token_nats.grad_fn
        assert not node.evaluation.still_there
        sizes.append(sorted((matrix.shape, matrix.data_ptr()) for matrix in memory._free))
    assert sizes[0] == sizes[1] == sizes[2]
    assert len(sizes[0]) == num_matrices


@pytest.mark.parametrize("num_rows", [3, N, 5 * N])
def test_the_logits_of_all_blocks_but_the_last_are_computed_again(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[Block] = []
    compute = Evaluation._compute_logits

    def watched(evaluation: Evaluation, block: Block, *arguments: Any) -> Any:
        computed.append(block)
        return compute(evaluation, block, *arguments)

    monkeypatch.setattr(Evaluation, "_compute_logits", watched)
    rows = Rows(num_rows=num_rows)
    scores = rows.evaluate(LogitMemory(NOTHING_KEPT))
    blocks = list(computed)
    rows.gradients(scores, retain_graph=True)
    assert computed[len(blocks) :] == blocks[-2::-1]
    rows.gradients(scores)  # nothing is left of the first time
    assert computed[2 * len(blocks) - 1 :] == blocks[::-1]


class Scored(SpanLoss):
    """Gives what it is told to."""

    def __init__(self, *values: Tensor | None) -> None:
        super().__init__()
        self.values: Any = values

    def forward(self, block: SpanBlock) -> SpanScores:
        return SpanScores(*self.values)


def test_a_loss_that_does_not_score_every_span_is_refused() -> None:
    rows, whole = Rows(num_rows=3), torch.ones(3)
    assert rows.evaluate(LogitMemory(1e9), Scored(whole, whole, None)).spans["t"].loss.tolist() == [1, 1, 1]
    for values in ((torch.tensor(1.0), whole), (whole, torch.ones(1)), (torch.ones(3, 2), whole)):
        with pytest.raises(ValueError, match=r"must score every span with one number.*of shape .* for 3 spans"):
            rows.evaluate(LogitMemory(1e9), Scored(*values, None))


def test_an_evaluation_is_freed_with_its_results() -> None:
    rows = Rows()
    scores = rows.evaluate(LogitMemory(ALL_KEPT))
    node: Any = scores.token_nats.grad_fn
    evaluation = weakref.ref(node.evaluation)
    gc.disable()  # no cycle is left to the collector
    try:
        del scores, node
        assert evaluation() is None
    finally:
        gc.enable()


def test_an_input_that_was_changed_in_place_is_refused() -> None:
    rows = Rows()
    scores = rows.evaluate(LogitMemory(NOTHING_KEPT))
    with torch.no_grad():
        rows.student_layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rows.gradients(scores)


@pytest.mark.parametrize("budget", [NOTHING_KEPT, ALL_KEPT])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_changes_the_products_alone(budget: float, dtype: torch.dtype) -> None:
    rows = Rows()
    with torch.no_grad():
        for tensor in (*rows.inputs, rows.teacher_layer.weight, rows.teacher_hidden):
            tensor.copy_(tensor.to(dtype))  # so that nothing but the logits is rounded
    exact = rows.gradients(rows.evaluate(LogitMemory(budget)))
    with torch.autocast("cpu", dtype=dtype):
        scores = rows.evaluate(LogitMemory(budget))
    assert scores.token_nats.dtype == torch.float32
    ours = rows.gradients(scores)
    assert [gradient.dtype for gradient in ours] == [torch.float32] * 3
    for one, other in zip(ours, exact, strict=True):
        assert (one - other).norm() < 20 * torch.finfo(dtype).eps * other.norm()


def test_no_rows_give_a_gradient_of_zeros() -> None:
    rows = Rows(num_rows=0)
    for gradient in rows.gradients(rows.evaluate(LogitMemory(ALL_KEPT))):
        assert gradient.count_nonzero() == 0


def test_rank_term_is_kept_like_any_other() -> None:
    rows, loss = Rows(torch.float64), GOLD()
    loss.bind(STUDENT, TEACHER, None)
    flat, kept = (rows.gradients(rows.evaluate(LogitMemory(b), loss)) for b in (NOTHING_KEPT, ALL_KEPT))
    assert_equal(kept, flat)


@pytest.mark.parametrize("budget", [1e6, 1e8, 5e8, 4e9, 8e10])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("num_rows", [10, 512, 100_000])
@pytest.mark.parametrize("teachers", [(), (151_669,), (151_669, 200_000, 128_256)])
def test_a_plan_spends_no_more_than_its_budget(
    budget: float, kind: str, num_rows: int, teachers: tuple[int, ...]
) -> None:
    plan = MemoryPlan.of(budget, num_rows, 128_256, teachers, torch.float32, kind)
    block = 4 * min(plan.block_rows, num_rows) * (128_256 + sum(teachers))
    kept = 4 * min(plan.kept_rows, num_rows) * 128_256 * (1 + len(teachers))
    assert 1 <= plan.piece_rows <= plan.block_rows
    if plan.block_rows > 1:
        assert block + kept <= budget
    more = MemoryPlan.of(2 * budget, num_rows, 128_256, teachers, torch.float32, kind)
    assert more.block_rows >= plan.block_rows


def test_half_a_gigabyte_keeps_nothing_of_a_long_sequence_and_two_keep_a_short_one() -> None:
    sizes: Any = (128_256, [151_669], torch.float32, "cpu")
    assert MemoryPlan.of(0.5e9, 512, *sizes).kept_rows < 256
    assert MemoryPlan.of(1.8e9, 512, *sizes).kept_rows >= 512


class Unlearnable(SpanLoss):
    """Says the same of every span, whatever the student does."""

    def forward(self, block: SpanBlock) -> SpanScores:
        ones = torch.ones(len(block.student.first), dtype=block.student.log_probs.dtype)
        return SpanScores(ones, ones, None)


@pytest.mark.parametrize("budget", [NOTHING_KEPT, ALL_KEPT])
def test_a_loss_without_a_gradient_leaves_that_of_the_cross_entropy(budget: float) -> None:
    rows = Rows(torch.float64)
    scores = rows.evaluate(LogitMemory(budget), Unlearnable())
    (gradient,) = torch.autograd.grad(scores.token_nats.sum() + scores.spans["t"].loss.sum(), rows.hidden)
    logits = rows.student_layer(rows.hidden)[:, :V_S]
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, rows.labels, reduction="sum"), rows.hidden)
    assert_equal((gradient,), (expected,))


def test_what_is_lent_stays_within_the_budget_where_the_teacher_has_more_tokens() -> None:
    """Blocks hold few student rows then."""
    size, num_spans, per_span = 3000, 60, 4
    span = torch.arange(num_spans)
    ones = torch.ones_like(span)
    spans = SpanBatch(span, ones, per_span * span, per_span * ones, span, span.repeat_interleave(per_span))
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(H, size, bias=False) for _ in range(2)]
    hidden = [torch.randn(n, H, generator=generator) for n in (num_spans, per_span * num_spans)]
    labels = [random_labels(len(rows), size, 1) for rows in hidden]
    student, teacher = (
        HiddenRows(*side, Head(layer, size, None)) for *side, layer in zip(hidden, labels, layers, strict=True)
    )
    for budget in (3e6, 6e6, 2e7):
        memory = LogitMemory(budget)
        task = TeacherTask(teacher, spans, Unlearnable())
        scores = evaluate_rows(student, {"t": task}, RowCuts.from_spans(num_spans, {"t": spans}), memory)
        evaluation: Any = scores.token_nats.grad_fn
        evaluation = evaluation.evaluation
        held = [matrix for kept in evaluation.kept.values() for matrix in (kept.probs, *kept.units.values())]
        held += [matrix for sides in evaluation.still_there.values() for matrix in sides.values()]
        assert 0 < sum(matrix.nbytes for matrix in (*held, *memory._free)) <= budget


def test_a_large_head_is_multiplied_tile_by_tile() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 256, generator=generator, dtype=torch.float64) for n in (3, 2500))
    bias = torch.randn(2500, generator=generator, dtype=torch.float64)
    ours = logits(hidden, weight, bias, out=torch.full((3, 2500), torch.nan, dtype=torch.float64))
    torch.testing.assert_close(ours, hidden @ weight.T + bias, rtol=1e-12, atol=1e-12)


def test_a_gradient_in_half_precision_is_added_tile_by_tile() -> None:
    generator = torch.Generator().manual_seed(0)
    grad, rows = torch.randn(3, 9000, generator=generator), torch.randn(3, 4, generator=generator)
    grad, rows = grad.bfloat16(), rows.bfloat16()
    total = torch.full((9000, 4), torch.nan)
    accumulate_product(total, grad, rows, is_first=True)
    torch.testing.assert_close(total, (grad.T @ rows).float())
    accumulate_product(total, grad, rows, is_first=False)
    torch.testing.assert_close(total, 2 * (grad.T @ rows).float())
