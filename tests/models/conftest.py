"""A student with an adapter: a whole run, and the same run resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from adapted_students import checkpoints, student_of, train
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.callbacks import HFExport


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_model(folder / "student", packing_tokenizer(), seed=1, hidden_size=64, tied=True)
    write_model(folder / "other", packing_tokenizer(), seed=9, hidden_size=64, tied=True)
    write_model(folder / "split", splitting_tokenizer(), seed=2)
    lines = [json.dumps({"text": text[:200]}) + "\n" for text in TEXTS[:3]]
    (folder / "texts.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def whole(workspace: Path) -> tuple[MultiTeacherDistillModule, list[float]]:
    """Four uninterrupted steps; their checkpoints are in ``whole``."""
    return train(workspace, student_of(workspace), checkpoints(workspace / "whole"), num_steps=4)


@pytest.fixture(scope="session")
def resumed(workspace: Path, whole: Any) -> tuple[MultiTeacherDistillModule, list[float]]:
    """The same run resumed from step 2, exported to ``merged`` and ``adapter``."""
    exports = [HFExport(str(workspace / form), form=form) for form in ("merged", "adapter")]
    path = workspace / "whole/step=2.ckpt"
    return train(workspace, student_of(workspace), *exports, num_steps=4, ckpt_path=path)
