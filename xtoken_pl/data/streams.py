"""A stream of windows to train on, which goes on from any batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.windows import Window
from xtoken_pl.data.worker_errors import carrying_iterator, raise_carried
from xtoken_pl.utilities.errors import UserError

#: Of a stream or a loader, of types that torch.load takes with ``weights_only``.
State = dict[str, Any]


class BlockStream(TorchIterableDataset[Window]):
    """Reads texts again and again, and shuffles their windows block by block.

    Each worker of each process reads texts of its own. It collects at least ``block_size`` windows, emits them in an
    order that follows from the seed, the epoch and the number of the block, and goes on with the next block. Where it
    stands is thus told by the place in the texts where the block begins and the number of windows emitted; to go on,
    one block is read again. There is no end, so that processes whose shares differ in size stop together.

    Args:
        texts: The stream.
        maker: Makes windows of texts.
        block_size: Windows to shuffle among, at the least.
        documents_per_call: Texts that are tokenized at once.
        seed: Of the shuffling.
        num_processes: That train together.
        rank: Of this process.

    Raises:
        UserError: While reading, if this share of the texts has no window.
    """

    def __init__(
        self,
        texts: IterableDataset,
        maker: WindowMaker,
        *,
        block_size: int,
        documents_per_call: int,
        seed: int,
        num_processes: int = 1,
        rank: int = 0,
    ) -> None:
        self.texts = texts
        self.maker = maker
        self.block_size = block_size
        self.documents_per_call = documents_per_call
        self.seed = seed
        self.num_processes = num_processes
        self.rank = rank
        self._state: State = {"epoch": 0, "block": 0, "num_emitted": 0, "texts": None}

    def state_dict(self) -> State:
        """Where the stream stands."""
        return dict(self._state)

    def load_state_dict(self, state: State) -> None:
        """Makes the next iteration begin there."""
        self._state = dict(state)

    @carrying_iterator
    def __iter__(self) -> Iterator[Window]:
        epoch, block, num_emitted, begin = (self._state[key] for key in ("epoch", "block", "num_emitted", "texts"))
        share, num_shares = self._share()
        texts = split_dataset_by_node(self.texts, rank=share, world_size=num_shares)
        while True:
            texts.set_epoch(epoch)
            if begin is not None:
                texts.load_state_dict(begin)
            read = self._read(texts)
            current = _Block(begin)
            current.grow(read, self.block_size)
            while current.windows:
                following = _Block(texts.state_dict())
                order = np.random.default_rng((self.seed, share, epoch, block)).permutation(len(current.windows))
                for place in order[num_emitted:]:
                    num_emitted += 1
                    self._state = {"epoch": epoch, "block": block, "num_emitted": num_emitted, "texts": current.begin}
                    yield current.take(place)
                    # The next block grows as this one is used up: all workers would read, and training wait, at once.
                    following.grow(read, self.block_size * num_emitted // len(order))
                following.grow(read, self.block_size)
                current, block, num_emitted = following, block + 1, 0
            if block == 0:
                raise UserError(
                    f"every worker of every process needs texts of its own, and share {share + 1} of {num_shares} of "
                    "the stream has none; set data.num_workers or the number of processes lower, or data.streaming to "
                    "false"
                )
            epoch, block, begin = epoch + 1, 0, None

    def _share(self) -> tuple[int, int]:
        worker = get_worker_info()
        if worker is None:
            return self.rank, self.num_processes
        return self.rank * worker.num_workers + worker.id, self.num_processes * worker.num_workers

    def _read(self, texts: IterableDataset) -> Iterator[list[Window]]:
        """The windows of some texts, and of the next ones."""
        for documents in texts.iter(batch_size=self.documents_per_call):
            columns = self.maker(*(documents[column] for column in self.maker.columns))
            arrays = [[np.asarray(value, dtype=np.int32) for value in values] for values in columns.values()]
            yield [dict(zip(columns, row, strict=True)) for row in zip(*arrays, strict=True)]


class _Block:
    """Windows to shuffle among, and the place in the texts where they begin."""

    def __init__(self, begin: State | None) -> None:
        self.begin = begin
        self.windows: list[Window | None] = []

    def grow(self, read: Iterator[list[Window]], size: int) -> None:
        """Reads until there are so many windows, or no text is left."""
        while len(self.windows) < size and (more := next(read, None)) is not None:
            self.windows += more

    def take(self, place: int) -> Window:
        """A window, which is not needed again."""
        window, self.windows[place] = self.windows[place], None
        assert window is not None
        return window


class StreamLoader:
    """Batches of a stream, and where it stood behind each of the latest of them.

    Lightning fetches one batch ahead: what counts is the batch that was trained last.

    Args:
        loader: Of the stream.
        num_done: Tells how many batches are done since training began.
        begin: Where to begin: batches done, and the state behind them, None for the beginning of the stream.
    """

    def __init__(
        self, loader: StatefulDataLoader[Any], num_done: Callable[[], int], begin: tuple[int, State | None]
    ) -> None:
        self.loader: StatefulDataLoader[Any] | None = loader
        self.num_done = num_done
        self._batches: Generator[Any, None, None] | None = None
        self._begin = begin
        self._states: deque[tuple[int, State | None]] = deque(maxlen=4)

    def __iter__(self) -> Iterator[Any]:
        self._batches = self._read()
        return self._batches

    def _read(self) -> Generator[Any, None, None]:
        assert self.loader is not None
        # An epoch of a limited number of batches leaves one behind that was fetched ahead.
        count, state = self._stand() if self._states else self._begin
        self._states.append((count, state))
        if state is not None:
            self.loader.load_state_dict(state)
        for batch in raise_carried(self.loader):
            count += 1
            self._states.append((count, self.loader.state_dict()))
            yield batch

    def close(self) -> None:
        """Ends the workers, at once: those of a loader that waits for the garbage collector take seconds each."""
        if self._batches is not None:
            self._batches.close()
        self._batches = self.loader = None

    def state(self) -> State | None:
        """Where the stream stands behind the batches that are done; None before the first."""
        return self._stand()[1]

    def _stand(self) -> tuple[int, State | None]:
        num_done = self.num_done()
        if num_done == self._begin[0]:
            return self._begin
        for stand in reversed(self._states):
            if stand[0] == num_done:
                return stand
        raise AssertionError(
            f"{num_done} batches are done, and states are kept of {[count for count, _ in self._states]}"
        )
