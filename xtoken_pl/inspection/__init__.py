"""Shows a text as the student and its teachers see it: alignment, W, and the models' predictions."""

from xtoken_pl.inspection.counterparts import Counterpart, Counterparts
from xtoken_pl.inspection.inspection import Cell, Inspection, TeacherView
from xtoken_pl.inspection.predictions import Candidate, Predictions, SpanPrediction, predict
from xtoken_pl.inspection.sequence import first_sequence
from xtoken_pl.inspection.tokens import Token, tokens_of, visible

__all__ = [
    "Candidate",
    "Cell",
    "Counterpart",
    "Counterparts",
    "Inspection",
    "Predictions",
    "SpanPrediction",
    "TeacherView",
    "Token",
    "first_sequence",
    "predict",
    "tokens_of",
    "visible",
]
