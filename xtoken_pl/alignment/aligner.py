"""Alignment of two tokenizations of the same text into spans."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from xtoken_pl.alignment.byte_merge import Run, anchors, equal_runs
from xtoken_pl.alignment.dynamic_programme import align_stretch
from xtoken_pl.alignment.spans import Spans
from xtoken_pl.tokenization import CanonicalVocabulary

_FIRST_ROLE_SYMBOL = 256
_ONLY_STUDENT, _ONLY_TEACHER = 510, 511


TokenIds = Sequence[int] | NDArray[np.int64]


class SpanAligner:
    """Aligns two tokenizations of the same text into the smallest spans that cover the same bytes.

    Where both tokenizers reproduce the text, the spans are a linear merge of the token ends. Where a normalizer rewrote
    the text, or a token is unknown, the stretch between the nearest shared token boundaries is aligned with the paper's
    dynamic programme. Special tokens match by role; one that only one side has is a gap.

    Args:
        student_tokenizer: The student's fast tokenizer.
        teacher_tokenizer: The teacher's fast tokenizer.

    Raises:
        InexactTokenizerError: If a tokenizer's tokens are not exact bytes.
    """

    def __init__(self, student_tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase) -> None:
        self.student = CanonicalVocabulary.from_tokenizer(student_tokenizer)
        self.teacher = CanonicalVocabulary.from_tokenizer(teacher_tokenizer)
        self._student_symbols, self._teacher_symbols = _special_symbols(self.student, self.teacher)

    def align(
        self, student_ids: TokenIds, teacher_ids: TokenIds, *, mid_text: bool = False, is_stripped: bool = False
    ) -> Spans:
        """Aligns two token sequences of one text.

        Args:
            student_ids: ``[n]`` token ids, with or without special tokens.
            teacher_ids: ``[m]`` token ids, likewise.
            mid_text: Whether the sequences start inside a longer text: a leading space is then text, and not the space
                that some SentencePiece tokenizers prepend.
            is_stripped: Whether the text has no leading space: one that a side has there (from its chat template, say)
                is then not text.

        Returns:
            The spans. Every token that has bytes is in exactly one, except where the two byte streams differ.

        Raises:
            UserError: If an id is outside its vocabulary.
        """
        # Below, tokens without bytes or role are dropped; the index arrays map back to the given sequences.
        skip_student, skip_teacher = (
            is_stripped or (side.components.dummy_prefix and not mid_text) for side in (self.student, self.teacher)
        )
        student, student_ends, student_index = _stream(self.student, self._student_symbols, student_ids, skip_student)
        teacher, teacher_ends, teacher_index = _stream(self.teacher, self._teacher_symbols, teacher_ids, skip_teacher)
        student_anchor, teacher_anchor, run = anchors(equal_runs(student, teacher), student_ends, teacher_ends)
        spans = np.stack((student_anchor[:-1], student_anchor[1:], teacher_anchor[:-1], teacher_anchor[1:]), axis=1)
        is_rewritten = run[:-1] != run[1:]
        if is_rewritten.any():
            pieces = [spans[~is_rewritten]]
            for start, end, other_start, other_end in spans[is_rewritten]:
                ours = _tokens(student, student_ends, start, end)
                theirs = _tokens(teacher, teacher_ends, other_start, other_end)
                pieces.append(align_stretch(ours, theirs) + (start, start, other_start, other_start))
            spans = np.concatenate(pieces)
            spans = spans[np.argsort(spans[:, 0], kind="stable")]
        return _spans(spans, student_index, teacher_index)

    def align_within(
        self, student_ids: TokenIds, teacher_ids: TokenIds, runs: list[Run], *, skipped: tuple[int, int] = (0, 0)
    ) -> Spans:
        """Aligns two token sequences only where their bytes are known to be equal.

        Args:
            student_ids: ``[n]`` token ids; special tokens have no bytes.
            teacher_ids: ``[m]`` token ids, likewise.
            runs: Stretches of equal bytes, in order: first byte of the student's, first byte of the teacher's, number
                of bytes.
            skipped: Number of bytes at the start of either side that are not text, and from which the bytes of ``runs``
                are counted.

        Returns:
            The smallest spans within the runs. No span reaches beyond its run.

        Raises:
            UserError: If an id is outside its vocabulary.
        """
        student_ends, student_index = _ends(self.student, student_ids, skipped[0])
        teacher_ends, teacher_index = _ends(self.teacher, teacher_ids, skipped[1])
        if not runs:
            return _spans(np.empty((0, 4), dtype=np.int64), student_index, teacher_index)
        student_anchor, teacher_anchor, run = anchors(runs, student_ends, teacher_ends)
        spans = np.stack((student_anchor[:-1], student_anchor[1:], teacher_anchor[:-1], teacher_anchor[1:]), axis=1)
        return _spans(spans[run[:-1] == run[1:]], student_index, teacher_index)


def _ends(vocabulary: CanonicalVocabulary, ids: TokenIds, skipped: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ends of the tokens that have bytes behind the first ``skipped`` ones, counted from there, and their indices."""
    _, lengths = vocabulary.byte_stream(np.asarray(ids, dtype=np.int64))
    ends = np.maximum(np.cumsum(lengths) - skipped, 0)
    index = np.flatnonzero(np.diff(ends, prepend=0))
    return ends[index], index


