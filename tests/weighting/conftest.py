"""Models of a student and two teachers, and a function that makes modules of them."""

from __future__ import annotations

from functools import partial

import pytest
from small_models import packing_tokenizer, reversing_tokenizer, write_model
from weighted_teachers import MakeModule, make_module


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "student": write_model(root / "student", packing_tokenizer(), seed=1),
        "other": write_model(root / "other", reversing_tokenizer(), seed=2),
        "same": write_model(root / "same", packing_tokenizer(), seed=3, scale=12.0),
    }


@pytest.fixture
def make(folders: dict[str, str]) -> MakeModule:
    return partial(make_module, folders)
