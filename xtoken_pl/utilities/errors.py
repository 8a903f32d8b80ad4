"""Errors that a user can fix, and the conversion of other libraries' errors into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Raised for an invalid input, file or setting; the message states the rule, the value and the fix.

    The command line prints it as one message, without a traceback. Any other exception is a bug.
    """


class UsageError(UserError):
    """Arguments or a configuration that cannot be used.

    Args:
        message: The rule, the value and the way out.
        details: Further lines, printed below the message as they are.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


@contextmanager
def system_errors() -> Iterator[None]:
    """Raises errors of the operating system (files, rights, full disks, memory) as a :class:`UserError`."""
    try:
        yield
    except MemoryError as error:
        raise out_of_memory(error) from error
    except OSError as error:
        place = f": {str(error.filename)!r}" if error.filename is not None else ""
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(
            f"the system refused a file or directory: {reason}{place}; check the path, its access rights and the disk"
        ) from error


def out_of_memory(error: BaseException) -> UserError:
    """The error for memory that is used up, of the machine or of a GPU."""
    reason = (str(error).splitlines() or [""])[0] or "no further details"
    return UserError(
        f"out of memory ({reason}); lower data.batch_size or data.sequence_length, set "
        "model.student.activation_checkpointing, or see what fits: python -m xtoken_pl plan"
    )


def root_cause(error: BaseException) -> BaseException:
    """The first exception of a chain of ``raise ... from ...``, or the :class:`UserError` that replaced it."""
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error
