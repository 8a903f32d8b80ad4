"""The prefix map, which the byte-prefix KL reads: how each side's tokens are spelled in the other side's tokens."""

from xtoken_pl.prefix_map.build import build_prefix_map, prefix_map_for
from xtoken_pl.prefix_map.completion_sets import CompletionPlan, CompletionPlanner, Completions, CompletionSets
from xtoken_pl.prefix_map.lookahead import BranchReader, Lookahead
from xtoken_pl.prefix_map.marginal_positions import MarginalPlan, MarginalPlanner, MarginalPositions
from xtoken_pl.prefix_map.partition_planner import PartitionPlan, PartitionPlanner, SpanCells
from xtoken_pl.prefix_map.planner import PrefixPlanner
from xtoken_pl.prefix_map.positions import Positions, PrefixPlan
from xtoken_pl.prefix_map.prefix_map import PrefixMap
from xtoken_pl.prefix_map.student_units import student_units

__all__ = [
    "BranchReader",
    "CompletionPlan",
    "CompletionPlanner",
    "CompletionSets",
    "Completions",
    "Lookahead",
    "MarginalPlan",
    "MarginalPlanner",
    "MarginalPositions",
    "PartitionPlan",
    "PartitionPlanner",
    "Positions",
    "PrefixMap",
    "PrefixPlan",
    "PrefixPlanner",
    "SpanCells",
    "build_prefix_map",
    "prefix_map_for",
    "student_units",
]
