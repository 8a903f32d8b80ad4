"""The vocabulary partition: pairs of tokens that both sides share, and the remaining tokens of each side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.projection.build import exact_matches
from xtoken_pl.projection.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary

_DIGITS = 6  # decimals of the weights of W that are compared

# C pairs, U_s/U_t remaining tokens (student/teacher), V_s student's vocabulary size


@dataclass(frozen=True)
class VocabularyPartition:
    """The common set C of two vocabularies, one-to-one, and the remaining tokens of each, without unused ids.

    Attributes:
        student_common, teacher_common: ``[C]`` token ids of the pairs, by increasing student id.
        student_rest, teacher_rest: ``[U_s]``, ``[U_t]`` token ids, increasing.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, GOLD's partition and the hybrid one.
    """

    student_common: Tensor
    teacher_common: Tensor
    student_rest: Tensor
    teacher_rest: Tensor

    @classmethod
    def strict(cls, student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> VocabularyPartition:
        """Creates GOLD's partition: C holds the pairs of equal bytes, or of equal special role.

        Of several student tokens with the same bytes, a spelled token is preferred to a ``<0xHH>`` piece, then the
        lowest id.
        """
        wanted = exact_matches(student, teacher)
        return cls._from_candidates(student, teacher, wanted, wanted >= 0, np.ones(len(student)))

    @classmethod
    def enlarged(
        cls, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection
    ) -> VocabularyPartition:
        r"""Creates H-KL's partition: C is enlarged by :math:`(s, \arg\max_t W[s, t])`.

        If several student tokens map to one teacher token, an exact match is preferred, then the highest weight, then a
        spelled token to a ``<0xHH>`` piece, then the lowest id. Of several best t, the lowest id is taken.
        """
        # Equal weights may differ in their last digits, which must not decide.
        weights, indices = projection.weights.numpy().round(_DIGITS), projection.indices.numpy()
        best = weights.max(axis=1)
        wanted = np.where(weights == best[:, None], indices, np.iinfo(np.int64).max).min(axis=1)
        wanted = np.where(best > 0, wanted, -1)
        return cls._from_candidates(student, teacher, wanted, projection.is_exact.numpy(), best)

    @classmethod
    def _from_candidates(
        cls,
        student: CanonicalVocabulary,
        teacher: CanonicalVocabulary,
        wanted: NDArray[np.int64],
        is_exact: NDArray[np.bool_],
        weight: NDArray[np.floating],
    ) -> VocabularyPartition:
        """Pairs each teacher token with the best student token that maps to it.

        Args:
            student, teacher: Vocabularies of the pair.
            wanted: ``[V_s]`` teacher token that each student token maps to, -1 for none.
            is_exact: ``[V_s]`` bool, exact matches.
            weight: ``[V_s]`` weight of each mapping.
        """
        candidates = np.flatnonzero(wanted >= 0)
        order = np.lexsort((candidates, student.is_byte_piece[candidates], -weight[candidates], ~is_exact[candidates]))
        candidates = candidates[order]
        _, first = np.unique(wanted[candidates], return_index=True)
        common = np.sort(candidates[first])
        return cls(
            student_common=torch.from_numpy(common),
            teacher_common=torch.from_numpy(wanted[common]),
            student_rest=_rest(student, common),
            teacher_rest=_rest(teacher, wanted[common]),
        )

    def counterpart(self, num_student: int) -> Tensor:
        """``[V_s]`` teacher token that each student token is paired with, -1 for none."""
        counterpart = torch.full((num_student,), -1, dtype=torch.long)
        counterpart[self.student_common] = self.teacher_common
        return counterpart

    def __len__(self) -> int:
        """Number of pairs, C."""
        return len(self.student_common)

    def __str__(self) -> str:
        return f"|C| = {len(self):,}, |U_S| = {len(self.student_rest):,}, |U_T| = {len(self.teacher_rest):,}"


def _rest(vocabulary: CanonicalVocabulary, common: NDArray[np.int64]) -> Tensor:
    is_rest = vocabulary.exists.copy()
    is_rest[common] = False
    return torch.from_numpy(np.flatnonzero(is_rest))
