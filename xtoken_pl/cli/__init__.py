"""The command line: ``python -m xtoken_pl VERB``, one file a verb; their table is in ``verbs.py``."""

from __future__ import annotations

from xtoken_pl.cli.command_line import main

__all__ = ["main"]
