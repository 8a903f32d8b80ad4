"""Cross-tokenizer knowledge distillation for PyTorch Lightning, after NVIDIA's X-Token (arXiv 2605.21699).

Importing the package imports neither torch nor Lightning; the names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xtoken_pl.alignment import SpanAligner, Spans, SpanStatistics
    from xtoken_pl.audit import CoverageAudit, recommend_loss
    from xtoken_pl.data import DistillDataModule, TextSource
    from xtoken_pl.losses import (
        ALM,
        BPM,
        ESCD,
        GOLD,
        ULD,
        BytePrefixKL,
        HybridKL,
        MatchedRowLoss,
        PrefixPartitionKL,
        ProjectionKL,
        SimCT,
        SpanLoss,
        StrictTopK,
        TokenKL,
    )
    from xtoken_pl.prefix_map import PrefixMap, build_prefix_map
    from xtoken_pl.projection import Projection, VocabularyPartition, build_projection
    from xtoken_pl.rollouts import Rollouts
    from xtoken_pl.specs import LoRA, Server, Student, Teacher
    from xtoken_pl.tokenization import CanonicalVocabulary
    from xtoken_pl.training.metrics import BitsPerByte, TopOneAgreement
    from xtoken_pl.training.module import MultiTeacherDistillModule
    from xtoken_pl.training.optimization import OptimizerRecipe
    from xtoken_pl.weighting import ConfidenceWeighting, MostConfidentTeacher, StaticWeighting, Weighting

__version__ = "0.1.0"

__all__ = [
    "ALM",
    "BPM",
    "ESCD",
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
    "PrefixPartitionKL",
    "Projection",
    "ProjectionKL",
    "Rollouts",
    "Server",
    "SimCT",
    "SpanAligner",
    "SpanLoss",
    "SpanStatistics",
    "Spans",
    "StaticWeighting",
    "StrictTopK",
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

_NAMES_BY_MODULE = {
    "alignment": "SpanAligner Spans SpanStatistics",
    "audit": "CoverageAudit recommend_loss",
    "data": "DistillDataModule TextSource",
    "losses": "ALM BPM ESCD GOLD ULD BytePrefixKL HybridKL MatchedRowLoss PrefixPartitionKL ProjectionKL SimCT "
    "SpanLoss StrictTopK TokenKL",
    "prefix_map": "PrefixMap build_prefix_map",
    "projection": "Projection VocabularyPartition build_projection",
    "rollouts": "Rollouts",
    "specs": "LoRA Server Student Teacher",
    "tokenization": "CanonicalVocabulary",
    "training.metrics": "BitsPerByte TopOneAgreement",
    "training.module": "MultiTeacherDistillModule",
    "training.optimization": "OptimizerRecipe",
    "weighting": "ConfidenceWeighting MostConfidentTeacher StaticWeighting Weighting",
}
_MODULES = {name: f"xtoken_pl.{module}" for module, names in _NAMES_BY_MODULE.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
