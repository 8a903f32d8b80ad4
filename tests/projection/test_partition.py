"""The vocabulary partition: against the slow reference, and on real tokenizers."""

from __future__ import annotations

from typing import Any, cast

import pytest
import reference
import torch
from fake_vocabularies import FakeVocabulary
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary, Projection, VocabularyPartition, build_projection

ROLES = ["bos", "eos", "pad"]


@st.composite
def vocabularies(draw: Any) -> FakeVocabulary:
    """Short tokens with repetitions, byte pieces, special tokens with and without a role, holes."""
    tokens = draw(st.lists(st.sampled_from([b"a", b"b", b"ab", b"ba", b"c", None]), min_size=3, max_size=9))
    special = [index for index, token in enumerate(tokens) if token is None]
    roles = dict(zip(draw(st.permutations(ROLES)), draw(st.permutations(special)), strict=False))
    spelled = [index for index, token in enumerate(tokens) if token is not None and len(token) == 1]
    byte_pieces = draw(st.lists(st.sampled_from(spelled), unique=True)) if spelled else []
    without_role = [index for index in special if index not in roles.values()]
    holes = draw(st.lists(st.sampled_from(without_role), unique=True)) if without_role else []
    return FakeVocabulary(tokens, roles=roles, byte_pieces=byte_pieces, holes=holes)


def pairs_of(partition: VocabularyPartition) -> list[tuple[int, int]]:
    return list(zip(partition.student_common.tolist(), partition.teacher_common.tolist(), strict=True))


def slow_pairs(
    student: FakeVocabulary, teacher: FakeVocabulary, rows: dict[int, dict[int, float]] | None = None
) -> list[tuple[int, int]]:
    return reference.common_pairs(
        [token or None for token in student.token_bytes],
        [token or None for token in teacher.token_bytes],
        {ident: role for role, ident in student.roles.items()},
        {ident: role for role, ident in teacher.roles.items()},
        rows,
        frozenset(student.is_byte_piece.nonzero()[0].tolist()),
        frozenset(teacher.is_byte_piece.nonzero()[0].tolist()),
    )


@given(vocabularies(), vocabularies())
def test_strict_partition_agrees_with_the_slow_reference(student: FakeVocabulary, teacher: FakeVocabulary) -> None:
    partition = VocabularyPartition.strict(cast(Any, student), cast(Any, teacher))
    assert pairs_of(partition) == slow_pairs(student, teacher)


@given(vocabularies(), vocabularies(), st.data())
def test_enlarged_partition_agrees_with_the_slow_reference(
    student: FakeVocabulary, teacher: FakeVocabulary, data: st.DataObject
) -> None:
    targets = st.sampled_from(range(len(teacher)))
    rows: dict[int, dict[int, float]] = {}
    exact = wanted_exactly(student, teacher)
    for s in range(len(student)):
        if s in exact:
            rows[s] = {exact[s]: 1.0}
        elif student.token_bytes[s]:
            # Powers of two: equal weights are equal in any precision.
            row = data.draw(st.dictionaries(targets, st.sampled_from([0.25, 0.5, 1.0]), max_size=4))
            total = sum(row.values())
            if row and total in (0.25, 0.5, 1.0, 2.0):
                rows[s] = {t: weight / total for t, weight in row.items()}
    is_exact = torch.tensor([s in exact for s in range(len(student))])
    projection = projection_of(rows, is_exact, len(teacher))
    partition = VocabularyPartition.enlarged(cast(Any, student), cast(Any, teacher), projection)
    assert pairs_of(partition) == slow_pairs(student, teacher, rows)


def wanted_exactly(student: FakeVocabulary, teacher: FakeVocabulary) -> dict[int, int]:
    """Exact teacher token of each student token, found for one student token at a time."""
    wanted = {}
    for s in range(len(student)):
        alone = FakeVocabulary(
            [token if other == s else None for other, token in enumerate(student.token_bytes)],
            roles={role: ident for role, ident in student.roles.items() if ident == s},
        )
        alone.is_byte_piece = student.is_byte_piece
        wanted |= {pair[0]: pair[1] for pair in slow_pairs(alone, teacher)}
    return wanted


