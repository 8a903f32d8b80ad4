"""Errors that help: one message with rule, value and way out, and a traceback only for defects."""

from xtoken_pl.errors.report import run
from xtoken_pl.errors.usage import UsageError, choose_verb, explained, explaining

__all__ = ["UsageError", "choose_verb", "explained", "explaining", "run"]
