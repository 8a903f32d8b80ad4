"""Runs the command line as a process: prints errors that a user can fix as one message, and sets the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from xtoken_pl.utilities.errors import UsageError, UserError

#: Set to show tracebacks; the processes that Lightning starts inherit it.
TRACEBACK_VARIABLE = "XTOKEN_PL_TRACEBACK"
_OPTION = "--traceback"
_DEFECT = "this is a defect of xtoken_pl or of a library, not a wrong input: please report it with the traceback above"
_INTERRUPTED = 130


def run(main: Callable[[list[str] | None], None], arguments: list[str] | None = None) -> int:
    """Runs ``main`` and returns the exit code: 0, 1 (error), 2 (unusable arguments) or 130 (interrupted).

    Args:
        main: Function to run, :func:`xtoken_pl.cli.main`.
        arguments: The verb and its options; those of the process by default. ``--traceback`` is taken out.

    Raises:
        Exception: A defect, or any error if tracebacks are asked for.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if _OPTION in given:
        os.environ[TRACEBACK_VARIABLE] = "1"
        given = [argument for argument in given if argument != _OPTION]
        if arguments is None:
            sys.argv[1:] = given
    try:
        main(None if arguments is None else given)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except UserError as error:
        if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
            raise
        say(str(error), getattr(error, "details", ""))
        return 2 if isinstance(error, UsageError) else 1
    except Exception as error:
        error.add_note(_DEFECT)
        raise
    return 0


def say(message: str, details: str = "") -> None:
    """Prints one message on stderr, its lines joined; with several processes, also the number of this one."""
    name = "error"
    if (rank := os.environ.get("LOCAL_RANK", "0")) != "0":
        name = f"error in process {rank}"
    hint = f"({_OPTION} shows where it was raised)"
    if sys.stderr.isatty():
        name, hint = f"\033[1;31m{name}\033[0m", f"\033[2m{hint}\033[0m"
    # Written at once: several processes share the terminal.
    sys.stderr.write(f"{name}: {' '.join(message.split())}\n{details or hint}\n")
