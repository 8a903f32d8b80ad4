"""Prompts that a student writes from, as the batches of a loader carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xtoken_pl.batch.columns import DOMAIN, PROMPT, prompt_column


@dataclass(frozen=True)
class Prompt:
    """One prompt as every side reads it: the beginning of a text, or a conversation that the assistant is to answer.

    Attributes:
        ids: Token ids by side, the student's under ``""``; only of teachers that teach on its source.
        is_chat: Whether it ends as a chat template's prompt does, rather than within a text.
        is_cut: Whether its beginning is left out, on every side alike, because it is too long.
        domain: Index of its domain among those of the training data.
    """

    ids: dict[str, list[int]]
    is_chat: bool
    is_cut: bool = False
    domain: int = 0

    @classmethod
    def from_window(cls, window: Mapping[str, Any], teachers: Sequence[str]) -> Prompt | None:
        """Reads the prompt of a window; None if it has none.

        Args:
            window: Columns of the window.
            teachers: Names of the teachers.
        """
        flags = [bool(flag) for flag in window.get(PROMPT, ())]
        if not flags:
            return None
        sides = {side: window[prompt_column(side)] for side in ("", *teachers) if prompt_column(side) in window}
        ids = {side: [int(token) for token in own] for side, own in sides.items() if len(own)}
        is_chat, is_cut = flags
        return cls(ids, is_chat, is_cut, int(window.get(DOMAIN, 0)))
