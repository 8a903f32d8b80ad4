"""Gradients of a block that the first pass keeps for the second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xtoken_pl.batch import Block
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.tasks import HiddenRows, TeacherTask

# P rows, H hidden size, V_s student's vocabulary size


@dataclass
class KeptGradients:
    """Gradients of a block's losses, each for a weight of one, in lent memory.

    Attributes:
        probs: ``[P, V_s]`` the student's probabilities, for the cross-entropy.
        units: ``[P, V_s]`` gradient of the student's logits, by teacher.
        hidden_units: Gradient of the student's hidden states in pieces, ``[P, H]`` together, by teacher whose loss
            reads hidden states.
        label_slope: ``[P]`` the slope of the head's transformation at the observed tokens, by which
            :attr:`probs` are multiplied where they are; None without a transformation.
    """

    probs: Tensor
    units: dict[str, Tensor]
    hidden_units: dict[str, list[Tensor]] = field(default_factory=dict)
    label_slope: Tensor | None = None

    @classmethod
    def allocate(
        cls, student: HiddenRows, teachers: Iterable[str], num_rows: int, dtype: torch.dtype, memory: LogitMemory
    ) -> KeptGradients:
        """Takes memory for a block of ``num_rows`` rows, whose losses are computed in ``dtype``."""
        size, device = student.head.vocabulary_size, student.hidden.device
        probs, *units = (memory.take(num_rows, size, dtype, device) for _ in ("", *teachers))
        return cls(probs, dict(zip(teachers, units, strict=True)))

    def apply_slope(self, rows: slice, slope: Tensor, labels: Tensor) -> None:
        """Makes the gradient of the cross-entropy at some rows that of the logits before the head's transformation."""
        if self.label_slope is None:
            self.label_slope = self.probs.new_empty(len(self.probs))
        self.label_slope[rows] = slope.gather(1, labels[:, None]).squeeze(1)
        self.probs[rows] *= slope

    def combine(
        self,
        block: Block,
        student: HiddenRows,
        teachers: Mapping[str, TeacherTask],
        token_nats: Tensor,
        span_weights: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor | float]:
        """Weights and adds the block's gradients; overwrites :attr:`probs`.

        Args:
            block: The block.
            student: All student rows.
            teachers: Tasks by teacher.
            token_nats: ``[N]`` weight of each row's cross-entropy.
            span_weights: ``[S]`` weight of each span's loss, by teacher.

        Returns:
            ``[P, V_s]`` of the logits, and ``[P, H]`` of the hidden states that losses read, or 0.
        """
        rows, weight = block.student_rows, token_nats[block.student_rows, None].to(self.probs.dtype)
        grad = self.probs[: len(weight)].mul_(weight)
        slope = 1.0 if self.label_slope is None else self.label_slope[: len(weight), None]
        subtract_at(grad, student.labels[rows], weight * slope)
        of_hidden: Tensor | float = 0.0
        for name, unit in self.units.items():
            # A span's loss depends on its own rows alone, so that its weight is that of these rows.
            of_span = torch.cat((span_weights[name], span_weights[name].new_zeros(1)))
            of_row = of_span[teachers[name].spans.student_span[rows], None].to(unit.dtype)
            grad.addcmul_(unit[: len(grad)], of_row)
            if name in self.hidden_units:
                of_hidden = of_hidden + torch.cat(self.hidden_units[name]) * of_row
        return grad, of_hidden

    def give_back(self, memory: LogitMemory) -> None:
        """Gives the memory back."""
        memory.give(self.probs, *self.units.values())


def subtract_at(rows: Tensor, labels: Tensor, values: Tensor) -> None:
    """``rows[i, labels[i]] -= values[i]``."""
    rows[torch.arange(len(rows), device=rows.device), labels] -= values.squeeze(1)
