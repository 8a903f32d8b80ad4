"""Errors that help: one message with rule, value and way out, and a traceback only for defects."""

from xtoken_pl.errors.report import run
from xtoken_pl.errors.usage import UsageError, choose_verb, explained, explaining
from xtoken_pl.errors.words import did_you_mean, reason_of

__all__ = ["UsageError", "choose_verb", "did_you_mean", "explained", "explaining", "reason_of", "run"]
