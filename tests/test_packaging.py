"""What is installed is what is in the repository."""

from __future__ import annotations

from importlib import import_module, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_of_the_repository_can_be_imported_as_installed() -> None:
    rooms = [file.parent.relative_to(ROOT) for file in (ROOT / "xtoken_pl").rglob("__init__.py")]
    assert rooms
    for room in rooms:
        import_module(".".join(room.parts))
    assert metadata.version("xtoken_pl") == import_module("xtoken_pl").__version__
