"""What several callbacks check before training."""

from __future__ import annotations

import lightning.pytorch as pl

from xtoken_pl.module import MultiTeacherDistillModule


def distill_module(module: pl.LightningModule, callback: pl.Callback) -> MultiTeacherDistillModule:
    """The module, if it is one that distils.

    Raises:
        TypeError: If it is another one.
    """
    if not isinstance(module, MultiTeacherDistillModule):
        raise TypeError(
            f"{type(callback).__name__} works with MultiTeacherDistillModule and its subclasses, "
            f"got {type(module).__name__}"
        )
    return module