@given(vocabularies(), vocabularies())
def test_every_token_that_exists_is_in_the_common_set_or_in_the_rest(
    student: FakeVocabulary, teacher: FakeVocabulary
) -> None:
    partition = VocabularyPartition.strict(cast(Any, student), cast(Any, teacher))
    for vocabulary, common, rest in (
        (student, partition.student_common, partition.student_rest),
        (teacher, partition.teacher_common, partition.teacher_rest),
    ):
        assert sorted(common.tolist() + rest.tolist()) == vocabulary.exists.nonzero()[0].tolist()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({0: {0: 0.75, 1: 0.25}, 1: {0: 1.0}}, [(1, 0)]),  # the highest weight
        ({0: {0: 1.0}, 1: {0: 0.75, 1: 0.25}}, [(0, 0)]),
        ({0: {0: 0.75, 1: 0.25}, 1: {0: 0.75, 1: 0.25}}, [(0, 0)]),  # then the lowest student id
        ({0: {1: 0.5, 0: 0.5}}, [(0, 0)]),  # of a row's best tokens the lowest teacher id
        ({0: {0: 1.0}, 2: {0: 1.0}}, [(2, 0)]),  # an exact one, whatever the ids
    ],
)
def test_teacher_token_keeps_one_of_the_student_tokens_that_want_it(
    rows: dict[int, dict[int, float]], expected: list[tuple[int, int]]
) -> None:
    student, teacher = FakeVocabulary([b"xy", b"xz", b"x"]), FakeVocabulary([b"x", b"y"])
    is_exact = torch.tensor([False, False, 2 in rows])
    partition = VocabularyPartition.enlarged(cast(Any, student), cast(Any, teacher), projection_of(rows, is_exact, 2))
    assert pairs_of(partition) == expected
    assert expected == slow_pairs(student if 2 in rows else FakeVocabulary([b"xy", b"xz", b"w"]), teacher, rows)


def projection_of(rows: dict[int, dict[int, float]], is_exact: torch.Tensor, num_teacher: int) -> Projection:
    indices, weights = torch.zeros(len(is_exact), 4, dtype=torch.long), torch.zeros(len(is_exact), 4)
    for s, row in rows.items():
        for place, (t, weight) in enumerate(row.items()):
            indices[s, place], weights[s, place] = t, weight
    return Projection(indices, weights, is_exact, num_teacher, "s", "t")


def test_rounding_does_not_decide_between_equal_weights() -> None:
    student = FakeVocabulary([b"xy", b"xyxy"])
    teacher = FakeVocabulary([b"x", b"y"])
    weights = torch.tensor([[1 / 1.1, 0.1 / 1.1], [0.9090909, 0.0909091]])
    weights[0, 0] = torch.nextafter(weights[1, 0], torch.tensor(0.0))
    projection = Projection(torch.tensor([[0, 1], [0, 1]]), weights, torch.zeros(2, dtype=torch.bool), 2, "s", "t")
    assert pairs_of(VocabularyPartition.enlarged(cast(Any, student), cast(Any, teacher), projection)) == [(0, 0)]


@pytest.mark.parametrize(
    ("teacher_name", "num_strict", "num_enlarged"), [("qwen3", 109_568, 109_701), ("o200k", 103_246, 103_861)]
)
def test_partition_of_real_vocabularies(
    llama3: PreTrainedTokenizerFast,
    teacher_name: str,
    num_strict: int,
    num_enlarged: int,
    request: pytest.FixtureRequest,
) -> None:
    tokenizer = request.getfixturevalue(teacher_name)
    student, teacher = CanonicalVocabulary.from_tokenizer(llama3), CanonicalVocabulary.from_tokenizer(tokenizer)
    strict = VocabularyPartition.strict(student, teacher)
    enlarged = VocabularyPartition.enlarged(student, teacher, build_projection(llama3, tokenizer))
    assert (len(strict), len(enlarged)) == (num_strict, num_enlarged)
    assert len(strict.student_rest) == len(student) - num_strict
    assert len(strict.teacher_rest) == int(teacher.exists.sum()) - num_strict
    assert set(pairs_of(strict)) <= set(pairs_of(enlarged))
    assert len(strict.teacher_common.unique()) == num_strict
    for s, t in pairs_of(strict)[::997]:
        assert student.token_bytes[s] == teacher.token_bytes[t]
    for sign in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~0123456789":  # published: all of them are common
        assert llama3.convert_tokens_to_ids(sign) in strict.student_common
