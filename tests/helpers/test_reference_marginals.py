"""The slow references of BPM and ESCD: published values, cases by hand, and probabilities counted in toy languages."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import pytest
import torch
from reference_marginals import Marginals, Place, bpm, divergence_of, escd
from test_reference_byte_prefix import language_of, positions
from torch import Tensor
from toy_languages import EOS, Position

from xtoken_pl.losses import Divergence

DIVERGENCES: tuple[Divergence, ...] = ("forward", "reverse", "jensen_shannon")


def log_rows(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


# The worked example of https://arxiv.org/abs/2609.34738, B.5: the text `Bread`, as Br, ead and as one token.
BREAD = Marginals([b"Br", b"Cat", b"ead", b"eads", b"eak", b""], [b"Bread", b"Breads", b"Break", b"Cat"], {})
BREAD_TEACHER = log_rows([0.4, 0.2, 0.3, 0.1])
BREAD_LABELS = [0, 2], [0]


def bread_student(ead: float = 0.2, eads: float = 0.3, eak: float = 0.1, factor: float = 1.0) -> Tensor:
    """The displayed probabilities, times a factor; the rest is on the special token."""
    first = [0.5 * factor, 0.2 * factor, 0.0, 0.0, 0.0]
    second = [0.0, 0.0, ead * factor, eads * factor, eak * factor]
    return log_rows(*([*row, 1 - sum(row)] for row in (first, second)))


def bread_rows(student: Tensor) -> list[float]:
    """BPM at each of the two rows."""
    places = BREAD.places(BREAD_LABELS, (0, 2, 0, 1))
    return [divergence_of(BREAD.groups(place, BREAD_TEACHER), student[place.row], "forward").item() for place in places]


@pytest.mark.parametrize(("ead", "eads", "inside"), [(0.2, 0.3, 0.6895), (0.1, 0.5, 0.8841)])
def test_published_values_of_bpm(ead: float, eads: float, inside: float) -> None:
    student = bread_student(ead, eads)
    assert bread_rows(student) == pytest.approx([0.4597, inside], abs=5e-5)
    loss = bpm(BREAD, student, BREAD_TEACHER, BREAD_LABELS, [(0, 2, 0, 1)])
    assert loss.tolist() == pytest.approx([0.4597 + inside], abs=1e-4)


@pytest.mark.parametrize(
    ("ead", "eads", "factor", "child"),
    [(0.2, 0.3, 1.0, 1.1067), (0.1, 0.5, 1.0, 0.9973), (0.2, 0.3, 0.5, 1.7305)],
)
def test_published_values_of_escd(ead: float, eads: float, factor: float, child: float) -> None:
    student = bread_student(ead, eads, factor=factor)
    one, alone = (
        escd(BREAD, student, BREAD_TEACHER, BREAD_LABELS, [(0, 2, 0, 1)], [follows, False]).item()
        for follows in (True, False)
    )
    assert alone == pytest.approx(bread_rows(student)[0], abs=1e-12)
    assert one - alone == pytest.approx(child, abs=5e-5)
    if factor == 1 and ead == 0.2:
        assert one == pytest.approx(1.5664, abs=5e-5)


def test_completion_sets_of_the_published_example() -> None:
    assert BREAD.completions == {b"Bread": [0, 1], b"Break": [2]}
    assert BREAD.completion_sets(0) == [([0, 1], [2, 3]), ([2], [4])]
    assert BREAD.completion_sets(1) == BREAD.completion_sets(2) == BREAD.completion_sets(5) == []


# Probabilities that are counted


@pytest.mark.parametrize("pair", ["characters", pytest.param("shorter", marks=pytest.mark.slow)])
def test_masses_are_the_probabilities_of_the_students_next_token(pair: str) -> None:
    """Where no student token is longer than the teacher's, so that no path and no bound is needed."""
    language = language_of(pair)
    special = {language.teacher.ids[EOS]: language.student.ids[EOS]}
    marginals = Marginals(language.student.texts, language.teacher.texts, special)
    kinds: Counter[bool] = Counter()
    for position in positions(language):
        place, rows = place_of(marginals, position)
        assert (place.consumed > 0) == bool(position.there)
        groups, counted = marginals.groups(place, rows), position.counted(knows_past=False, knows_end=True)
        total = sum(float(group.mass) for group in groups)
        for group in groups:
            expected = sum(counted.get(language.student.texts[s], 0.0) for s in group.tokens)
            assert float(group.mass) / total == pytest.approx(expected, abs=1e-10)
        kinds[bool(place.consumed)] += 1
    assert kinds[False] > 500
    assert kinds[True] > 200


