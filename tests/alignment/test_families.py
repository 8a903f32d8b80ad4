"""Spans between real tokenizers of many families, over texts of many scripts: no token is misaligned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, combinations, pairwise, permutations

import pytest
from aligned_texts import reference_spans, tokens
from reference import Span
from tokenizer_families import FAMILIES, family_texts
from tokenizer_table import ROWS

from xtoken_pl.alignment import SpanAligner
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.tokenization.normalization import CommonNormalizer, Normalizer

pytestmark = pytest.mark.slow

_SHORT = 16  # tokens


@dataclass
class Family:
    """A tokenizer with the tokens that it gives to texts."""

    name: str
    vocabulary: CanonicalVocabulary
    normalizer: Normalizer = field(init=False)
    ids: dict[str, list[int]] = field(default_factory=dict)
    tokens: dict[str, list[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.normalizer = Normalizer(self.vocabulary)

    def encode(self, texts: list[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self.ids]
        for text, ids in zip(new, self.vocabulary.encode(new), strict=True):
            self.ids[text] = ids
            self.tokens[text] = tokens(self.vocabulary, ids)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> list[Family]:
    found = []
    for name in FAMILIES:
        row = ROWS[name]
        folder = row.write(tmp_path_factory.mktemp("tokenizer"))
        tokenizer = load_tokenizer(str(folder), trust_remote_code=row.has_code)
        found.append(Family(name, CanonicalVocabulary.from_tokenizer(tokenizer)))
    return found


def test_families_have_vocabularies_of_their_own(families: list[Family]) -> None:
    vocabularies = [set(family.vocabulary.token_bytes) for family in families]
    for one, other in combinations(vocabularies, 2):
        assert len(one ^ other) > 0.02 * max(len(one), len(other)), "two rows have nearly the same tokens"


def test_no_token_is_misaligned_between_any_two_families(families: list[Family]) -> None:
    drawn = family_texts()
    num_pairs = num_tokens = 0
    for student, teacher in permutations(families, 2):
        common = CommonNormalizer({"student": student.vocabulary, "teacher": teacher.vocabulary})
        aligner = SpanAligner(student.vocabulary.tokenizer, teacher.vocabulary.tokenizer)
        rewritten = [common(text) for text in drawn] if common_changes(student, teacher) else drawn
        for family in (student, teacher):
            family.encode([*drawn, *rewritten])
        for text in dict.fromkeys([*drawn, *rewritten]):
            found = [tuple(span) for span in aligner.align(student.ids[text], teacher.ids[text]).to_array().tolist()]
            problems = list(wrong(found, student.tokens[text], teacher.tokens[text]))
            assert not problems, (student.name, teacher.name, text, problems)
            num_tokens += len(student.ids[text]) + len(teacher.ids[text])
        for text in dict.fromkeys(rewritten):
            assert b"".join(student.tokens[text]) == b"".join(teacher.tokens[text]) == text.encode()
        num_pairs += 1
    assert num_pairs == len(families) * (len(families) - 1)
    assert num_tokens > 6_000_000


def common_changes(student: Family, teacher: Family) -> bool:
    return not (student.normalizer.changes_nothing and teacher.normalizer.changes_nothing)


def wrong(found: list[Span], student: list[bytes], teacher: list[bytes]) -> Iterator[str]:
    """What is wrong with spans: with those of a text of other bytes on both sides; with all tokens of any other."""
    student_ends, teacher_ends = ([0, *accumulate(map(len, side))] for side in (student, teacher))
    for a, b, c, d in found:
        if not b"".join(student[a:b]) == b"".join(teacher[c:d]) != b"":
            yield f"span {(a, b, c, d)} has other bytes on both sides"
        inner = {end - student_ends[a] for end in student_ends[a + 1 : b]}
        if inner & {end - teacher_ends[c] for end in teacher_ends[c + 1 : d]}:
            yield f"span {(a, b, c, d)} holds a boundary that both sides share"
    for one, other in pairwise(found):
        if one[1] > other[0] or one[3] > other[2]:
            yield f"spans {one} and {other} overlap"
    if b"".join(student) == b"".join(teacher):
        for side, start, end in ((student, 0, 1), (teacher, 2, 3)):
            covered = [index for span in found for index in range(span[start], span[end])]
            if covered != [index for index, token in enumerate(side) if token]:
                yield "a token lies in no span, or in two"
        if {student_ends[span[1]] for span in found} != {*student_ends} & {*teacher_ends} - {0}:
            yield "spans do not end where both sides have a boundary"
        # The reference compares each token with each, and its time grows with the square of the text.
        if len(student) <= _SHORT and len(teacher) <= _SHORT and found != reference_spans(student, teacher):
            yield "spans are not those of the reference"
