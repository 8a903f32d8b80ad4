"""A run's TensorBoard events, without a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from xtoken_pl.callbacks.charts import custom_scalars_layout


def write_run(folder: Path, *, layout: bool = True, image: bool = False, later: bool = False) -> Path:
    """Two charts with curves on one page, and one on another page, whose tag is logged if ``later``."""
    charts = {"Losses": {"both": ["train/loss", "train/kd"], "KD": ["train/kd"]}, "Later": {"val": ["val/ce"]}}
    with SummaryWriter(str(folder)) as writer:
        if layout:
            writer.add_custom_scalars(custom_scalars_layout(charts))
        for step in range(40):
            writer.add_scalar("train/kd", 1 + step % 5, step)
            writer.add_scalar("train/loss", 1 + math.exp(-step / 10), step)
        if later:
            writer.add_scalar("val/ce", 2.0, 40)
        if image:
            writer.add_image("audit/bars", np.stack([np.full((300, 400), level) for level in (0.1, 0.7, 0.9)]))
    return folder
