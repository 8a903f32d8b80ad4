"""Whether a run validates."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl

from xtoken_pl.data.module import DistillDataModule


def validates(trainer: pl.Trainer) -> bool:
    """Whether there are texts to validate on and validation is not switched off."""
    data = cast(Any, trainer).datamodule
    has_texts = not isinstance(data, DistillDataModule) or data.sources["val"] is not None
    return has_texts and trainer.enable_validation
