"""What the slow references need to know of two vocabularies, found by plain loops and the tokenizers themselves."""

from __future__ import annotations

from functools import cache
from typing import Any

from reference import common_pairs
from reference_marginals import Marginals
from reference_units import Units

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.tokenization.writing import write_bytes


@cache
def marginals_between(student_tokenizer: Any, teacher_tokenizer: Any) -> Marginals:
    student, teacher = (CanonicalVocabulary.from_tokenizer(each) for each in (student_tokenizer, teacher_tokenizer))
    special: dict[int, int] = {}
    for role, t in teacher.roles.items():
        if role in student.roles:
            special[t] = min(special.get(t, len(student)), student.roles[role])
    unused = [[i for i, exists in enumerate(side.exists) if not exists] for side in (student, teacher)]
    return Marginals(student.token_bytes, teacher.token_bytes, special, *unused)


@cache
def units_between(student_tokenizer: Any, teacher_tokenizer: Any) -> Units:
    student, teacher = (CanonicalVocabulary.from_tokenizer(each) for each in (student_tokenizer, teacher_tokenizer))
    tokens: Any = [[text or None for text in side.token_bytes] for side in (student, teacher)]
    roles: Any = [{i: role for role, i in side.roles.items()} for side in (student, teacher)]
    pieces: Any = [{i for i, is_piece in enumerate(side.is_byte_piece) if is_piece} for side in (student, teacher)]
    return Units(
        common_pairs(*tokens, *roles, None, *pieces),
        spelling(teacher, student),
        spelling(student, teacher),
        [len(text) or 1 for text in student.token_bytes],
        [len(text) or 1 for text in teacher.token_bytes],
        preferred(student),
        preferred(teacher),
    )


def preferred(vocabulary: CanonicalVocabulary) -> set[int]:
    """The token of each byte string: no byte piece if it can be helped, then the lowest id."""
    by_bytes: dict[bytes, tuple[bool, int]] = {}
    for i, text in enumerate(vocabulary.token_bytes):
        if text:
            by_bytes[text] = min(by_bytes.get(text, (True, len(vocabulary))), (bool(vocabulary.is_byte_piece[i]), i))
    return {i for _, i in by_bytes.values()}


def spelling(of: CanonicalVocabulary, by: CanonicalVocabulary) -> dict[int, tuple[int, ...]]:
    """How ``by`` writes each token of ``of`` in the middle of a text: a token of equal bytes as that token."""
    whole = {by.token_bytes[i]: i for i in preferred(by)}
    spelled: dict[int, tuple[int, ...]] = {}
    for token, text in enumerate(of.token_bytes):
        if text:
            written = (whole[text],) if text in whole else tuple(write_bytes(by, [text])[0])
            if written:
                spelled[token] = written
    return spelled
