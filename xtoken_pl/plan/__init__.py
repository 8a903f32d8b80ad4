"""Plans the GPU memory that a run needs, without weights, tokenizers or a GPU."""

from xtoken_pl.plan.advice import single_changes, way_to_fit
from xtoken_pl.plan.moments import MemoryPlan, Moment
from xtoken_pl.plan.report import table, to_dict
from xtoken_pl.plan.run import Run
from xtoken_pl.plan.terms import usable_bytes

__all__ = ["MemoryPlan", "Moment", "Run", "single_changes", "table", "to_dict", "usable_bytes", "way_to_fit"]
