"""The Lightning module: set-up, one step, metrics, optimization."""

from xtoken_pl.training.metrics import BitsPerByte, TopOneAgreement
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.training.optimization import OptimizerRecipe

__all__ = ["BitsPerByte", "MultiTeacherDistillModule", "OptimizerRecipe", "TopOneAgreement"]
