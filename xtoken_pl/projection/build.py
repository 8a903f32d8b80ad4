"""Builds W from two tokenizers: exact matches first, then student tokens that the teacher splits into several."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from xtoken_pl.projection.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.writing import whole_tokens, write_bytes
from xtoken_pl.utilities.errors import UserError


@dataclass(frozen=True)
class ProjectionParameters:
    r"""Parameters of pass 2, which spreads a student token over the teacher tokens that write it.

    Attributes:
        beta: Weight of the first teacher token before normalization, > 0. As rows are normalized, it has no effect.
        gamma: Factor from one teacher token to the next, in (0, 1].
        max_tokens: Largest number of teacher tokens, >= 1; a student token that needs more has a zero row.
        top: Largest number of entries in a row, >= 1.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699: (0.9, 0.1), 4, 4.
    """

    beta: float = 0.9
    gamma: float = 0.1
    max_tokens: int = 4
    top: int = 4

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UserError(f"beta must be > 0, got {self.beta}")
        if not 0 < self.gamma <= 1:
            raise UserError(f"gamma must be in (0, 1], got {self.gamma}")
        if self.max_tokens < 1 or self.top < 1:
            raise UserError(f"max_tokens and top must be >= 1, got {self.max_tokens} and {self.top}")


def build_projection(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    parameters: ProjectionParameters | None = None,
) -> Projection:
    r"""Builds the projection matrix W [V_s, V_t].

    Pass 1: W[s, t] = 1 where the canonical bytes, or the special roles, of s and t are equal. If several teacher tokens
    have these bytes, a spelled token is preferred to a ``<0xHH>`` piece, then the lowest id.
    Pass 2: every other student token is encoded by the teacher as :math:`\tau_0 .. \tau_{l-1}`. For
    :math:`l \le 4`, :math:`W[s, \tau_i] \propto \beta \gamma^i`, normalized over the row; the weights of equal tokens
    are added. Rows with larger l are zero.

    Raises:
        InexactTokenizerError: If a tokenizer's tokens are not exact bytes.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, projection matrix.
    """
    parameters = parameters or ProjectionParameters()
    student = CanonicalVocabulary.from_tokenizer(student_tokenizer)
    teacher = CanonicalVocabulary.from_tokenizer(teacher_tokenizer)
    indices = np.zeros((len(student), parameters.top), dtype=np.int64)
    weights = np.zeros((len(student), parameters.top), dtype=np.float64)

    exact = exact_matches(student, teacher)
    is_exact = exact >= 0
    indices[is_exact, 0] = exact[is_exact]
    weights[is_exact, 0] = 1.0

    others = [s for s in np.flatnonzero(~is_exact).tolist() if student.token_bytes[s]]
    decay = parameters.beta * parameters.gamma ** np.arange(parameters.max_tokens)
    rewritten = write_bytes(teacher, [student.token_bytes[s] for s in others])
    for s, tokens in zip(others, rewritten, strict=True):
        if 1 <= len(tokens) <= parameters.max_tokens:
            row: dict[int, float] = {}
            for token, weight in zip(tokens, decay.tolist(), strict=False):
                row[token] = row.get(token, 0.0) + weight
            kept = sorted(row.items(), key=lambda item: (-item[1], item[0]))[: parameters.top]
            total = sum(weight for _, weight in kept)
            for place, (token, weight) in enumerate(kept):
                indices[s, place], weights[s, place] = token, weight / total

    return Projection(
        indices=torch.from_numpy(indices),
        weights=torch.from_numpy(weights).float(),
        is_exact=torch.from_numpy(is_exact),
        num_teacher=len(teacher),
        student_fingerprint=student.fingerprint,
        teacher_fingerprint=teacher.fingerprint,
        parameters=asdict(parameters),
    )


def exact_matches(student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> NDArray[np.int64]:
    """Finds the teacher token with the bytes or role of each student token, ``[V_s]``, -1 for none (pass 1 of W)."""
    by_bytes = whole_tokens(teacher)
    exact = np.array([by_bytes.get(text, -1) for text in student.token_bytes], dtype=np.int64)
    for role, s in reversed(student.roles.items()):
        if role in teacher.roles:
            exact[s] = teacher.roles[role]
    return exact
