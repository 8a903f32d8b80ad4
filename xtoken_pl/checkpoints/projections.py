"""What a checkpoint holds beside the student, compared with the run that loads it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from xtoken_pl.projection import LearnedProjection
from xtoken_pl.utilities.errors import UserError

_SUPPORT = ".support"


def check_learned_projections(state: dict[str, Any], module: nn.Module, *, training: bool) -> None:
    """Compares the learned projections of a checkpoint with those of ``module``.

    Outside training, those that ``module`` has no use for are left out of ``state``, with a warning.

    Args:
        state: The checkpoint's ``state_dict``.
        module: That loads it.
        training: Whether the run goes on learning.

    Raises:
        UserError: If one is missing, belongs to another W, or would be lost by going on.
    """
    learned = {name: part for name, part in module.named_modules() if isinstance(part, LearnedProjection)}
    saved = {key.removesuffix(_SUPPORT) for key in state if key.endswith(_SUPPORT)}
    if missing := sorted(learned.keys() - saved):
        raise UserError(
            f"learn_projection is set, but the checkpoint holds no learned projection of {_names(missing)}; "
            "leave learn_projection out as in the run that wrote it, or start a new run from its exported student"
        )
    unused = sorted(saved - learned.keys())
    if unused and training:
        raise UserError(
            f"the checkpoint holds a learned projection of {_names(unused)}, which this run does not learn; set "
            "learn_projection as in the run that wrote it, or start a new run from its exported student and projection"
        )
    if unused:
        rank_zero_warn(f"the learned projection of {_names(unused)} in the checkpoint is not used by this run")
        for key in [key for key in state if key.startswith(tuple(f"{name}." for name in unused))]:
            del state[key]
    for name in learned.keys() & saved:
        for key, ours in learned[name].state_dict().items():
            theirs = state[f"{name}.{key}"]
            if theirs.shape != ours.shape or (not ours.is_floating_point() and not torch.equal(theirs, ours.cpu())):
                raise UserError(
                    f"the learned projection of {_names([name])} in the checkpoint belongs to another W; give the "
                    "tokenizers, and the `projection`, of the run that wrote it"
                )


def _names(prefixes: list[str]) -> str:
    """``losses.NAME.learned`` -> teacher 'NAME'."""
    return ", ".join(f"teacher {prefix.split('.')[1]!r}" for prefix in prefixes)
