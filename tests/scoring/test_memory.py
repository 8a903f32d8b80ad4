"""What the memory budget decides, and what it does not: the numbers."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from head_rows import ALL_KEPT, NOTHING_KEPT, H, N, Rows, Unlearnable, WatchedMemory, assert_equal
from span_rows import random_labels
from torch import Tensor, nn

import xtoken_pl.scoring.memory as memory_limits
from xtoken_pl.batch import RowCuts, SpanBatch
from xtoken_pl.models import Head
from xtoken_pl.models.head import logits
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.memory import BlockSizes, LogitMemory
from xtoken_pl.scoring.tasks import HiddenRows, TeacherTask


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The memory and the first row of the hidden states that heads are multiplied with, product by product."""
    seen: list[tuple[int, int]] = []

    def watched(hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
        seen.append((hidden.untyped_storage().data_ptr(), hidden.storage_offset() // H))
        return logits(hidden, *arguments, **options)

    monkeypatch.setattr("xtoken_pl.scoring.evaluation.logits", watched)
    return seen


def taken_from(products: list[tuple[int, int]], rows: Rows) -> list[int]:
    """The first rows of the products with the student's head since the last call."""
    student = rows.hidden.untyped_storage().data_ptr()
    firsts = [first for memory, first in products if memory == student]
    products.clear()
    return firsts


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_what_is_kept_gives_the_gradients_of_what_is_computed_again(
    temperature: float, products: list[tuple[int, int]]
) -> None:
    rows = Rows(torch.float64, num_rows=700)
    gradients, num_again = [], []
    for budget in (NOTHING_KEPT, 2e5, ALL_KEPT):
        scores = rows.evaluate(LogitMemory(budget), temperature=temperature)
        num_blocks = len(taken_from(products, rows))
        gradients.append(rows.gradients(scores))
        num_again.append(num_blocks - len(taken_from(products, rows)))
        assert num_blocks > 1
    assert num_again[0] == 1  # the last block's logits are still there
    assert num_again[1] > 1
    assert num_again[2] == num_blocks
    assert_equal(gradients[1], gradients[0])
    assert_equal(gradients[2], gradients[0])


@pytest.mark.parametrize(
    ("budget", "num_matrices"),
    [(NOTHING_KEPT, 2), (ALL_KEPT, 4)],  # logits of both sides; kept: probabilities and the gradient of one loss
)
def test_memory_is_lent_again_and_does_not_grow(budget: float, num_matrices: int) -> None:
    rows, memory = Rows(), WatchedMemory(budget)
    sizes = []
    for _ in range(3):
        scores = rows.evaluate(memory)
        rows.gradients(scores)
        assert not memory.lent
        sizes.append(sorted((matrix.shape, matrix.data_ptr()) for matrix in memory.alive))
    assert sizes[0] == sizes[1] == sizes[2]
    assert len(sizes[0]) == num_matrices


@pytest.mark.parametrize("num_rows", [3, N, 5 * N])
def test_the_logits_of_all_blocks_but_the_last_are_computed_again(
    num_rows: int, products: list[tuple[int, int]]
) -> None:
    rows = Rows(num_rows=num_rows)
    scores = rows.evaluate(LogitMemory(NOTHING_KEPT))
    blocks = taken_from(products, rows)
    rows.gradients(scores, retain_graph=True)
    assert taken_from(products, rows) == blocks[-2::-1]
    rows.gradients(scores)  # nothing is left of the first time
    assert taken_from(products, rows) == blocks[::-1]


def test_what_an_evaluation_holds_is_freed_with_its_results() -> None:
    rows, memory = Rows(), WatchedMemory(ALL_KEPT)
    scores = rows.evaluate(memory)
    assert any(matrix() is not None for matrix in memory.lent.values())
    gc.disable()  # no cycle is left to the collector
    try:
        del scores
        assert all(matrix() is None for matrix in memory.lent.values())
    finally:
        gc.enable()


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


@pytest.mark.parametrize("budget", [1e6, 1e8, 5e8, 4e9, 8e10])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("num_rows", [10, 512, 100_000])
@pytest.mark.parametrize("teachers", [(), (151_669,), (151_669, 200_000, 128_256)])
def test_a_plan_spends_no_more_than_its_budget(
    budget: float, kind: str, num_rows: int, teachers: tuple[int, ...]
) -> None:
    plan = BlockSizes.from_budget(budget, num_rows, 128_256, teachers, torch.float32, kind)
    block = 4 * min(plan.block_rows, num_rows) * (128_256 + sum(teachers))
    kept = 4 * min(plan.kept_rows, num_rows) * 128_256 * (1 + len(teachers))
    assert 1 <= plan.piece_rows <= plan.block_rows
    if plan.block_rows > 1:
        assert block + kept <= budget
    more = BlockSizes.from_budget(2 * budget, num_rows, 128_256, teachers, torch.float32, kind)
    assert more.block_rows >= plan.block_rows


_BEST_RUN: Any = (32_760, 128_256, [200_019, 128_256], torch.float32)


@pytest.mark.parametrize("budget", [None, 4e9, 2e10])
def test_blocks_and_pieces_are_large_on_a_gpu(budget: float | None) -> None:
    """Products of heads are limited by FLOP from 350 rows on; an H100 reads and writes 60 MB in 36 microseconds."""
    budget = LogitMemory(budget).budget_on("cuda")
    sizes = BlockSizes.from_budget(budget, *_BEST_RUN, "cuda", logits_dtype=torch.bfloat16)
    piece = 4 * sizes.piece_rows * 200_019
    assert 350 <= sizes.block_rows <= 4096
    assert 6e7 <= piece < 2**27
    assert 2 * sizes.block_rows * sum((128_256, 200_019, 128_256)) + 16 * piece <= budget


def test_defaults_depend_on_the_type_of_the_device_alone() -> None:
    memory = LogitMemory(None)
    assert (memory.budget_on("cpu"), memory.budget_on("cuda"), memory.budget_on("mps")) == (0.5e9, 2e9, 2e9)
    assert LogitMemory(3e9).budget_on("cpu") == LogitMemory(3e9).budget_on("cuda") == 3e9


def test_more_rows_of_logits_in_half_precision_are_a_block() -> None:
    whole, half = (
        BlockSizes.from_budget(1e9, *_BEST_RUN, "cuda", logits_dtype=dtype) for dtype in (None, torch.bfloat16)
    )
    assert half.block_rows in (2 * whole.block_rows, 2 * whole.block_rows + 1)
    assert half.piece_rows == whole.piece_rows


@pytest.mark.parametrize("budget", [3 * NOTHING_KEPT, ALL_KEPT])
def test_sizes_of_a_gpu_give_the_same_numbers(budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(torch.float64, num_rows=70)
    results = []
    for limits in (memory_limits._CPU, memory_limits._GPU):
        monkeypatch.setattr(memory_limits, "_CPU", limits)
        scores = rows.evaluate(LogitMemory(budget))
        results.append((scores.token_nats, scores.spans["t"].loss, *rows.gradients(scores)))
    assert_equal(results[1], results[0])


def test_half_a_gigabyte_keeps_nothing_of_a_long_sequence_and_two_keep_a_short_one() -> None:
    sizes: Any = (128_256, [151_669], torch.float32, "cpu")
    assert BlockSizes.from_budget(0.5e9, 512, *sizes).kept_rows < 256
    assert BlockSizes.from_budget(1.8e9, 512, *sizes).kept_rows >= 512


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
        memory = WatchedMemory(budget)
        task = TeacherTask(teacher, spans, Unlearnable())
        scores = evaluate_rows(student, {"t": task}, RowCuts.from_spans(num_spans, {"t": spans}), memory)
        assert scores.token_nats.requires_grad  # what its gradient needs is held
        assert 0 < sum(matrix.nbytes for matrix in memory.alive) <= budget
