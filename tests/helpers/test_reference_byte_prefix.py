"""The slow reference of the byte-prefix KL, against probabilities counted over every text of a toy language.

A group's mass is right if it is the probability that the student's next token is in the group.
"""

import math
import random
from collections import Counter
from functools import lru_cache

import pytest
from group_division import Key, ListedGroups
from reference_byte_prefix import BytePrefixReference
from toy_languages import Language, Position, Toy, strings


def positions(language: Language) -> list[Position]:
    return [
        Position(language, text, index)
        for text in language.probabilities
        for index in range(len(language.student.cut(text)) + 1)
    ]


def groups_of(position: Position) -> ListedGroups:
    language, text = position.language, position.text
    return language.reference.groups(
        position.index, language.student.encode(text), language.teacher.encode(text), language.rows(text)
    )


def kind(groups: ListedGroups) -> str:
    place = "inside" if any(key[0] in ("token", "others") for key in groups) else "boundary"
    return f"{place}, refined" if any(key[0] in ("end", "child") for key in groups) else place


def difference(position: Position, groups: ListedGroups) -> float:
    """Largest difference of a group's mass and its counted probability."""
    counted, texts = position.counted(), position.language.student.texts
    return max(abs(mass - sum(counted.get(texts[s], 0.0) for s in tokens)) for mass, tokens in groups.values())


PAIRS = {
    "digits": (strings("ab", 1, 2, 3), strings("ab", 1), 7),
    "three digits": (strings("abc", 1, 2, 3), strings("abc", 1), 5),
    "digits from packed digits": (strings("ab", 1), strings("ab", 1, 2, 3), 7),
    "same": ([b"a", b"b", b"ab", b"aba", b"bbab"], [b"a", b"b", b"ab", b"aba", b"bbab"], 6),
    "same, with gaps": ([b"a", b"b", b"abab", b"aba", b"bbab"], [b"a", b"b", b"abab", b"aba", b"bbab"], 6),
    "characters": (strings("ab", 1), [b"a", b"b", b"ab", b"bab", b"aab"], 7),
    "shorter": ([b"a", b"b", b"ab"], [b"a", b"b", b"ab", b"bab", b"aab", b"abb"], 7),
    "mixed": ([b"a", b"b", b"ab", b"ba", b"bba", b"abab"], [b"a", b"b", b"aa", b"bab", b"bb"], 7),
    "mixed, long": ([b"a", b"b", b"aa", b"aba", b"bb"], [b"a", b"b", b"ba", b"ab", b"bbb", b"abaa"], 7),
    "mixed, three": (
        [b"a", b"b", b"c", b"aa", b"ab", b"abc", b"ca"],
        [b"a", b"b", b"c", b"bc", b"cab", b"ac"],
        5,
    ),
}


@lru_cache(None)
def language_of(pair: str) -> Language:
    student, teacher, longest = PAIRS[pair]
    return Language(Toy(student, seed=1), Toy(teacher, seed=2), longest)


