"""Files that a verb writes where an option names one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path, check_target


def check_output(option: str, path: str | None, *, overwrite: bool, suffix: str = "") -> None:
    """Checks that the file of an option may be written; called before any work is done.

    Args:
        option: Name of the option, for messages.
        path: Value of the option; None if no file is wanted.
        overwrite: Allow a file that exists.
        suffix: Required suffix of the path.

    Raises:
        UserError: If the suffix is another, or the file cannot be written.
    """
    if path is None:
        return
    if not path.lower().endswith(suffix):
        raise UserError(f"{option} must be a {suffix} file, got {path!r}")
    check_target(Path(path), kind="file", overwrite=overwrite)


def write_output(path: str | None, write: Callable[[Path], object], *, overwrite: bool) -> None:
    """Writes the file of an option, if one is wanted, and prints its path.

    Args:
        path: Value of the option.
        write: Writes the content to the path that it is given.
        overwrite: Replace a file that exists.
    """
    if path is not None:
        with atomic_path(path, kind="file", overwrite=overwrite) as part:
            write(part)
        print(f"written to {path}")
