"""The data pipeline: texts -> windows that every model reads whole -> batches.

What needs the `datasets` library is imported when it is first used: batches are made and trained on without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xtoken_pl.data.collate import collate
from xtoken_pl.data.order.whole_steps import whole_steps
from xtoken_pl.data.windows import Windower

if TYPE_CHECKING:
    from xtoken_pl.data.module import DistillDataModule
    from xtoken_pl.data.sources.text_source import TextSource, load_source

__all__ = ["DistillDataModule", "TextSource", "Windower", "collate", "load_source", "whole_steps"]

_MODULES = {"DistillDataModule": "module", "TextSource": "sources.text_source", "load_source": "sources.text_source"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
