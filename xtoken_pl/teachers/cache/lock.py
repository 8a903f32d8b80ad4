"""One process builds a cache at a time."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.utilities.errors import UserError

#: Stays in the folder: removing a lock file would let a third process lock another one beside the second's.
LOCK_FILE = ".lock"

_HAS_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Keeps other builders out of a folder, which is made where there is none; a killed process lets go of it.

    Raises:
        UserError: If another process builds there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"one process builds a cache at a time, and another one is building {folder}; wait for it or stop it, "
                "or choose another output"
            ) from None
        except OSError as error:
            if error.errno not in _HAS_NO_LOCKS:
                raise
            rank_zero_warn(f"{folder} lies where files cannot be locked ({error}): see that nothing else builds there")
        yield
