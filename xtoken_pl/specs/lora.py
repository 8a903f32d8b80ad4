"""LoRA as a plain specification of which layers of a student learn, and how; PEFT builds the layers."""

from __future__ import annotations

from dataclasses import dataclass, field

from xtoken_pl.utilities.checks import check_at_least_one
from xtoken_pl.utilities.errors import UserError

#: Value of ``target_modules`` for every linear layer except the head.
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoRA:
    r"""A low-rank update of frozen linear layers.

    .. math:: y = W x + \frac{\alpha}{r} B A \, \text{dropout}(x), \quad
              A \in \mathbb{R}^{r \times d_{in}}, B \in \mathbb{R}^{d_{out} \times r}

    B starts at zero, so that training begins with the unchanged student.

    Attributes:
        rank: Rank r, >= 1.
        alpha: Scale :math:`\alpha`, >= 1.
        dropout: Share of the inputs of A that is dropped in training, in [0, 1).
        target_modules: Layers to adapt: ``all-linear`` (all except the head), the last parts of their names
            (``[q_proj, v_proj]``), or a regular expression for whole names.

    Raises:
        UserError: If a value is out of range.

    References:
        [0] LoRA, 2021, https://arxiv.org/abs/2106.09685
        [1] QLoRA, 2023, https://arxiv.org/abs/2305.14314
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = field(default=ALL_LINEAR, hash=False)

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            way_out = "to train all weights, leave the student's adapter out"
            check_at_least_one(f"{name} of an adapter", getattr(self, name), way_out)
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout of an adapter must be in [0, 1), got {self.dropout}; 0 disables it")
        if not self.target_modules:
            raise UserError(
                f"target_modules of an adapter must name layers, got {self.target_modules!r}; {ALL_LINEAR!r} selects "
                "all linear layers except the head"
            )
