"""The coverage audit: how much two vocabularies share, and which loss suits the pair."""

from xtoken_pl.audit.categories import CATEGORIES, Category, categorize
from xtoken_pl.audit.coverage import CategoryCoverage, CoverageAudit
from xtoken_pl.audit.recommendation import CHOICES, CRITICAL, LossName, Recommendation, recommend_loss
from xtoken_pl.audit.report import draw, figure_of, table

__all__ = [
    "CATEGORIES",
    "CHOICES",
    "CRITICAL",
    "Category",
    "CategoryCoverage",
    "CoverageAudit",
    "LossName",
    "Recommendation",
    "categorize",
    "draw",
    "figure_of",
    "recommend_loss",
    "table",
]
