"""The tables of the roofline are those that the code computes, and what they are computed from is right."""

from __future__ import annotations

from collections import Counter

import pytest
import real_tokenizers
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.roofline.__main__ import PAGE, computed, replaced
from benchmarks.roofline.devices import H100, Device
from benchmarks.roofline.heads import Side, Tables, head_work
from benchmarks.roofline.paper import TABLES, VOCABULARIES
from benchmarks.roofline.recorder import Recorder
from benchmarks.roofline.step import part_of
from benchmarks.roofline.tables import rows_of_head_gradient, rows_of_product
from xtoken_pl import CanonicalVocabulary, HybridKL, ProjectionKL, SpanLoss, TokenKL, build_projection
from xtoken_pl.batch import RowCuts, SpanBatch
from xtoken_pl.models import Head
from xtoken_pl.projection import VocabularyPartition
from xtoken_pl.scoring import memory
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.tasks import HiddenRows, TeacherTask


@pytest.mark.slow
def test_tables_of_the_page_are_computed() -> None:
    page = PAGE.read_text()
    found = computed()
    assert all(table in page for table in found.values())
    assert replaced(page, found) == page


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tokenizer"), [("qwen", "qwen3"), ("phi", "o200k")])
def test_tables_of_the_losses_are_those_of_the_real_vocabularies(name: str, tokenizer: str) -> None:
    tokenizers = real_tokenizers.llama3(), getattr(real_tokenizers, tokenizer)()
    student, teacher = (CanonicalVocabulary.from_tokenizer(each) for each in tokenizers)
    projection = build_projection(*tokenizers)
    _, teacher_ids, weights = projection.entries()
    common = len(VocabularyPartition.enlarged(student, teacher, projection))
    assert TABLES[name] == Tables(common, len(weights), len(teacher_ids.unique()))
    assert (VOCABULARIES[""], VOCABULARIES[name]) == (len(student), len(teacher))


def test_recorder_counts_products_passes_and_only_the_selected_rows() -> None:
    """By hand: [4, 8] [8, 16] in bfloat16; an addition in place; two rows of four; a view; memory that is not set."""
    left, right = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((4, 8), (16, 8)))
    total = torch.empty(4, 16, device="meta")
    ids = torch.zeros(2, dtype=torch.long, device="meta")
    with Recorder() as recorder:
        product = left @ right.t()
        total += product
        total.index_select(0, ids)
        total.view(64)
        total.new_zeros(5)
        torch.empty(7, device="meta")
    counted = [(op.name, op.matrix_flop, op.num_bytes) for op in recorder.operations]
    assert counted == [
        ("mm", 2 * 4 * 8 * 16, 2 * (4 * 8 + 8 * 16 + 4 * 16)),
        ("add_", 0, 4 * 64 + 2 * 64 + 4 * 64),
        ("index_select", 0, 8 * 2 + 2 * 4 * 32),
        ("new_zeros", 0, 4 * 5),
    ]


def test_attention_counts_half_of_all_pairs() -> None:
    with FakeTensorMode(), Recorder() as recorder:  # as a plan runs models
        query = torch.empty(2, 3, 64, 16)
        nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert sum(op.matrix_flop for op in recorder.operations) == 2 * 2 * 2 * 3 * 64 * 64 * 16 / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "tables"),
    [(HybridKL(), Tables(common=600)), (ProjectionKL(), Tables(0, 1200, 700)), (TokenKL(), Tables())],
)
def test_products_of_the_heads_are_those_of_the_formula(loss: SpanLoss, tables: Tables) -> None:
    """With n blocks: n student and n teacher products, n - 1 of each again, and two products for gradients."""
    size, teacher_size = 1000, 1000 if isinstance(loss, TokenKL) else 1500
    student, teacher = Side(size, 64), Side(teacher_size, 96)
    budget, rows_in_block = 4_000_000, 2_000_000 // (2 * (size + teacher_size))
    num_rows = 23 * rows_in_block // 5  # five blocks with room, since they end at whole pieces
    work = head_work(num_rows, student, {"t": (teacher, loss, tables)}, budget)
    assert (work.num_blocks, work.sizes.block_rows) == (5, rows_in_block)
    flop: dict[str, float] = {}
    for op, count in work.counts.items():
        flop[part_of(op)] = flop.get(part_of(op), 0.0) + count * op.matrix_flop
    of_student, of_teacher = 2 * num_rows * size * 64, 2 * num_rows * teacher_size * 96
    expected = {
        "student: head product, first pass": of_student,
        "student: head product, again": of_student * 4 / 5,
        "t: head product, first pass": of_teacher,
        "t: head product, again": of_teacher * 4 / 5,
        "student: gradient of the hidden states": of_student,
        "student: gradient of the head": of_student,
    }
    # A piece is up to 6% of a block.
    assert {name: value for name, value in flop.items() if value} == pytest.approx(expected, rel=0.06)


def test_operations_are_run_for_each_piece_and_none_for_each_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real step with ten times the rows in as many pieces of ten times the size runs the same operations."""
    monkeypatch.setattr(memory, "_CPU", memory._GPU)
    size, num_hidden = 64, 8
    counts = []
    for num_rows in (40, 400):
        rows = torch.arange(num_rows)
        of_span, pairs = rows // 2, torch.full((num_rows // 2,), 2)
        spans = SpanBatch(rows[::2], pairs, rows[::2], pairs, of_span, of_span)
        layers = [nn.Linear(num_hidden, size, bias=False).requires_grad_(trains) for trains in (True, False)]
        student, teacher = (
            HiddenRows(torch.randn(num_rows, num_hidden), rows % size, Head(layer, size, None)) for layer in layers
        )
        cuts = RowCuts.from_spans(num_rows, {"t": spans})
        with Recorder() as recorder:
            scores = evaluate_rows(
                student, {"t": TeacherTask(teacher, spans, TokenKL())}, cuts, LogitMemory(820 * num_rows)
            )
            (scores.token_nats.sum() + scores.spans["t"].loss.sum()).backward()
        counts.append(Counter(op.name for op in recorder.operations))
    assert counts[0] == counts[1]
    assert counts[0]["mm"] > 2  # several blocks
    assert counts[0]["_log_softmax"] > counts[0]["mm"]  # of several pieces


def test_rows_from_which_products_are_limited_by_flop() -> None:
    """At that number of rows both times are the same; for the head's gradient with a float32 sum, too."""
    side, device = Side(128_256, 2048), H100
    rows = rows_of_product(side, device)
    flop = 2 * rows * side.hidden_size * side.vocabulary_size
    weight = side.hidden_size * side.vocabulary_size
    num_bytes = 2 * (rows * side.hidden_size + weight + rows * side.vocabulary_size)
    assert flop / device.matrix_flop == pytest.approx(num_bytes / device.memory)
    rows = rows_of_head_gradient(side, device)
    flop = 2 * rows * weight
    num_bytes = 2 * rows * (side.hidden_size + side.vocabulary_size) + 12 * weight
    assert flop / device.matrix_flop == pytest.approx(num_bytes / device.memory)


def test_links_between_machines_limit_once_there_are_several() -> None:
    device = Device("g", matrix_flop=1.0, vector_flop=1.0, memory=1.0, nvlink=100.0, infiniband=1.0)
    assert device.seconds_of_links(800.0, 1) == 0
    assert device.seconds_of_links(800.0, 8) == pytest.approx(800 * 7 / 8 / 100)
    assert device.seconds_of_links(800.0, 16) == pytest.approx(800 / 2 / 8)
