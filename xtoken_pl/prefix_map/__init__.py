"""The prefix map: how each side's tokens are spelled in the other side's tokens; and the planners that read it.

A planner runs in the data loader and finds, from the tokens of a batch alone, what a loss compares at which rows:

- :class:`PrefixPlanner` for :class:`xtoken_pl.BytePrefixKL`, and :class:`Lookahead`, which extends its plan;
- :class:`MarginalPlanner` for :class:`xtoken_pl.BPM`, and :class:`CompletionPlanner` for :class:`xtoken_pl.ESCD`;
- :class:`PartitionPlanner` for :class:`xtoken_pl.PrefixPartitionKL`.

The last one and the planner of :class:`xtoken_pl.SimCT`, in ``losses/joint_units.py``, need no map, but the tokens that
each side writes in several of the other's.
"""

from xtoken_pl.prefix_map.build import build_prefix_map, prefix_map_for
from xtoken_pl.prefix_map.byte_classes import byte_classes
from xtoken_pl.prefix_map.completion_sets import CompletionPlan, CompletionPlanner, Completions, CompletionSets
from xtoken_pl.prefix_map.lookahead import BranchReader, Lookahead
from xtoken_pl.prefix_map.marginal_positions import MarginalPlan, MarginalPlanner, MarginalPositions
from xtoken_pl.prefix_map.partition_planner import PartitionPlan, PartitionPlanner, SpanCells
from xtoken_pl.prefix_map.planner import PrefixPlanner
from xtoken_pl.prefix_map.positions import Positions, PrefixPlan
from xtoken_pl.prefix_map.prefix_map import PrefixMap

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
    "byte_classes",
    "prefix_map_for",
]
