"""Shows a text as the student and its teachers see it: alignment, W, and the models' predictions."""

from xtoken_pl.inspection.counterparts import Counterparts
from xtoken_pl.inspection.inspection import Inspection
from xtoken_pl.inspection.predictions import predict
from xtoken_pl.inspection.sequence import first_sequence
from xtoken_pl.inspection.tokens import visible

__all__ = ["Counterparts", "Inspection", "first_sequence", "predict", "visible"]
