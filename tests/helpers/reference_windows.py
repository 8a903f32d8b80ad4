"""Slow reference for the windows of a text: tokens of the whole text, and one common token end after another."""

from __future__ import annotations

from typing import Any

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.alignment import SpanAligner


def reference_windows(
    student: CanonicalVocabulary, teachers: dict[str, CanonicalVocabulary], sequence_length: int, text: str
) -> list[dict[str, Any]]:
    """Windows of a text whose sides end a token at least once in every window."""
    sides = {"": student, **teachers}
    ids = {name: [*side.encode([text])[0], side.roles["eos"]] for name, side in sides.items()}
    spans = {
        name: SpanAligner(student.tokenizer, side.tokenizer).align(ids[""], ids[name]).to_array().tolist()
        for name, side in teachers.items()
    }
    # Where a token ends for the student and each teacher, by the student's position.
    ends: list[dict[int, int]] = []
    for name in teachers:
        end = {c: t for c, _, t, _ in spans[name]} | {c: t for _, c, _, t in spans[name]}
        ends.append(end | {0: 0, len(ids[""]): len(ids[name])})
    bounds = [(place, *(end[place] for end in ends)) for place in ends[0] if all(place in end for end in ends)]
    bounds.sort()
    limits = [sequence_length - len(side.prefix_ids) for side in sides.values()]
    windows, start = [], 0
    while start < len(bounds) - 1:
        end = start + 1
        while end + 1 < len(bounds) and all(
            high - low <= limit for low, high, limit in zip(bounds[start], bounds[end + 1], limits, strict=True)
        ):
            end += 1
        windows.append(_window(sides, ids, spans, bounds[start], bounds[end]))
        start = end
    return windows


def _window(sides: Any, ids: Any, spans: Any, low: Any, high: Any) -> dict[str, Any]:
    prefixes = {name: list(side.prefix_ids) for name, side in sides.items()}
    window: dict[str, Any] = {
        "student_ids": prefixes[""] + ids[""][low[0] : high[0]],
        "loss_mask": [0] * len(prefixes[""]) + [1] * (high[0] - low[0]),
    }
    for place, name in enumerate(spans, start=1):
        window[f"{name}/ids"] = prefixes[name] + ids[name][low[place] : high[place]]
        own, other = len(prefixes[""]) - low[0], len(prefixes[name]) - low[place]
        inside = [span for span in spans[name] if low[0] <= span[0] < high[0]]
        window[f"{name}/spans"] = [
            position for a, b, c, d in inside for position in (a + own, b + own, c + other, d + other)
        ]
    return window
