"""Carries a UserError out of a DataLoader worker: as a value, since torch would put a traceback into its message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch.utils.data import Dataset, get_worker_info

from xtoken_pl.utilities.errors import UserError


@dataclass(frozen=True)
class Carried:
    """A window or a batch that could not be made."""

    error: UserError


def raise_carried(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches of a loader, in the main process.

    Raises:
        UserError: That of a worker, as it was raised there.
    """
    for batch in batches:
        if isinstance(batch, Carried):
            raise batch.error
        yield batch


class CarryingDataset(Dataset[Any]):
    """Windows of a data set; in a worker, an error takes the place of the windows."""

    def __init__(self, windows: Any) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Any:
        return _carry(self.windows.__getitem__, index)

    def __getitems__(self, indices: list[int]) -> Any:
        """The windows of a batch, read at once."""
        windows = _carry(self.windows.__getitems__, indices)
        return [windows] if isinstance(windows, Carried) else windows


class CarryingCollate:
    """A collate function that passes on errors of its windows and, in a worker, its own."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, windows: Sequence[Any]) -> Any:
        carried = next((window for window in windows if isinstance(window, Carried)), None)
        return _carry(self.collate, windows) if carried is None else carried


def carrying_iterator(iterate: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    """Decorates the ``__iter__`` of a stream: in a worker, an error becomes its last window."""

    @wraps(iterate)
    def carrying(self: Any) -> Iterator[Any]:
        try:
            yield from iterate(self)
        except UserError as error:
            if get_worker_info() is None:
                raise
            yield Carried(error)

    return carrying


def _carry(make: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return make(argument)
    except UserError as error:
        if get_worker_info() is None:
            raise
        return Carried(error)
