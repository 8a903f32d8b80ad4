"""The prefix map, which the byte-prefix KL reads: how each side's tokens are spelled in the other side's tokens."""

from xtoken_pl.prefix_map.build import build_prefix_map
from xtoken_pl.prefix_map.planner import PrefixPlanner
from xtoken_pl.prefix_map.positions import Positions, PrefixPlan
from xtoken_pl.prefix_map.prefix_map import PrefixMap

__all__ = ["Positions", "PrefixMap", "PrefixPlan", "PrefixPlanner", "build_prefix_map"]