def place_of(marginals: Marginals, position: Position) -> tuple[Place, Tensor]:
    language, text = position.language, position.text
    labels = language.student.encode(text), language.teacher.encode(text)
    places = list(marginals.places(labels, (0, len(labels[0]), 0, len(labels[1]))))
    return places[position.index], torch.tensor(language.rows(text), dtype=torch.float64).log()


# By hand

DIGITS = Marginals([b"1", b"12", b"123", b"2", b"3", b"13", b""], [b"1", b"2", b"3", b""], {3: 6})


def test_a_token_over_several_teacher_tokens_gets_the_product_along_the_path() -> None:
    teacher = log_rows([0.5, 0.1, 0.2, 0.2], [0.3, 0.4, 0.2, 0.1], [0.1, 0.1, 0.6, 0.2])
    (place,) = DIGITS.places(([2], [0, 1, 2]), (0, 1, 0, 3))
    masses = {tuple(group.tokens): float(group.mass) for group in DIGITS.groups(place, teacher)}
    product_of_path = 0.5 * 0.4 * 0.6
    expected = {(0,): 0.5 * (1 - 0.4 * 0.6), (2,): product_of_path, (3,): 0.1, (4,): 0.2, (6,): 0.2}
    assert masses == pytest.approx(expected)
    student = log_rows([0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1])
    nats = sum(mass * math.log(mass / student[0, s].exp().item()) for (s,), mass in expected.items())
    assert bpm(DIGITS, student, teacher, ([2], [0, 1, 2]), [(0, 1, 0, 3)]).tolist() == pytest.approx([nats])


def test_a_token_that_ends_inside_a_teacher_token_has_no_path() -> None:
    marginals = Marginals([b"12", b"3", b"1", b""], [b"1", b"23", b"2"], {})
    first, second = marginals.places(([0, 1], [0, 1]), (0, 2, 0, 2))
    teacher = log_rows([0.7, 0.2, 0.1], [0.3, 0.3, 0.4])
    masses = {tuple(sorted(group.tokens)): float(group.mass) for group in marginals.groups(first, teacher)}
    assert masses == pytest.approx({(2,): 0.7, (0, 1, 3): 0.3})
    assert (second.consumed, second.path) == (1, [1])
    (inside,) = marginals.groups(second, teacher)
    assert (inside.tokens, float(inside.mass)) == ([1], pytest.approx(0.3))


def test_inside_a_token_the_path_takes_its_share_of_the_rest() -> None:
    """Student a, bc; teacher ab, ac, c: inside `ab` the student's `bc` is the path b, c."""
    marginals = Marginals([b"a", b"b", b"c", b"bc"], [b"ab", b"ac", b"c"], {})
    first, second = marginals.places(([0, 3], [0, 2]), (0, 2, 0, 2))
    teacher = log_rows([0.5, 0.2, 0.3], [0.2, 0.2, 0.6])
    assert (first.consumed, second.consumed) == (0, 1)
    masses = {tuple(group.tokens): float(group.mass) for group in marginals.groups(second, teacher)}
    assert masses == pytest.approx({(1,): 0.5 * 0.4, (2,): 0.2, (3,): 0.5 * 0.6})


def test_all_other_tokens_are_one_group_against_the_mass_without_a_prefix() -> None:
    marginals = Marginals([b"a", b"b", b"", b"c"], [b"a", b"xa", b"xb", b""], {3: 2})
    (place,) = marginals.places(([0], [0]), (0, 1, 0, 1))
    groups = {tuple(g.tokens): float(g.mass) for g in marginals.groups(place, log_rows([0.4, 0.1, 0.2, 0.3]))}
    assert groups == pytest.approx({(0,): 0.4, (1, 3): 0.3, (2,): 0.3})


