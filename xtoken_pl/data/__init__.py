"""The data pipeline: texts -> windows that every model reads whole -> batches."""

from xtoken_pl.data.collate import collate
from xtoken_pl.data.module import DistillDataModule
from xtoken_pl.data.order.whole_steps import whole_steps
from xtoken_pl.data.sources.text_source import TextSource, load_source
from xtoken_pl.data.windows import Windower

__all__ = ["DistillDataModule", "TextSource", "Windower", "collate", "load_source", "whole_steps"]
