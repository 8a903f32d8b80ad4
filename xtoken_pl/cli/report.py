"""What the command line says where it fails: one message for what the user can mend, a traceback for a defect."""

from __future__ import annotations

import dis
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import jsonargparse
import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from xtoken_pl.cli.usage import UsageError

#: Set where tracebacks are asked for; the processes that Lightning starts inherit it.
TRACEBACK_VARIABLE = "XTOKEN_PL_TRACEBACK"
_OPTION = "--traceback"

#: Kinds that our own code and Lightning raise on purpose. Others (KeyError, AssertionError, ...) are defects.
_DELIBERATE = (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, ImportError)
#: Kinds that speak of the world, whoever raises them: files, disks, packages, Lightning's settings.
_OF_THE_WORLD = (UsageError, OSError, MisconfigurationException)

_JSONARGPARSE = str(Path(jsonargparse.__file__).parent)
_OWN_FOLDERS = tuple(str(Path(__file__).parents[up] / name) for up, name in ((1, ""), (2, "callbacks")))
_SPEAKING_FOLDERS = (*_OWN_FOLDERS, str(Path(lightning.__file__).parent))

_REPORT = "this is a defect, not a wrong input: please report it with the traceback above"
_INTERRUPTED = 130


def run(main: Callable[[list[str] | None], None], arguments: list[str] | None = None) -> int:
    """Runs ``main``, and says on stderr what went wrong, if something did.

    Args:
        main: Takes the arguments; None for the command line's.
        arguments: Without the name of the programme. ``--traceback`` is taken out.

    Returns:
        The exit code: 0, 1 for an error, 2 for arguments that cannot be used, 130 where the user interrupts.

    Raises:
        Exception: A defect, or any error where tracebacks are asked for.
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
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
            raise
        message = message_of(error)
        if message is None:
            error.add_note(_REPORT)
            raise
        say(message)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def message_of(error: Exception) -> str | None:
    """What a user should read of an error; None for a defect, whose traceback is needed.

    An error is the user's to mend if it speaks of the world (files, packages, the trainer's settings), or if one of our
    own ``raise`` statements, or one of Lightning's, made it. A ValueError from the depths of numpy is not.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return (
            f"the memory is used up ({str(error).splitlines()[0] if str(error) else 'no more was said'}); lower "
            "data.batch_size or data.sequence_length, set model.student.activation_checkpointing, or see what fits: "
            "python -m xtoken_pl plan"
        )
    if (from_worker := _of_a_worker(error)) is not None:
        return from_worker
    while isinstance(error.__cause__, Exception) and _file_of(error).startswith(_JSONARGPARSE):
        error = error.__cause__  # what a class said that was being made, level by level
    deliberate = isinstance(error, _DELIBERATE) and _is_raised_by_a_statement(error)
    if not (deliberate or isinstance(error, _OF_THE_WORLD)):
        return None
    if isinstance(error, OSError) and error.strerror is not None:
        return _of_the_system(error)
    return str(error) or type(error).__name__


def say(message: str) -> None:
    """One message on stderr, its lines joined; with several processes, of which one it is."""
    name = "error"
    if (rank := os.environ.get("LOCAL_RANK", "0")) != "0":
        name = f"error in process {rank}"
    hint = f"({_OPTION} shows where it was raised)"
    if sys.stderr.isatty():
        name, hint = f"\033[1;31m{name}\033[0m", f"\033[2m{hint}\033[0m"
    # In one piece: several processes write to the same terminal.
    sys.stderr.write(f"{name}: {' '.join(message.split())}\n{hint}\n")


def _innermost(error: BaseException) -> TracebackType | None:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _file_of(error: BaseException) -> str:
    """Where an error was raised."""
    traceback = _innermost(error)
    return "" if traceback is None else traceback.tb_frame.f_code.co_filename


def _is_raised_by_a_statement(error: BaseException) -> bool:
    """Whether the innermost frame is our own or Lightning's, and stands at a ``raise``, not at a call that failed."""
    traceback = _innermost(error)
    if traceback is None or not _file_of(error).startswith(_SPEAKING_FOLDERS):
        return False
    return traceback.tb_frame.f_code.co_code[traceback.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _of_the_system(error: OSError) -> str:
    """The system's own errors name a file at most; the way out is to look at it."""
    place = f": {str(error.filename)!r}" if error.filename is not None else ""
    return f"the system refused a file or folder: {error.strerror}{place}; check the path, its rights and the disk"


def _of_a_worker(error: Exception) -> str | None:
    """The message of an error of ours that a process for data hands over as text, with its traceback."""
    texts = [text for text in (str(error), str(error.__cause__ or "")) if "Traceback (most recent call last)" in text]
    lines = texts[0].splitlines() if texts else []
    frames = [number for number, line in enumerate(lines) if re.match(r'\s+File ".+", line \d+', line)]
    if not frames:
        return None
    file, (statement, *rest) = lines[frames[-1]].split('"')[1], lines[frames[-1] + 1 :] or [""]
    if not (file.startswith(_OWN_FOLDERS) and statement.strip().startswith("raise ")):
        return None
    # Carets may stand below the statement; then comes `ValueError: message`.
    said = "\n".join(line for line in rest if not re.fullmatch(r"[\s^~]*", line)).strip().strip('"')
    return re.sub(r"^[\w.]+: ", "", said)
