"""Losses between a teacher's and the student's distributions, one per span of the text."""

from xtoken_pl.losses.alm import ALM
from xtoken_pl.losses.base import SpanBlock, SpanLoss, SpanScores, projection_bytes
from xtoken_pl.losses.bpm import BPM
from xtoken_pl.losses.byte_prefix_kl import BytePrefixKL
from xtoken_pl.losses.counterparts import CounterpartKind, LossCounterparts, TokenCounterparts
from xtoken_pl.losses.divergence import Divergence, generalized_divergence
from xtoken_pl.losses.escd import ESCD
from xtoken_pl.losses.gold import GOLD
from xtoken_pl.losses.hybrid_kl import HybridKL
from xtoken_pl.losses.matched_rows import MatchedRowLoss, Merge
from xtoken_pl.losses.partitioned import PartitionedLoss, common_divergence
from xtoken_pl.losses.prefix_partition_kl import PrefixPartitionKL
from xtoken_pl.losses.projection_kl import ProjectionKL, projection_kl
from xtoken_pl.losses.row_content import RowContent, RowKind
from xtoken_pl.losses.simct import SimCT
from xtoken_pl.losses.strict_top_k import StrictTopK
from xtoken_pl.losses.token_kl import TokenKL, token_kl
from xtoken_pl.losses.uld import ULD, rank_distance

__all__ = [
    "ALM",
    "BPM",
    "ESCD",
    "GOLD",
    "ULD",
    "BytePrefixKL",
    "CounterpartKind",
    "Divergence",
    "HybridKL",
    "LossCounterparts",
    "MatchedRowLoss",
    "Merge",
    "PartitionedLoss",
    "PrefixPartitionKL",
    "ProjectionKL",
    "RowContent",
    "RowKind",
    "SimCT",
    "SpanBlock",
    "SpanLoss",
    "SpanScores",
    "StrictTopK",
    "TokenCounterparts",
    "TokenKL",
    "common_divergence",
    "generalized_divergence",
    "projection_bytes",
    "projection_kl",
    "rank_distance",
    "token_kl",
]
