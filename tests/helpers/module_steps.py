"""A batch for a module, and the result of a training step on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from small_models import TEXTS
from torch import Tensor

from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.batch import DistillBatch
from xtoken_pl.data import Windower, collate
from xtoken_pl.models import hidden_states

MakeModule = Callable[..., MultiTeacherDistillModule]


def watch_hidden_states(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Returns a list that takes the student's hidden states of every pass, which keep their gradients."""
    seen: list[Tensor] = []

    def watched(*arguments: Any) -> Tensor:
        states = hidden_states(*arguments)
        states.retain_grad()
        seen.append(states)
        return states

    monkeypatch.setattr("xtoken_pl.training.module.hidden_states", watched)
    return seen


def batch_for(module: MultiTeacherDistillModule, num: int = 3, length: int = 40) -> DistillBatch:
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, length)([TEXTS[0][:400]])
    rows = [{key: column[index] for key, column in columns.items()} for index in range(num)]
    return collate(rows, list(module.teachers))


def step_of(module: MultiTeacherDistillModule, batch: DistillBatch) -> dict[str, Any]:
    return cast(dict[str, Any], module.training_step(batch, 0))
