"""Models of a student and two teachers, and a function that makes modules of them."""

from __future__ import annotations

from functools import partial

import pytest
from weighted_teachers import MakeModule, make_module, write_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture
def make(folders: dict[str, str]) -> MakeModule:
    return partial(make_module, folders)
