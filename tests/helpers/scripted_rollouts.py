"""On-policy steps that were written by hand, and a module that trains on them, for tests of callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from inspected import windows_of

from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, Prompt, teacher_columns
from xtoken_pl.rollouts import Rollout, Rollouts
from xtoken_pl.rollouts.written import WrittenStep
from xtoken_pl.tokenization import CanonicalVocabulary


def write(
    student: CanonicalVocabulary,
    teachers: Mapping[str, CanonicalVocabulary],
    text: str,
    *,
    num_prompt: int = 3,
    ends: bool = True,
    is_cut: bool = False,
) -> tuple[Prompt, Rollout, dict[str, Any]]:
    """Divides a text into a prompt of at least so many tokens and a rollout, at a place where all sides end a token."""
    (window,) = windows_of(student, dict(teachers), text)
    spans = {name: np.reshape(window[teacher_columns(name)[1]], (-1, 4)) for name in teachers}
    starts = [set(own[:, 0].tolist()) for own in spans.values()]
    start = min(place for place in set.intersection(*starts) if place >= num_prompt)
    ids, num = window[STUDENT_IDS], len(window[STUDENT_IDS]) - (not ends)
    sides, written = {"": list(ids[:start])}, {STUDENT_IDS: ids[:num], LOSS_MASK: [0] * start + [1] * (num - start)}
    for name, own in spans.items():
        ids_column, spans_column = teacher_columns(name)
        (first,) = own[own[:, 0] == start]
        sides[name] = list(window[ids_column][: first[2]])
        kept = own[(own[:, 0] >= start) & (own[:, 1] <= num)]
        written |= {ids_column: window[ids_column][: len(window[ids_column]) - (not ends)], spans_column: kept.ravel()}
    stop_ids = {student.roles["eos"]}
    rollout = Rollout.from_ids([int(token) for token in ids[start:num]], student, stop_ids)
    assert rollout.ended == ("stop" if ends else "length")
    return Prompt(sides, is_chat=False, is_cut=is_cut), rollout, written


def write_step(
    student: CanonicalVocabulary, teachers: Mapping[str, CanonicalVocabulary], texts: Sequence[str], step: int = 0
) -> WrittenStep:
    """Writes a text for each of the given ones; every other one ends, and the first prompt is cut."""
    parts = [write(student, teachers, text, ends=place % 2 == 0, is_cut=place == 0) for place, text in enumerate(texts)]
    prompts, rollouts, windows = map(list, zip(*parts, strict=True))
    return WrittenStep(step, prompts, rollouts, windows, seconds=0.5 + len(texts))


def on_policy_outputs(names: Sequence[str], value: float = 1.0) -> dict[str, Any]:
    """The outputs of an on-policy step whose values are told apart by their whole numbers."""
    given = {name: torch.tensor(value + place) for place, name in enumerate(names)}
    totals = {"total": 2 * value, "ce": 99.0, "kd": 3 * value, "kd_scale": 4.0, "student_nats_per_byte": 5 * value}
    by_teacher = ("teacher_kd", "alpha", "span_coverage", "unmapped_mass", "teacher_nats_per_byte")
    return {
        "loss": torch.zeros((), requires_grad=True),
        **{tag: torch.tensor(total) for tag, total in totals.items()},
        **{tag: {name: own + 10 * place for name, own in given.items()} for place, tag in enumerate(by_teacher)},
        "share": {},
        "source_ce": {},
        "is_rollout": True,
    }


class OnPolicyModule(MultiTeacherDistillModule):
    """Trains on the data, except in on-policy steps, where it takes what was written by hand."""

    def begin(self, rollouts: Rollouts, texts: Sequence[str]) -> None:
        """Sets the steps and the texts that are written in each of them, one more with every step."""
        self.rollouts = rollouts
        self.texts = texts
        self.steps: dict[int, WrittenStep] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        step = self.global_step
        if not self.rollouts.is_on_policy(step):
            return super().training_step(batch, batch_idx)
        with self.around_writing():
            if step not in self.steps:
                self.steps[step] = write_step(*self.vocabularies(), self.texts[: step + 1], step)
        self.written = self.steps[step]
        unused = sum(parameter.sum() for parameter in self.parameters() if parameter.requires_grad)
        return on_policy_outputs([*self.teachers], 1.0 + step) | {"loss": 0 * unused}