def test_mass_without_a_prefix_is_conditioned_away_where_every_student_token_has_a_group() -> None:
    marginals = Marginals([b"a", b"b"], [b"a", b"b", b"x"], {})
    student, teacher = log_rows([0.25, 0.75]), log_rows([0.4, 0.2, 0.4])
    expected = 2 / 3 * math.log(2 / 3 / 0.25) + 1 / 3 * math.log(1 / 3 / 0.75)
    assert bpm(marginals, student, teacher, ([0], [0]), [(0, 1, 0, 1)]).tolist() == pytest.approx([expected])


def test_tokens_of_equal_bytes_are_one_unit() -> None:
    marginals = Marginals([b"a", b"b", b"a"], [b"a", b"b"], {})
    student, teacher = log_rows([0.25, 0.5, 0.25]), log_rows([0.5, 0.5])
    assert bpm(marginals, student, teacher, ([2], [0]), [(0, 1, 0, 1)]).tolist() == pytest.approx([0.0], abs=1e-12)


def test_a_space_that_only_one_side_has_is_before_the_text() -> None:
    marginals = Marginals([b" ", b"a", b" a"], [b"a", b" "], {})
    places = list(marginals.places(([0, 1], [0]), (0, 2, 0, 1)))
    assert [(place.row, place.consumed) for place in places] == [(1, 0)]
    assert list(marginals.places(([2], [0]), (0, 1, 0, 1))) == []
    other_way = Marginals([b"a"], [b" a", b" b"], {})
    assert [place.consumed for place in other_way.places(([0], [0]), (0, 1, 0, 1))] == [1]


def test_tokens_that_are_not_kept_are_compared_as_one() -> None:
    marginals = Marginals([b"a", b"b", b"c"], [b"a", b"b", b"c"], {})
    student, teacher = log_rows([0.2, 0.3, 0.5]), log_rows([0.5, 0.25, 0.25])
    loss = bpm(marginals, student, teacher, ([0], [0]), [(0, 1, 0, 1)], kept=[{0}])
    assert loss.tolist() == pytest.approx([0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)])


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_with_the_same_vocabulary_both_are_the_divergence_of_its_tokens(divergence: Divergence) -> None:
    texts = [b"a", b"b", b"ab", b"abb", b""]
    marginals = Marginals(texts, texts, {4: 4})
    student, teacher = (
        torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)).double().log_softmax(-1) for seed in (1, 2)
    )
    labels, spans = ([2, 0, 4], [2, 0, 4]), [(i, i + 1, i, i + 1) for i in range(3)]
    p, q = student.exp(), teacher.exp()
    forms = {
        "forward": (q * (teacher - student)).sum(-1),
        "reverse": (p * (student - teacher)).sum(-1),
        "jensen_shannon": sum((x * (x / (p + q) * 2).log()).sum(-1) / 2 for x in (p, q)),
    }
    for loss in (
        bpm(marginals, student, teacher, labels, spans, divergence),
        escd(marginals, student, teacher, labels, spans, [True, True, False], divergence),
    ):
        torch.testing.assert_close(loss, forms[divergence], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("divergence", "name"), list(product(DIVERGENCES, ["bpm", "escd"])))
def test_gradients_are_those_of_finite_differences(divergence: Divergence, name: str) -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(3)).double().requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        sides = BREAD, logits.log_softmax(-1), BREAD_TEACHER, BREAD_LABELS, [(0, 2, 0, 1)]
        return bpm(*sides, divergence) if name == "bpm" else escd(*sides, [True, False], divergence)

    assert torch.autograd.gradcheck(loss, logits)


def test_no_spans_give_no_losses() -> None:
    assert bpm(BREAD, bread_student(), BREAD_TEACHER, BREAD_LABELS, []).shape == (0,)
    assert escd(BREAD, bread_student(), BREAD_TEACHER, BREAD_LABELS, [], [True, False]).shape == (0,)
