"""Losses between a teacher's and the student's distributions, one per span of the text."""

from xtoken_pl.losses.base import MatchedRowLoss, Merge, SpanBlock, SpanLoss, SpanScores
from xtoken_pl.losses.projection_kl import ProjectionKL, projection_kl
from xtoken_pl.losses.token_kl import TokenKL, token_kl

__all__ = [
    "MatchedRowLoss",
    "Merge",
    "ProjectionKL",
    "SpanBlock",
    "SpanLoss",
    "SpanScores",
    "TokenKL",
    "projection_kl",
    "token_kl",
]