@pytest.mark.parametrize(
    ("pair", "everywhere", "least"),
    [
        ("digits", True, {"boundary": 200, "boundary, refined": 500}),
        pytest.param("three digits", True, {"boundary": 300, "boundary, refined": 500}, marks=pytest.mark.slow),
        ("same", True, {"boundary": 500}),
        ("same, with gaps", True, {"boundary": 500}),
        pytest.param("digits from packed digits", True, {"boundary": 200, "inside": 200}, marks=pytest.mark.slow),
        pytest.param("characters", False, {"boundary": 1000, "inside": 100}, marks=pytest.mark.slow),
        ("shorter", False, {"boundary": 1000, "inside": 100}),
        ("mixed", False, {"boundary": 150, "boundary, refined": 40, "inside, refined": 60}),
        pytest.param(
            "mixed, long",
            False,
            {"boundary": 100, "boundary, refined": 30, "inside, refined": 40},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "mixed, three",
            False,
            {"boundary": 400, "boundary, refined": 60, "inside": 15, "inside, refined": 80},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_masses_are_the_probabilities_of_the_students_next_token(
    pair: str, everywhere: bool, least: dict[str, int]
) -> None:
    language = language_of(pair)
    assert math.isclose(sum(language.probabilities.values()), 1.0)
    checked: Counter[str] = Counter()
    for position in positions(language):
        groups = groups_of(position)
        assert kind(groups).startswith("inside") == bool(position.there)
        assert max(Counter(s for _, tokens in groups.values() for s in tokens).values()) == 1, "groups are disjoint"
        approximations = position.approximations()
        assert not (everywhere and approximations)
        if not approximations:
            assert difference(position, groups) < 1e-10
            checked[kind(groups)] += 1
    assert set(checked) == set(least)
    assert all(checked[which] >= number for which, number in least.items()), checked


@pytest.mark.parametrize(
    ("pair", "reason", "least"),
    [
        ("mixed", "lead", 100),
        ("mixed", "ending", 100),
        pytest.param("mixed, long", "past", 20, marks=pytest.mark.slow),
        pytest.param("mixed, three", "ending", 100, marks=pytest.mark.slow),
    ],
)
def test_each_approximation_is_one(pair: str, reason: str, least: int) -> None:
    alone = [position for position in positions(language_of(pair)) if position.approximations() == {reason}]
    wrong = [position for position in alone if difference(position, groups_of(position)) > 1e-6]
    assert len(wrong) >= max(least, 0.5 * len(alone))


class MergingToy(Toy):
    """A teacher that merges bc before ab, so that it writes abc as a|bc, and ab as one token."""

    def _cut(self, text: bytes) -> tuple[bytes, ...]:
        tokens = [bytes([letter]) for letter in text]
        for left, right in ((b"b", b"c"), (b"a", b"b")):
            place = 0
            while place + 1 < len(tokens):
                if (tokens[place], tokens[place + 1]) == (left, right):
                    tokens[place : place + 2] = [left + right]
                place += 1
        return tuple(tokens)


def test_merges_across_the_end_of_a_student_token_are_an_approximation() -> None:
    """Text may begin with ab although the teacher does not begin it with its token ab."""
    student, teacher = Toy([b"a", b"b", b"c", b"ab"], seed=1), MergingToy([b"a", b"b", b"c", b"ab", b"bc"], seed=2)
    language = Language(student, teacher, longest=4)
    assert teacher.cut(b"abc") == (b"a", b"bc")
    assert teacher.cut(b"abb") == (b"ab", b"b")
    start = Position(language, b"cab", 0)
    assert difference(start, groups_of(start)) > 0.01
    # What the teacher's token ab says is right: only a is given too much, and ab too little.
    counted, groups = start.counted(), groups_of(start)
    (mass_of_ab,) = [mass for mass, tokens in groups.values() if tokens == [student.ids[b"ab"]]]
    (mass_of_c,) = [mass for mass, tokens in groups.values() if tokens == [student.ids[b"c"]]]
    assert mass_of_ab < counted[b"ab"] - 0.01
    assert math.isclose(mass_of_c, counted[b"c"], abs_tol=1e-10)


# By hand


@pytest.fixture
def digits() -> BytePrefixReference:
    """Student a 0, ab 1, abc 2, b 3, c 4, ac 5, eos 6; teacher a 0, b 1, c 2, eos 3."""
    return BytePrefixReference(
        [b"a", b"ab", b"abc", b"b", b"c", b"ac", b""],
        [b"a", b"b", b"c", b""],
        lambda text: tuple(b"abc".index(letter) for letter in text),
        {6: 3},
    )


DIGIT_ROWS = [[0.5, 0.2, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1], [0.2, 0.1, 0.4, 0.3], [0.0, 0.0, 0.0, 1.0]]
DIGIT_LEADS: ListedGroups = {
    ("lead", 1): (0.2, [3]),
    ("lead", 2): (0.2, [4]),
    ("lead", 3): (0.1, [6]),
}


@pytest.mark.parametrize(
    ("teacher_ids", "row_exists", "below"),
    [
        (
            [0, 1, 2, 3],
            None,
            {
                ("end", 1): (0.5 * 0.2, [0]),
                ("child", 1, 2): (0.5 * 0.2, [5]),
                ("end", 2): (0.5 * 0.6 * 0.6, [1]),
                ("child", 2, 2): (0.5 * 0.6 * 0.4, [2]),
            },
        ),
        # The second row is the last: ab and abc are one group.
        (
            [0, 1],
            None,
            {("end", 1): (0.1, [0]), ("child", 1, 2): (0.1, [5]), ("child", 1, 1): (0.3, [1, 2])},
        ),
        (
            [0, 1, 2, 3],
            [True, True, False, True],
            {("end", 1): (0.1, [0]), ("child", 1, 2): (0.1, [5]), ("child", 1, 1): (0.3, [1, 2])},
        ),
        ([0, 1, 2, 3], [True, False, True, True], {("lead", 0): (0.5, [0, 1, 2, 5])}),
        ([0], None, {("lead", 0): (0.5, [0, 1, 2, 5])}),
    ],
)
def test_groups_at_a_boundary(
    digits: BytePrefixReference,
    teacher_ids: list[int],
    row_exists: list[bool] | None,
    below: ListedGroups,
) -> None:
    groups = digits.groups(0, [2, 6], teacher_ids, DIGIT_ROWS, row_exists)
    expected = DIGIT_LEADS | below
    assert {key: tokens for key, (_, tokens) in groups.items()} == {
        key: tokens for key, (_, tokens) in expected.items()
    }
    assert {key: mass for key, (mass, _) in groups.items()} == pytest.approx({k: m for k, (m, _) in expected.items()})


def test_loss_is_the_kl_over_the_groups(digits: BytePrefixReference) -> None:
    student_probs = [0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]
    pairs = [(0.2, 0.1), (0.2, 0.1), (0.1, 0.1), (0.1, 0.1), (0.1, 0.1), (0.18, 0.2), (0.12, 0.3)]
    expected = sum(q * math.log(q / p) for q, p in pairs)
    assert digits.loss(0, [2, 6], [0, 1, 2, 3], DIGIT_ROWS, student_probs) == pytest.approx(expected)
    assert digits.loss(1, [2, 6], [0, 1, 2, 3], DIGIT_ROWS, student_probs) == pytest.approx(math.log(1 / 0.1))
    assert digits.loss(0, [2, 6], [0], DIGIT_ROWS, [0.0, 0.2, 0.3, 0.0, 0.2, 0.2, 0.1]) == math.inf


def test_groups_inside_a_teacher_token() -> None:
    # Text abc: the student's a|bc, the teacher's ab|c, which may also have ended with a.
    teacher = [b"a", b"b", b"c", b"ab", b"abb", b"ac", b""]
    reference = BytePrefixReference(
        [b"a", b"b", b"bc", b"c", b""], teacher, lambda text: tuple(b"abc".index(letter) for letter in text), {4: 6}
    )
    rows = [[0.1, 0.1, 0.1, 0.3, 0.2, 0.1, 0.1], [0.1, 0.1, 0.5, 0.1, 0.1, 0.0, 0.1], [0.0] * 6 + [1.0]]
    groups = reference.groups(1, [0, 2, 4], [3, 2, 6], rows)
    # abb leaves bb, which begins with the student's b.
    expected: dict[Key, float] = {
        ("token", 3): 0.1 / 0.7,
        ("end", 1): (0.2 + 0.3 * 0.5) / 0.7,
        ("child", 1, 2): 0.3 * 0.5 / 0.7,
        ("others", 0): 0.1 / 0.7,
    }
    assert {key: mass for key, (mass, _) in groups.items()} == pytest.approx(expected)
    assert groups["end", 1][1] == [1]
    assert groups["child", 1, 2][1] == [2]
    assert groups["others", 0][1] == [0, 4]


def test_a_token_that_has_ended_might_have_gone_on() -> None:
    # Text ac: a|c for both. The teacher's ab and ac, of which the student would write ac as one token.
    teacher = [b"a", b"b", b"c", b"ab", b"ac", b""]
    reference = BytePrefixReference(
        [b"a", b"b", b"c", b"ac", b""], teacher, lambda text: tuple(b"abc".index(letter) for letter in text), {4: 5}
    )
    rows = [[0.2, 0.1, 0.1, 0.3, 0.2, 0.1], [0.0, 0.1, 0.7, 0.0, 0.0, 0.2], [0.0] * 5 + [1.0]]
    found = {tuple(tokens): mass for mass, tokens in reference.groups(1, [0, 2, 4], [0, 2, 5], rows).values() if mass}
    assert found == pytest.approx({(1,): (0.2 * 0.1 + 0.3) / 0.5, (2,): 0.2 * 0.7 / 0.5, (4,): 0.2 * 0.2 / 0.5})
    # Without its row nothing is known of what might have gone on.
    exists = [False, True, True]
    found = {tuple(tokens): mass for mass, tokens in reference.groups(1, [0, 2, 4], [0, 2, 5], rows, exists).values()}
    assert found[2,] == pytest.approx(0.7)


def test_mass_that_no_group_can_take_is_dropped() -> None:
    # The student's two a, and x, which the teacher cannot write although it has xx.
    reference = BytePrefixReference(
        [b"a", b"a", b"x", b""], [b"a", b"xx", b"", b""], lambda text: (0,) * (text == b"a"), {3: 2}
    )
    groups = reference.groups(0, [1, 3], [0, 2], [[0.4, 0.3, 0.2, 0.1], [0.0, 0.0, 1.0, 0.0]])
    assert reference.phi(b"ab") == 0
    assert groups == {("lead", 0): (pytest.approx(2 / 3), [0, 1]), ("lead", 2): (pytest.approx(1 / 3), [3])}
    assert reference.loss(0, [1, 3], [0, 2], [[0.0, 0.9, 0.0, 0.1], [0.0] * 4], [0.25] * 4) == 0.0


def test_loss_between_equal_vocabularies_is_kl() -> None:
    language = language_of("same")
    text = b"abbbab"
    student_probs = [random.Random(s).random() for s in range(len(language.student.texts))]
    for index, row in enumerate(language.rows(text)):
        ids, teacher_ids = language.student.encode(text), language.teacher.encode(text)
        expected = sum(
            p * math.log(p / student_probs[language.student.ids[v]])
            for v, p in zip(language.teacher.texts, row, strict=True)
            if p > 0
        )
        loss = language.reference.loss(index, ids, teacher_ids, language.rows(text), student_probs)
        assert loss == pytest.approx(expected)
