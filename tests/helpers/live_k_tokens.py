"""Losses of a teacher in this process that see of its rows what a server gives: k tokens, and the observed one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xtoken_pl import HybridKL, ProjectionKL
from xtoken_pl.losses import SpanBlock, SpanScores
from xtoken_pl.losses.matched_rows import MatchedRowLoss


def spread_tail(log_probs: Tensor, labels: Tensor, top_k: int) -> Tensor:
    """Rows ``[Q, V_t]`` of which only the ``top_k`` best tokens and the observed one are known, one row at a time."""
    rows = []
    for row, label in zip(log_probs.exp(), labels, strict=True):
        known = torch.zeros_like(row, dtype=torch.bool)
        known[row.topk(top_k).indices] = True
        known[label] = True
        others = ~known & (row > 0)
        rows.append(torch.where(others, row[others].double().mean().to(row.dtype), row).log())
    return torch.stack(rows)


class _OfKTokens(MatchedRowLoss):
    def forward(self, block: SpanBlock) -> SpanScores:
        assert self.teacher_top_k is not None
        teacher = block.teacher
        rows = spread_tail(teacher.log_probs, teacher.labels, self.teacher_top_k)
        return super().forward(replace(block, teacher=replace(teacher, log_probs=rows)))


class LiveProjectionKL(_OfKTokens, ProjectionKL):
    """P-KL."""


class LiveHybridKL(_OfKTokens, HybridKL):
    """H-KL."""
