"""Reads files with checks, and writes them atomically and without overwriting by default."""

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
    """Yields a temporary path for a file or directory, which is moved to ``path`` at the end, whole or not at all.

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
        # A directory cannot be replaced in one step: the old one is moved aside, and restored if that fails.
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
    verb: str,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Reads the header and the tensors of a file written by one of the package's commands.

    Args:
        path: The file.
        framework: Type of the returned tensors.
        file_format: Required value of ``format`` in the header.
        names: Names of the required tensors.
        setting: Name of the setting that gave the path, for messages.
        verb: Command that writes such files, for messages.

    Raises:
        UserError: If the file does not exist, is damaged, or has another format.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise UserError(f"{setting} must be a file written by `python -m xtoken_pl {verb}`; there is none at {name!r}")
    try:
        with safetensors.safe_open(path, framework=framework) as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{setting} must be a complete safetensors file, but {name!r} is truncated or damaged ({error}); rebuild "
            f"it with `python -m xtoken_pl {verb}`"
        ) from error
    if header.get("format") != file_format or not set(names) <= tensors.keys():
        raise UserError(
            f"{setting} must be a file of format {file_format!r}, but {name!r} has format {header.get('format')!r}; "
            f"build one with `python -m xtoken_pl {verb}`"
        )
    return header, tensors


def read_text(path: str | os.PathLike[str], *, setting: str) -> str:
    """Reads a text file without changing its line ends.

    Args:
        path: The file.
        setting: Name of the setting that gave the path, for messages.

    Raises:
        UserError: If the file does not exist, is not UTF-8, or is empty.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise UserError(f"{setting} must be a text file, but there is none at {name!r}; check the path")
    try:
        content = Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{setting} must be UTF-8, but {name!r} is not ({error}); convert it, or give another file"
        ) from error
    if not content:
        raise UserError(f"{setting} must have content, but {name!r} is empty; give another file, or remove the option")
    return content


def check_target(path: Path, *, kind: Kind, overwrite: bool) -> None:
    """Checks that ``path`` may be written to; called before any work is done.

    Raises:
        UserError: If ``path`` exists and ``overwrite`` is False, if it is of the other kind, or if a parent of it is
            not a directory.
    """
    if path.exists() and path.is_dir() != (kind == "folder"):
        other, wanted = ("directory", "file") if path.is_dir() else ("file", "directory")
        raise UserError(f"a {wanted} is to be written, but {path} is a {other}; give the path of a {wanted}")
    if path.exists() and not overwrite:
        raise UserError(
            f"{path} exists and is not overwritten by default; choose another path, or set overwrite to true"
        )
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"{path} cannot be written, because {above} is not a directory; choose another path")
