"""Units of SimCT: against a search of all tokens, in parts of a batch, and where there are none."""

from __future__ import annotations

import pickle
from typing import Any, cast

import torch
from prefix_pairs import Pair
from simct_pairs import batch_of, bread, every_pair, make
from small_models import packing_tokenizer, splitting_tokenizer
from torch import Tensor

from xtoken_pl import BytePrefixKL, SimCT, VocabularyPartition
from xtoken_pl.losses.joint_units import UnitPlan, UnitPlanner
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.writing import whole_tokens, write_bytes


def planned_units(pair: Pair) -> list[list[tuple[int, int, int, int]]]:
    """The units of each span as lists."""
    table: Any = pair.plan.units
    units: list[list[tuple[int, int, int, int]]] = [[] for _ in range(len(pair.spans))]
    columns = table.student_token, table.student_length, table.teacher_token, table.teacher_length
    for row, place, *unit in zip(table.row.tolist(), table.place.tolist(), *(c.tolist() for c in columns), strict=True):
        found = units[int(pair.spans.student_span[row])]
        assert place == len(found)
        found.append(cast(Any, tuple(unit)))
    return units


def searched_units(single: CanonicalVocabulary, writer: CanonicalVocabulary, common: Tensor, path: list[int]) -> set:
    """Tokens of one side that the other writes along the path up to its last token, of all tokens that there are."""
    found = set()
    for text, token in whole_tokens(single).items():
        if token in common.tolist():
            continue
        (written,) = write_bytes(writer, [text])
        if 2 <= len(written) <= len(path) and written[:-1] == path[: len(written) - 1] and written != path:
            found.add((token, written[-1], len(written)))
    return found


@every_pair
def test_units_are_the_texts_that_one_side_has_whole_and_the_other_writes_along_the_span(name: str) -> None:
    pair = make(name)
    partition = VocabularyPartition.strict(pair.student, pair.teacher)
    spans, labels = pair.spans, (pair.batch.student.labels, pair.batch.teachers["t"].tokens.labels)
    bounds = zip(spans.student_first, spans.student_length, spans.teacher_first, spans.teacher_length, strict=True)
    planned, checked, found = planned_units(pair), 0, 0
    for units, (a, n, c, m) in zip(planned, bounds, strict=True):
        if n == m == 1:
            assert units == []
            continue
        ours, theirs = labels[0][a : a + n].tolist(), labels[1][c : c + m].tolist()
        assert units[0] == (ours[-1], n, theirs[-1], m)
        assert len(set(units)) == len(units)
        found += len(units) - 1
        if checked < 12:
            of_teacher = searched_units(pair.teacher, pair.student, partition.teacher_common, ours)
            of_student = searched_units(pair.student, pair.teacher, partition.student_common, theirs)
            expected = {(last, length, token, 1) for token, last, length in of_teacher}
            expected |= {(token, 1, last, length) for token, last, length in of_student}
            assert set(units[1:]) == expected
            checked += 1
    assert found > 20


@every_pair
def test_a_cut_has_the_units_of_its_spans(name: str) -> None:
    pair = make(name)
    table: Any = pair.plan.units
    k = len(pair.spans) // 2
    start, end = int(pair.spans.student_first[k]), int(pair.spans.student_first[-1])
    cut = table.cut(slice(start, end), slice(int(pair.spans.teacher_first[k]), int(pair.spans.teacher_first[-1])))
    chosen = (table.row >= start) & (table.row < end)
    assert 5 < len(cut.row) < len(table.row)
    assert torch.equal(cut.row + start, table.row[chosen])
    for column in ("place", "student_token", "student_length", "teacher_token", "teacher_length"):
        assert torch.equal(getattr(cut, column), getattr(table, column)[chosen])
    assert cut.count("units") == len(cut.row)
    assert len(cut.cut(slice(3, 3), slice(0, 0)).row) == 0


def test_a_span_whose_sides_differ_by_a_space_has_itself_alone_as_a_unit() -> None:
    loss = SimCT()
    loss.bind(*bread(), None)
    labels = tuple(
        torch.tensor(write_bytes(side, [t])[0]) for side, t in zip(bread(), (b"Bread", b"Breads"), strict=True)
    )
    plan = cast(UnitPlan, loss.planner(*batch_of(cast(Any, labels), [(0, 2, 0, 1)])))
    assert plan.most_units == len(plan.units.row) == 1


def test_masked_text_has_no_units() -> None:
    whole = make("packing from splitting")
    window = len(whole.window["student_ids"])
    pair = Pair.of(
        packing_tokenizer(), splitting_tokenizer(), masked=range(3, window, 5), loss=cast(BytePrefixKL, whole.loss)
    )
    assert 0 < len(cast(UnitPlan, pair.plan).units.row) < 0.9 * len(cast(UnitPlan, whole.plan).units.row)
    assert (pair.spans.student_span[cast(UnitPlan, pair.plan).units.row] < len(pair.spans)).all()
    assert torch.isfinite(pair.loss(pair.block(*pair.rows())).loss).all()


def test_a_planner_crosses_to_the_processes_of_a_data_loader() -> None:
    pair = make("packing from splitting")
    planner = pickle.loads(pickle.dumps(pair.loss.planner))
    plan = planner(pair.batch.student, pair.batch.teachers["t"])
    assert isinstance(planner.__self__, UnitPlanner)
    assert torch.equal(plan.units.teacher_token, cast(UnitPlan, pair.plan).units.teacher_token)
