"""What is installed is what is in the repository."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_of_the_repository_is_installed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = [file.parent.relative_to(ROOT) for file in (ROOT / "xtoken_pl").rglob("__init__.py")]
    assert listed == {".".join(folder.parts) for folder in folders} | {"xtoken_pl.callbacks"}
