"""Cross-tokenizer knowledge distillation for PyTorch Lightning, after NVIDIA's X-Token (arXiv 2605.21699).

Importing the package imports neither torch nor Lightning; the names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "xtoken_pl.alignment": ("SpanAligner", "Spans", "SpanStatistics"),
    "xtoken_pl.audit": ("CoverageAudit", "recommend_loss"),
    "xtoken_pl.data": ("DistillDataModule", "TextSource"),
    "xtoken_pl.losses": (
        "GOLD",
        "ULD",
        "BytePrefixKL",
        "HybridKL",
        "MatchedRowLoss",
        "ProjectionKL",
        "SpanLoss",
        "TokenKL",
    ),
    "xtoken_pl.prefix_map": ("PrefixMap", "build_prefix_map"),
    "xtoken_pl.projection": ("Projection", "VocabularyPartition", "build_projection"),
    "xtoken_pl.specs": ("LoRA", "Student", "Teacher"),
    "xtoken_pl.tokenization": ("CanonicalVocabulary",),
    "xtoken_pl.training.metrics": ("BitsPerByte", "TopOneAgreement"),
    "xtoken_pl.training.module": ("MultiTeacherDistillModule",),
    "xtoken_pl.training.optimization": ("OptimizerRecipe",),
    "xtoken_pl.weighting": ("ConfidenceWeighting", "MostConfidentTeacher", "StaticWeighting", "Weighting"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
