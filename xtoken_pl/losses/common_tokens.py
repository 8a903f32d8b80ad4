"""Base of the losses that renormalize both sides within the tokens that they share."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from xtoken_pl.losses.counterparts import LossCounterparts, counterparts_in_pairs
from xtoken_pl.losses.divergence import Divergence, generalized_divergence, smallest_prob
from xtoken_pl.losses.teacher_tokens import TopKLoss
from xtoken_pl.projection import Projection, VocabularyPartition
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_choice
from xtoken_pl.utilities.errors import UserError

# S spans, K candidates, C common pairs, V_s student's vocabulary size

#: Score of what does not exist: its probability is 0, and no gradient scaler makes the score infinite.
_NOTHING = -1e15


def renormalized_divergence(
    student_scores: Tensor, teacher_scores: Tensor, *, divergence: Divergence, top_k: int | None = None
) -> Tensor:
    r"""Divergence between the softmax P of the student's scores of some candidates and Q of the teacher's.

    In the reverse and the Jensen-Shannon form a teacher's probability counts as 2e-31 at least (in single precision).

    Args:
        divergence: ``forward`` is KL(Q || P).
        top_k: Candidates of highest Q that are compared one by one; see
            :func:`xtoken_pl.losses.divergence.keep_top_k`.

    Shape:
        student_scores, teacher_scores: ``[S, K]``, -inf for a candidate that does not exist; returns ``[S]``, nats.
    """
    student, teacher = (scores.clamp_min(_NOTHING).log_softmax(-1) for scores in (student_scores, teacher_scores))
    if divergence != "forward":
        teacher = teacher.clamp_min(math.log(smallest_prob(teacher.dtype)))
    log_c = teacher.new_zeros(len(teacher))
    return generalized_divergence(
        teacher, student, log_c, log_c, divergence=divergence, teacher_mass=1.0, student_mass=1.0, top_k=top_k
    )


class CommonTokensLoss(TopKLoss):
    """Base of the losses over common pairs C: tokens of equal bytes, or of equal special role, each in one pair.

    Args:
        divergence: Divergence of the two sides; ``forward`` is KL(teacher || student).
        teacher_top_k: Candidates compared one by one, the teacher's most probable ones; all others become one bucket.
            None, the default, is exact.

    Raises:
        UserError: If ``teacher_top_k`` is not an integer >= 1; when bound, if no token is common.
    """

    student_common: Tensor  # [C]
    teacher_common: Tensor  # [C]
    counterpart: Tensor  # [V_s], the teacher's token of each pair, -1 for none

    def __init__(self, *, divergence: Divergence, teacher_top_k: int | None) -> None:
        super().__init__(teacher_top_k=teacher_top_k)
        self.divergence: Divergence = check_choice("divergence", divergence, Divergence)

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        """Finds the common pairs.

        Raises:
            UserError: If there are none.
        """
        partition = VocabularyPartition.strict(student, teacher)
        if len(partition) == 0:
            raise UserError(
                f"{type(self).__name__} needs tokens that both vocabularies share, but {student.name!r} and "
                f"{teacher.name!r} have none in common; use BytePrefixKL, ALM or ULD for this teacher"
            )
        self.register_buffer("student_common", partition.student_common, persistent=False)
        self.register_buffer("teacher_common", partition.teacher_common, persistent=False)
        self.register_buffer("counterpart", partition.counterpart(len(student)), persistent=False)

    def counterparts(self, student_ids: Iterable[int]) -> LossCounterparts:
        return counterparts_in_pairs(self.counterpart, student_ids)

    def state_bytes(self, student_size: int, teacher_size: int, *, learned: bool = False) -> int:
        """The pairs and the counterparts: ``8 (V_s + 2 min(V_s, V_t))``."""
        return torch.int64.itemsize * (student_size + 2 * min(student_size, teacher_size))

    def extra_repr(self) -> str:
        kept = "" if self.teacher_top_k is None else f", teacher_top_k={self.teacher_top_k}"
        return f"divergence={self.divergence}{kept}"
