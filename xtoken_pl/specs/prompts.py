"""Specification of the prompts that a student writes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptSettings:
    """How prompts are taken from the training data.

    Attributes:
        max_new_tokens: Room that a prompt leaves in a window, on every side, for what is written behind it.
        num_bytes: Length of the prompt at the beginning of a window of a text.
        end: Regular expression behind whose first match the prompt of a window of a text ends, in place of
            ``num_bytes``.
        only: Whether the data are read for their prompts alone, since the student writes every batch.
    """

    max_new_tokens: int
    num_bytes: int = 256
    end: str | None = None
    only: bool = False
