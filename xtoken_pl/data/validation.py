"""Whether a run validates, and on which sources."""

from __future__ import annotations

import sys
from itertools import accumulate
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.utilities.processes import data_share

if TYPE_CHECKING:
    from xtoken_pl.data.module import DistillDataModule


def distill_data(trainer: pl.Trainer) -> DistillDataModule | None:
    """Returns the data module of a run, if it is that of this package; other data do not need `datasets`."""
    data = getattr(trainer, "datamodule", None)
    ours = sys.modules.get("xtoken_pl.data.module")  # imported, if there is an instance
    return data if ours is not None and isinstance(data, ours.DistillDataModule) else None


def validates(trainer: pl.Trainer) -> bool:
    """Whether there are texts to validate on and validation is not switched off."""
    data = distill_data(trainer)
    has_texts = data is None or data.sources["val"] is not None
    return has_texts and trainer.enable_validation


def warn_of_unread_sources(trainer: pl.Trainer, split: str) -> None:
    """Warns if a limit on the batches of ``val`` or ``test`` leaves out whole sources, which are read one by one."""
    data = distill_data(trainer)
    if trainer.sanity_checking or data is None:
        return
    num_batches = sum(trainer.num_val_batches if split == "val" else trainer.num_test_batches)
    num_read = num_batches * data.batch_size * data_share(trainer).number
    parts = data.parts(split)
    firsts = accumulate((part.size for part in parts), initial=0)
    if unread := [part.part.name for part, first in zip(parts, firsts, strict=False) if first >= num_read > 0]:
        option = f"trainer.limit_{split}_batches"
        rank_zero_warn(
            f"{option} ends before these sources of data.{split}: {', '.join(unread)}. Their values are NaN, and those "
            f"of all sources are of the others alone; raise {option}, or leave it out"
        )
