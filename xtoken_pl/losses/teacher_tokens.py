"""The teacher's k most probable tokens of each row: the argument that limits a loss to them, and rows of them alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xtoken_pl.losses.base import SideRows, SpanLoss
from xtoken_pl.losses.row_content import RowContent
from xtoken_pl.losses.top_columns import top_columns
from xtoken_pl.utilities.checks import check_at_least_one

# Q teacher rows, V_t teacher's vocabulary size, L levels, G branches


class TopKLoss(SpanLoss):
    """Base of the losses with the argument ``teacher_top_k``.

    Args:
        teacher_top_k: Number of tokens of each teacher row that are known one by one; None for all.

    Raises:
        UserError: If ``teacher_top_k`` is not an integer >= 1.
    """

    def __init__(self, *, teacher_top_k: int | None = None) -> None:
        super().__init__()
        check_at_least_one("teacher_top_k", teacher_top_k, "None keeps the whole distribution")
        self.teacher_top_k = teacher_top_k

    @property
    def row_needs(self) -> RowContent:
        return replace(super().row_needs, top_k=self.teacher_top_k)

    def limit_teacher_tokens(self, top_k: int) -> str | None:
        """Sets ``teacher_top_k``, unless it is as low already."""
        before = self.teacher_top_k
        if before is not None and before <= top_k:
            return None
        self.teacher_top_k = top_k
        return f"teacher_top_k {before} -> {top_k}"


@dataclass(frozen=True)
class KeptTokens:
    """The tokens of each row whose probabilities are known one by one: the k most probable ones and the observed one.

    Attributes:
        ids: ``[Q, k]`` the most probable tokens; the observed one in a place without a token.
        is_kept: ``[Q, V_t]`` bool, True for these and for the observed token; for all tokens of a row without a tail.
        has_tail: ``[Q]`` bool, False for a row all whose tokens are kept.
        num_others: ``[Q]`` number of kept tokens besides the observed one.
    """

    ids: Tensor
    is_kept: Tensor
    has_tail: Tensor
    num_others: Tensor

    def others_than(self, is_branch: Tensor, level: Tensor, row: Tensor) -> Tensor:
        """Says at which levels a kept token, not the observed one, continues in no branch.

        Args:
            is_branch: ``[G]`` bool, True for branches that continue with a kept token.
            level: ``[G]`` level of each branch.
            row: ``[L]`` row of each level.
        """
        num_left = self.num_others[row].index_add(0, level, is_branch.long(), alpha=-1)
        return (num_left > 0) | ~self.has_tail[row]


def keep_tokens(teacher: SideRows, top_k: int | None) -> tuple[SideRows, KeptTokens | None]:
    """Keeps ``top_k`` tokens of each row and the observed one; the others share the remaining probability evenly.

    Rows that are spread already stay as they are up to rounding, unless fewer tokens are kept than they have.

    Args:
        teacher: Rows of the teacher; a token with log-probability -inf does not exist and gets nothing.
        top_k: k, or None for all tokens.

    Returns:
        The rows with their tail spread, and which tokens are kept; the same rows and None if that is all of them.
    """
    log_probs = teacher.log_probs
    if top_k is None or top_k >= log_probs.shape[1]:
        return teacher, None
    observed, known = teacher.labels[:, None], teacher.top_ids
    if known is None or known.shape[1] > top_k:
        ids = top_columns(log_probs, top_k)
    else:
        # Not found by their probabilities: the observed token may be as probable as the last of them.
        ids = torch.where(known < log_probs.shape[1], known, observed)
    is_kept = torch.zeros_like(log_probs, dtype=torch.bool).scatter_(1, ids, value=True)
    is_kept.scatter_(1, observed, value=True)
    in_tail = (log_probs > -torch.inf).logical_and_(~is_kept)
    num_tail = in_tail.sum(-1)
    has_tail = num_tail > 0
    log_tail = log_probs.masked_fill(~in_tail, -torch.inf).logsumexp(-1)
    of_each = log_tail - num_tail.clamp_min(1).to(log_tail.dtype).log()
    spread = torch.where(in_tail, of_each[:, None], log_probs)
    num_others = (ids != observed).sum(-1)
    return replace(teacher, log_probs=spread), KeptTokens(ids, is_kept | ~has_tail[:, None], has_tail, num_others)
