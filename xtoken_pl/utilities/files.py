"""Files are written whole or not at all, and never over another unasked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import safetensors

from xtoken_pl.utilities.errors import UserError

Kind = Literal["file", "folder"]


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, kind: Kind, overwrite: bool = False) -> Iterator[Path]:
    """Gives a path to write a file or a folder at; what stands there at the end is moved to ``path`` in one step.

    Raises:
        UserError: If ``path`` exists and ``overwrite`` is False, or is of the other kind.
    """
    target = Path(path)
    check_target(target, kind=kind, overwrite=overwrite)
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


def read_safetensors(
    path: str | os.PathLike[str],
    *,
    framework: Literal["pt", "numpy"],
    file_format: str,
    names: Collection[str],
    setting: str,
    kind: str,
    verb: str,
) -> tuple[dict[str, str], dict[str, Any]]:
    """The header and the tensors of a file that one of our commands wrote.

    Args:
        file_format: What the header's ``format`` must be.
        names: Tensors that must be there.
        setting: What the path was given as; for messages, like the other two.
        kind: What the file holds.
        verb: The command that writes it.

    Raises:
        UserError: If there is no such file.
        UserError: If it is damaged, or of another format.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise UserError(f"{setting} must be a file written by `python -m xtoken_pl {verb}`; there is none at {name!r}")
    try:
        with safetensors.safe_open(path, framework=framework) as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except safetensors.SafetensorError as error:
        raise UserError(f"{name!r} is no whole safetensors file ({error}); rebuild it") from error
    if header.get("format") != file_format or not set(names) <= tensors.keys():
        raise UserError(
            f"{name!r} is no {kind} of format {file_format!r} (got {header.get('format')!r}); "
            f"make one with `python -m xtoken_pl {verb}`"
        )
    return header, tensors


def read_text(path: str | os.PathLike[str], *, setting: str) -> str:
    """A text file, line ends as they are.

    Args:
        setting: What the path was given as, for messages.

    Raises:
        UserError: If there is no such file.
        UserError: If it is not UTF-8, or empty.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise UserError(f"{setting} must be a text file, there is none at {name!r}; check the path")
    try:
        content = Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{setting} must be UTF-8, {name!r} is not ({error}); convert it, or give another file"
        ) from error
    if not content:
        raise UserError(f"{setting} must hold something to align, {name!r} is empty; give another file, or none")
    return content


def check_target(path: Path, *, kind: Kind, overwrite: bool) -> None:
    """Refuses a path that may not be written to, so that it is known before any work.

    Raises:
        UserError: If ``path`` exists and ``overwrite`` is False, or is of the other kind.
        UserError: If it lies under something that is no folder.
    """
    if path.exists() and path.is_dir() != (kind == "folder"):
        other = "folder" if path.is_dir() else "file"
        raise UserError(f"a {kind} is to be written, but {path} is a {other}; give the path of a {kind}")
    if path.exists() and not overwrite:
        raise UserError(
            f"{path} exists and is not overwritten unasked; choose another path, or allow it with overwrite"
        )
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"{path} cannot be written, because {above} is no folder; choose another path")
