"""KL between a student and a teacher that share their tokenizer, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from xtoken_pl.losses.base import SpanScores
from xtoken_pl.losses.divergence import Divergence, finite, generalized_divergence
from xtoken_pl.losses.matched_rows import DivergenceLoss
from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary
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
    teacher, student = finite(teacher_log_probs), finite(student_log_probs)
    return generalized_divergence(teacher, student, teacher_log_c, student_log_c, divergence=divergence, top_k=top_k)


class TokenKL(DivergenceLoss):
    """KL(teacher || student) for the same tokenizer; see :func:`token_kl`.

    Args:
        merge: How a span of several tokens becomes one row; without effect where both sides cut the text alike.
        divergence: Divergence of the two sides; ``forward`` is KL(teacher || student).
        teacher_top_k: Teacher tokens kept in each row; see :class:`xtoken_pl.losses.MatchedRowLoss`.
    """

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
        """Returns 0: the loss holds nothing."""
        return 0

    def score_rows(
        self, student_log_probs: Tensor, teacher_log_probs: Tensor, student_log_c: Tensor, teacher_log_c: Tensor
    ) -> SpanScores:
        loss = token_kl(student_log_probs, teacher_log_probs, student_log_c, teacher_log_c, **self.options)
        return SpanScores(loss, torch.zeros_like(teacher_log_c), self.agreement(student_log_probs, teacher_log_probs))
