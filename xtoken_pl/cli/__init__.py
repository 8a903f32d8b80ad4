"""The command line: ``python -m xtoken_pl VERB``, one file a verb."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> None:
    """Runs one verb; ``arguments`` default to the command line's. Errors are raised as they are."""
    from xtoken_pl.cli.command_line import main as run_verb  # takes seconds

    run_verb(arguments)
