"""The entry point of the command line: finds the verb and runs it."""

from __future__ import annotations

import logging
import sys
from importlib import import_module

from xtoken_pl.cli.verbs import PROGRAM, VERBS, choose_verb, overview
from xtoken_pl.utilities.errors import UserError, root_cause, system_errors


def main(arguments: list[str] | None = None) -> None:
    """Runs one verb.

    Args:
        arguments: The verb and its options; those of the process by default.

    Raises:
        UserError: If something that the user can fix is wrong. Every other exception is a bug.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["--help"], ["-h"]):
        print(f"usage: {PROGRAM} VERB [options]\n\nDistil language models across tokenizers.\n\n{overview()}")
        return
    verb = VERBS[choose_verb(given)]
    logger = logging.getLogger("xtoken_pl")
    logger.setLevel(logging.INFO)
    if not logger.hasHandlers():  # a handler of the root logger would print Lightning's messages a second time
        logger.addHandler(logging.StreamHandler())
    try:
        with system_errors():
            import_module(f"xtoken_pl.cli.{verb.module}").run(given)
    except ValueError as error:
        # A class that jsonargparse instantiates may refuse its arguments; jsonargparse wraps its error, level by level.
        if isinstance(error, UserError) or not isinstance(cause := root_cause(error), UserError):
            raise
        raise cause from cause.__cause__
