"""Losses that a user of the package could write, each in one file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from shown_code import code_blocks
from torch import Tensor

from xtoken_pl import SpanLoss
from xtoken_pl.losses import LossCounterparts, RowContent, SpanBlock, SpanScores, TokenCounterparts

EXTENDING = (Path(__file__).parents[2] / "docs/extending.md").read_text()


def hidden_cosine(student_size: int, teacher_size: int) -> SpanLoss:
    """The example of docs/extending.md that reads hidden states."""
    (code,) = (block for block in code_blocks(EXTENDING, "python") if re.search("^class HiddenCosine", block, re.M))
    names: dict[str, Any] = {"__name__": "my_features"}
    exec(code, names)
    return names["HiddenCosine"](student_size, teacher_size)


class LeadingByte(SpanLoss):
    """Squared distance of the masses that both sides give to a span's first byte; not one of the package's classes.

    Args:
        scale: Factor of the loss.
    """

    student_byte: Tensor  # [V_s], 256 for none
    teacher_byte: Tensor  # [V_t]

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.top_k: int | None = None

    def bind(self, student: Any, teacher: Any, projection: Any) -> None:
        for name, side in (("student_byte", student), ("teacher_byte", teacher)):
            first = torch.tensor([raw[0] if raw else 256 for raw in side.token_bytes])
            self.register_buffer(name, first, persistent=False)

    def forward(self, block: SpanBlock) -> SpanScores:
        ours, theirs = block.student.first_rows().exp(), block.teacher.first_rows().exp()
        masses = (
            rows.new_zeros(len(rows), 257).index_add(1, byte, rows)
            for rows, byte in ((ours, self.student_byte), (theirs, self.teacher_byte))
        )
        mine, other = masses
        agreement = None if self.training else (mine.argmax(1) == other.argmax(1)).float()
        loss = self.scale * (mine - other).square().sum(1)
        return SpanScores(loss, torch.zeros_like(loss.detach()), agreement)

    def counterparts(self, student_ids: Iterable[int]) -> LossCounterparts:
        def of(token_id: int) -> TokenCounterparts:
            byte = self.student_byte[token_id]
            ids = (self.teacher_byte == byte).nonzero().squeeze(1).tolist() if byte < 256 else []
            return TokenCounterparts("multi-token" if ids else "rest", ids[:2], [1.0] * len(ids[:2]))

        return LossCounterparts("tokens of the same first byte", {i: of(i) for i in student_ids})

    def state_bytes(self, student_size: int, teacher_size: int, *, learned: bool = False) -> int:
        return 8 * (student_size + teacher_size)

    @property
    def row_needs(self) -> RowContent:
        return RowContent("span_starts")

    def limit_teacher_tokens(self, top_k: int) -> str | None:
        self.top_k = top_k
        return f"top_k of LeadingByte -> {top_k}"
