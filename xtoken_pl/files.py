"""Files are written whole or not at all, and never over another unasked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a path to write a file or a folder at; what stands there at the end is moved to ``path`` in one step.

    Raises:
        FileExistsError: If ``path`` exists and ``overwrite`` is False.
    """
    target = Path(path)
    refuse_existing(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        part = Path(folder) / target.name
        yield part
        if not target.is_dir():
            part.replace(target)
            return
        # A folder cannot be replaced in one step: the old one is moved aside, and back if the new one cannot stand.
        previous = target.replace(Path(folder) / "previous")
        try:
            part.replace(target)
        except OSError:
            previous.replace(target)
            raise


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raises FileExistsError if ``path`` exists and may not be overwritten."""
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists and is not overwritten unasked; choose another path, or allow it with overwrite"
        )