def _spans(ranges: NDArray[np.int64], student_index: NDArray[np.int64], teacher_index: NDArray[np.int64]) -> Spans:
    """Returns ``[S, 4]`` ranges of the tokens that have bytes as ranges of all tokens, given the former's indices."""
    first, end, other_first, other_end = ranges.T
    student_range = student_index[first], student_index[end - 1] + 1
    return Spans(*student_range, teacher_index[other_first], teacher_index[other_end - 1] + 1)


def _stream(
    vocabulary: CanonicalVocabulary, special_symbols: dict[int, int], ids: TokenIds, skip_space: bool
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.int64]]:
    """Converts a token sequence to symbols: its bytes, and one symbol for each special token.

    Args:
        special_symbols: Symbol of each special id.
        skip_space: Whether a leading space is dropped, because it is not text.

    Returns:
        The symbols, and for the tokens that have any: their ends ``[n]`` and their indices ``[n]`` in ``ids``.
    """
    array = np.asarray(ids, dtype=np.int64)
    stream, lengths = vocabulary.byte_stream(array)
    symbols = stream.astype(np.uint16)
    special = np.flatnonzero(vocabulary.is_special[array])
    if skip_space:
        first = int(np.argmin(vocabulary.is_special[array])) if len(array) else 0
        if len(symbols) and symbols[0] == ord(" ") and lengths[first]:
            symbols, lengths[first] = symbols[1:], lengths[first] - 1
    if len(special):
        starts = np.cumsum(lengths) - lengths
        symbols = np.insert(symbols, starts[special], [special_symbols[int(array[index])] for index in special])
        lengths[special] = 1
    index = np.flatnonzero(lengths)
    return symbols, np.cumsum(lengths[index]), index


def _tokens(symbols: NDArray[np.uint16], ends: NDArray[np.int64], start: int, end: int) -> list[bytes]:
    bounds = [int(ends[start - 1]) if start else 0, *ends[start:end].tolist()]
    return [symbols[low:high].tobytes() for low, high in pairwise(bounds)]


def _special_symbols(
    student: CanonicalVocabulary, teacher: CanonicalVocabulary
) -> tuple[dict[int, int], dict[int, int]]:
    """Assigns a symbol to every special id of both sides: the same symbol to ids that play the same role.

    An id with several roles (an eos that is also pad) joins these roles into one, on both sides.
    """
    group = {role: role for vocabulary in (student, teacher) for role in vocabulary.roles}

    def root(role: str) -> str:
        while group[role] != role:
            role = group[role]
        return role

    for vocabulary in (student, teacher):
        first_role: dict[int, str] = {}
        for role, token_id in vocabulary.roles.items():
            group[root(role)] = root(first_role.setdefault(token_id, role))
    symbol = {role: _FIRST_ROLE_SYMBOL + index for index, role in enumerate(group)}

    def symbols(vocabulary: CanonicalVocabulary, other: int) -> dict[int, int]:
        roles = {token_id: role for role, token_id in vocabulary.roles.items()}
        special: list[int] = np.flatnonzero(vocabulary.is_special).tolist()
        return {token_id: symbol[root(roles[token_id])] if token_id in roles else other for token_id in special}

    return symbols(student, _ONLY_STUDENT), symbols(teacher, _ONLY_TEACHER)
