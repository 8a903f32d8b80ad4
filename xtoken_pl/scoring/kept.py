"""What the first pass keeps of a block for the second one."""

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
    """The gradients of a block's losses, each for a weight of one, in memory that is lent.

    Attributes:
        probs: ``[P, V_s]`` the student's probabilities, for the cross-entropy.
        units: By teacher, ``[P, V_s]`` the gradient of the student's logits.
        hidden_units: By teacher whose loss reads hidden states, the gradient of the student's, ``[P, H]`` in pieces.
    """

    probs: Tensor
    units: dict[str, Tensor]
    hidden_units: dict[str, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def allocate(
        cls, student: HiddenRows, teachers: Iterable[str], num_rows: int, dtype: torch.dtype, memory: LogitMemory
    ) -> KeptGradients:
        """Takes memory for a block of ``num_rows`` rows, whose losses are computed in ``dtype``."""
        size, device = student.head.vocabulary_size, student.hidden.device
        probs, *units = (memory.take(num_rows, size, dtype, device) for _ in ("", *teachers))
        return cls(probs, dict(zip(teachers, units, strict=True)))

    def combine(
        self,
        block: Block,
        student: HiddenRows,
        teachers: Mapping[str, TeacherTask],
        token_nats: Tensor,
        span_weights: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor | float]:
        """The block's gradients for the weights of all rows and spans; overwrites :attr:`probs`.

        Returns:
            ``[P, V_s]`` of the logits, and ``[P, H]`` of the hidden states that losses read, or 0.
        """
        rows, weight = block.student_rows, token_nats[block.student_rows, None].to(self.probs.dtype)
        grad = self.probs[: len(weight)].mul_(weight)
        subtract_at(grad, student.labels[rows], weight)
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
