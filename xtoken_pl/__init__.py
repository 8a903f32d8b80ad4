"""Cross-tokenizer knowledge distillation for PyTorch Lightning, after NVIDIA's X-Token (arXiv 2605.21699)."""

from xtoken_pl.alignment import SpanAligner, Spans, SpanStatistics
from xtoken_pl.audit import CoverageAudit, recommend_loss
from xtoken_pl.data import DistillDataModule, TextSource
from xtoken_pl.losses import GOLD, ULD, BytePrefixKL, HybridKL, MatchedRowLoss, ProjectionKL, SpanLoss, TokenKL
from xtoken_pl.prefix_map import PrefixMap, build_prefix_map
from xtoken_pl.projection import Projection, VocabularyPartition, build_projection
from xtoken_pl.specs import LoRA, Student, Teacher
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.training.metrics import BitsPerByte, TopOneAgreement
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.training.optimization import OptimizerRecipe
from xtoken_pl.weighting import ConfidenceWeighting, MostConfidentTeacher, StaticWeighting, Weighting

__version__ = "0.1.0"

__all__ = [
    "GOLD",
    "ULD",
    "BitsPerByte",
    "BytePrefixKL",
    "CanonicalVocabulary",
    "ConfidenceWeighting",
    "CoverageAudit",
    "DistillDataModule",
    "HybridKL",
    "LoRA",
    "MatchedRowLoss",
    "MostConfidentTeacher",
    "MultiTeacherDistillModule",
    "OptimizerRecipe",
    "PrefixMap",
    "Projection",
    "ProjectionKL",
    "SpanAligner",
    "SpanLoss",
    "SpanStatistics",
    "Spans",
    "StaticWeighting",
    "Student",
    "Teacher",
    "TextSource",
    "TokenKL",
    "TopOneAgreement",
    "VocabularyPartition",
    "Weighting",
    "build_prefix_map",
    "build_projection",
    "recommend_loss",
]
