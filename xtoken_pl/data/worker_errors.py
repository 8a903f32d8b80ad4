"""Carries a UserError out of a DataLoader worker as a value, since torch would put a traceback into its message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch.utils.data import get_worker_info

from xtoken_pl.utilities.errors import UserError


@dataclass(frozen=True)
class Carried:
    """Takes the place of a window or a batch that could not be made."""

    error: UserError


def raise_carried(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields the batches of a loader, in the main process.

    Raises:
        UserError: An error of a worker, as it was raised there.
    """
    for batch in batches:
        if isinstance(batch, Carried):
            raise batch.error
        yield batch


def carrying_iterator(iterate: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Decorates a generator of windows: in a worker, an error becomes its last window."""

    @wraps(iterate)
    def carrying(*arguments: Any) -> Iterator[Any]:
        try:
            yield from iterate(*arguments)
        except UserError as error:
            if get_worker_info() is None:
                raise
            yield Carried(error)

    return carrying


@dataclass(frozen=True)
class CarryingCollate:
    """A collate function that passes on an error of its windows and, in a worker, its own."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, windows: list[Any]) -> Any:
        carried = [window for window in windows if isinstance(window, Carried)]
        return carried[0] if carried else next(self._batches(windows))

    @carrying_iterator
    def _batches(self, windows: list[Any]) -> Iterator[Any]:
        yield self.collate(windows)
