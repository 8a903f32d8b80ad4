"""Lock that admits one builder of a cache at a time."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.utilities.errors import UserError

#: Name of the lock file in the cache directory. Never removed: a second builder could otherwise lock the removed file
#: while a third one locks a new file of the same name.
LOCK_FILE = ".lock"

_HAS_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Locks a cache directory, creating it if necessary; the operating system unlocks it when the process ends.

    Raises:
        UserError: If another process is building a cache in this directory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A soft lock (a file that exists) would outlive a killed process.
    lock = FileLock(folder / LOCK_FILE, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"one process builds a cache at a time, and another one is building {folder}; wait for it or stop it, "
            "or choose another output"
        ) from None
    except OSError as error:
        if error.errno not in _HAS_NO_LOCKS:
            raise
        rank_zero_warn(f"files in {folder} cannot be locked ({error}): make sure nothing else builds there")
    try:
        yield
    finally:
        lock.release()
