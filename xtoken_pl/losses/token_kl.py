"""KL between a student and a teacher that share their tokenizer, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from xtoken_pl.losses.base import SpanScores
from xtoken_pl.losses.divergence import Divergence, finite, generalized_divergence, keep_top_k
from xtoken_pl.losses.matched_rows import MatchedRowLoss, Merge
from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_choice
from xtoken_pl.utilities.errors import UserError


def token_kl(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    student_log_c: Tensor,
    teacher_log_c: Tensor,
    *,
    divergence: Divergence = "forward",
    top_k: int | None = None,
) -> Tensor:
    r"""KL of a token (or, generalized, of a span) between two models with the same vocabulary.

    .. math:: D(\hat p_T \| \hat p_S), \quad \hat p = c\,p

    which is :math:`\sum_v p_T(v) \log(p_T(v) / p_S(v))` for spans of one token (c = 1). For the reverse and the
    Jensen-Shannon form see :func:`xtoken_pl.losses.divergence.generalized_divergence`; for ``top_k``
    :func:`xtoken_pl.losses.divergence.keep_top_k`.

    Shape:
        student_log_probs, teacher_log_probs: ``[S, V]``; student_log_c, teacher_log_c: ``[S]``; returns ``[S]``, nats.
    """
    teacher, student = keep_top_k(finite(teacher_log_probs), finite(student_log_probs), top_k)
    return generalized_divergence(teacher, student, teacher_log_c, student_log_c, divergence=divergence)


class TokenKL(MatchedRowLoss):
    """KL(teacher || student) for the same tokenizer; see :func:`token_kl`.

    Args:
        merge: How a span of several tokens becomes one row; without effect where both sides cut the text alike.
        divergence: Forward is KL(teacher || student).
        teacher_top_k: Teacher tokens kept in each row; see :class:`xtoken_pl.losses.MatchedRowLoss`.
    """

    def __init__(
        self, *, merge: Merge = "chain_rule", divergence: Divergence = "forward", teacher_top_k: int | None = None
    ) -> None:
        super().__init__(merge=merge, teacher_top_k=teacher_top_k)
        self.divergence: Divergence = check_choice("divergence", divergence, Divergence)

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        """Checks that both sides share their token ids.

        Raises:
            UserError: If the vocabularies differ.
        """
        if student.vocabulary_fingerprint != teacher.vocabulary_fingerprint:
            raise UserError(
                f"TokenKL needs the same vocabulary on both sides, but {student.name!r} has {len(student)} tokens "
                f"({student.vocabulary_fingerprint[:8]}) and {teacher.name!r} {len(teacher)} "
                f"({teacher.vocabulary_fingerprint[:8]}); use ProjectionKL for this teacher"
            )

    def state_bytes(self, student_size: int, teacher_size: int, *, learned: bool = False) -> int:
        """Nothing: 0."""
        return 0

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, divergence={self.divergence}"

    def score_rows(
        self, student_log_probs: Tensor, teacher_log_probs: Tensor, student_log_c: Tensor, teacher_log_c: Tensor
    ) -> SpanScores:
        loss = token_kl(
            student_log_probs,
            teacher_log_probs,
            student_log_c,
            teacher_log_c,
            divergence=self.divergence,
            top_k=self.teacher_top_k,
        )
        return SpanScores(loss, torch.zeros_like(teacher_log_c), self.agreement(student_log_probs, teacher_log_probs))
