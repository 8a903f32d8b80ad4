"""Vocabularies of single letters, a projection between two of them, and the pairs that they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from reference import common_pairs
from torch import Tensor

from xtoken_pl import CanonicalVocabulary, MatchedRowLoss, Projection, TokenKL

V_S, V_T = 13, 11


class FakeVocabulary:
    """As much of a vocabulary as losses and partitions look at. None is a special token; ``holes`` do not exist."""

    name = "fake"

    def __init__(
        self,
        tokens: Sequence[bytes | None],
        *,
        roles: dict[str, int] | None = None,
        byte_pieces: Sequence[int] = (),
        holes: Sequence[int] = (),
        fingerprint: str = "same",
    ) -> None:
        self.token_bytes = [token or b"" for token in tokens]
        self.roles = roles or {}
        self.vocabulary_fingerprint = fingerprint
        self.is_byte_piece = np.isin(np.arange(len(tokens)), byte_pieces)
        self.exists = ~np.isin(np.arange(len(tokens)), holes)

    def __len__(self) -> int:
        return len(self.token_bytes)


def letters(text: str) -> CanonicalVocabulary:
    return cast(CanonicalVocabulary, FakeVocabulary([letter.encode() for letter in text]))


STUDENT, TEACHER = letters("abcdefghijklm"), letters("zydcxbwavuq")  # a, b, c and d are common


def identity_projection(size: int = V_S) -> Projection:
    """W that maps every token to itself."""
    exact = torch.ones(size, dtype=torch.bool)
    return Projection(torch.arange(size)[:, None], torch.ones(size, 1), exact, size, "s", "t")


def empty_projection(num_student: int = V_S, num_teacher: int = V_T) -> Projection:
    """W whose rows are all zero."""
    indices, weights = torch.zeros(num_student, 4, dtype=torch.long), torch.zeros(num_student, 4)
    return Projection(indices, weights, torch.zeros(num_student, dtype=torch.bool), num_teacher, "s", "t")


def slow_pairs(projection: Projection | None) -> list[tuple[int, int]]:
    """The strict C of STUDENT and TEACHER or, given W, the enlarged one."""
    rows = None
    if projection is not None:
        rows = {s: {t: w for t, w in enumerate(row) if w > 0} for s, row in enumerate(dense(projection).tolist())}
    tokens: Any = ([*STUDENT.token_bytes], [*TEACHER.token_bytes])
    return common_pairs(*tokens, {}, {}, rows)


def random_projection(seed: int = 0) -> Projection:
    """W from STUDENT to TEACHER: equal letters are exact, the other rows have one to four tokens.

    The last two rows are zero, and the last two teacher tokens are not reached.
    """
    generator = torch.Generator().manual_seed(seed)
    indices, weights = torch.zeros(V_S, 4, dtype=torch.long), torch.zeros(V_S, 4)
    exact = {s: t for s, t in slow_pairs(None) if t < V_T - 2}
    for row in range(V_S - 2):
        count = row % 4 + 1
        indices[row, :count] = torch.randperm(V_T - 2, generator=generator)[:count]
        weights[row, :count] = torch.rand(count, generator=generator) + 0.1
        if row in exact:
            indices[row], weights[row] = torch.tensor([exact[row], 0, 0, 0]), torch.tensor([1.0, 0, 0, 0])
        weights[row] /= weights[row].sum()
    # Weights in single precision sum to 1 only roughly; powers of two do so exactly.
    weights = (weights * 1024).round() / 1024
    weights[:, 0] += (weights.sum(1) > 0) * (1 - weights.sum(1))
    return Projection(indices, weights, torch.tensor([row in exact for row in range(V_S)]), V_T, "s", "t")


def dense(projection: Projection) -> Tensor:
    matrix = torch.zeros(projection.num_student, projection.num_teacher, dtype=torch.float64)
    for row, (tokens, weights) in enumerate(zip(projection.indices, projection.weights, strict=True)):
        for token, weight in zip(tokens, weights, strict=True):
            matrix[row, token] += float(weight)
    return matrix


def bound(
    loss: MatchedRowLoss,
    projection: Projection | None = None,
    student: CanonicalVocabulary = STUDENT,
    teacher: CanonicalVocabulary = TEACHER,
) -> MatchedRowLoss:
    """The loss, bound to two vocabularies of letters."""
    loss.bind(student, STUDENT if isinstance(loss, TokenKL) else teacher, projection)
    return loss
