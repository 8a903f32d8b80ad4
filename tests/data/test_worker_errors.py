"""A UserError in a loader's worker arrives in the main process as it was raised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from xtoken_pl.data.worker_errors import CarryingCollate, carrying_iterator, raise_carried
from xtoken_pl.utilities.errors import UserError

MESSAGE = "rank must be >= 1, got 0; leave it out"


class Windows(torch.utils.data.Dataset[int]):
    """Fails for window 3, on purpose or by a defect."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 6

    def __getitems__(self, indices: list[int]) -> list[int]:
        return list(self._read(indices))

    @carrying_iterator
    def _read(self, indices: list[int]) -> Iterator[int]:
        for index in indices:
            if index == 3:
                raise self.error
            yield index


class Stream(IterableDataset[int]):
    @carrying_iterator
    def __iter__(self) -> Iterator[int]:
        yield from range(3)
        raise UserError(MESSAGE)


def failing_collate(windows: Any) -> Any:
    raise UserError(MESSAGE)


def loader(windows: Any, num_workers: int, collate: Any = list) -> Iterator[Any]:
    return raise_carried(
        DataLoader(windows, batch_size=2, num_workers=num_workers, collate_fn=CarryingCollate(collate))
    )


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("source", ["windows", "stream"])
def test_batches_before_the_error_arrive_and_then_the_error(source: str, num_workers: int) -> None:
    windows = Stream() if source == "stream" else Windows(UserError(MESSAGE))
    batches = loader(windows, num_workers)
    assert next(batches) == [0, 1]
    with pytest.raises(UserError) as raised:
        next(batches)
    assert str(raised.value) == MESSAGE


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_while_a_batch_is_put_together_arrives(num_workers: int) -> None:
    with pytest.raises(UserError) as raised:
        next(loader(Windows(UserError(MESSAGE)), num_workers, failing_collate))
    assert str(raised.value) == MESSAGE


def test_a_defect_in_a_worker_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match="Original Traceback"):
        list(loader(Windows(KeyError("key")), 1))
