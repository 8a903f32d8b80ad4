"""Cross-tokenizer knowledge distillation for PyTorch Lightning, after NVIDIA's X-Token (arXiv 2605.21699)."""

from xtoken_pl.alignment import SpanAligner, Spans
from xtoken_pl.data import DistillDataModule, TextSource
from xtoken_pl.losses import MatchedRowLoss, ProjectionKL, SpanLoss, TokenKL
from xtoken_pl.metrics import BitsPerByte, TopOneAgreement
from xtoken_pl.module import MultiTeacherDistillModule
from xtoken_pl.optimization import OptimizerRecipe
from xtoken_pl.projection import Projection, build_projection
from xtoken_pl.teacher import Student, Teacher
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.weighting import StaticWeighting, Weighting

__version__ = "0.1.0"

__all__ = [
    "BitsPerByte",
    "CanonicalVocabulary",
    "DistillDataModule",
    "MatchedRowLoss",
    "MultiTeacherDistillModule",
    "OptimizerRecipe",
    "Projection",
    "ProjectionKL",
    "SpanAligner",
    "SpanLoss",
    "Spans",
    "StaticWeighting",
    "Student",
    "Teacher",
    "TextSource",
    "TokenKL",
    "TopOneAgreement",
    "Weighting",
    "build_projection",
]
