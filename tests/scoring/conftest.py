"""Models of a student and two teachers, and windows of text under their tokenizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, write_model
from two_teachers import make_module

from xtoken_pl.batch import teacher_columns
from xtoken_pl.data import Windower


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        # Heads padded beyond the tokenizer, as real ones are.
        "student": write_model(
            root / "student", packing_tokenizer(), seed=1, num_head_rows=len(packing_tokenizer()) + 7
        ),
        "other": write_model(
            root / "other", reversing_tokenizer(), seed=2, num_head_rows=len(reversing_tokenizer()) + 4
        ),
        "same": write_model(root / "same", packing_tokenizer(), seed=3),
    }


@pytest.fixture(scope="module")
def windows(folders: dict[str, str]) -> list[dict[str, Any]]:
    module = make_module(folders)
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([text[:300] for text in TEXTS[:3]])
    rows = [{key: column[index] for key, column in columns.items()} for index in range(len(columns["student_ids"]))]
    spans = np.concatenate([np.asarray(row[teacher_columns("other")[1]]).reshape(-1, 4) for row in rows])
    lengths = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
    assert all((length > 1).sum() > 10 for length in lengths)  # many-to-one and one-to-many
    # Windows of different lengths, so that there is something to pad.
    return sorted(rows, key=lambda row: len(row["student_ids"]))[:3] + rows[:3]
