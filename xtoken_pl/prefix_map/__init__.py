"""The prefix map: how each side's tokens are spelled by the other's; what the byte-prefix KL reads."""

from xtoken_pl.prefix_map.build import build_prefix_map
from xtoken_pl.prefix_map.planner import PrefixPlanner
from xtoken_pl.prefix_map.positions import Positions, PrefixPlan
from xtoken_pl.prefix_map.prefix_map import PrefixMap

__all__ = ["Positions", "PrefixMap", "PrefixPlan", "PrefixPlanner", "build_prefix_map"]
