"""Where a part runs and how large, and what a part raises if it cannot run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure import Figure

# Models, tokenizers, and the rows of all losses are those of the tests.
sys.path.insert(0, str(Path(__file__).parents[2] / "tests/helpers"))


class NotRunError(Exception):
    """A part cannot run here, for a reason that is no fault: a package is not installed."""


@dataclass(frozen=True)
class Setting:
    """Where a part runs.

    Attributes:
        device: Device that is checked.
        is_full: Whether models have their real sizes; otherwise everything is in miniature.
    """

    device: torch.device
    is_full: bool

    @classmethod
    def found(cls, *, is_miniature: bool = False) -> Setting:
        """The GPU at full size if there is one, else the CPU in miniature.

        Args:
            is_miniature: Whether to run in miniature on the GPU, too.
        """
        has_gpu = torch.cuda.is_available()
        return cls(torch.device("cuda:0" if has_gpu else "cpu"), has_gpu and not is_miniature)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def accelerator(self) -> str:
        """Lightning's name of the device."""
        return "gpu" if self.on_gpu else "cpu"


#: Yields the figures of a part as they are taken.
Figures = Callable[[Setting], Iterator[Figure]]
