"""A stream of training windows, which can be resumed at any batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from xtoken_pl.data.cutting import Window
from xtoken_pl.data.left_out import LeftOut
from xtoken_pl.data.maker import DOCUMENTS_PER_CALL, WindowMaker
from xtoken_pl.data.order.whole_steps import whole_steps
from xtoken_pl.data.sources.text_source import readable_batches
from xtoken_pl.data.worker_errors import carrying_iterator, raise_carried
from xtoken_pl.utilities.errors import UserError

#: Position of a stream or a loader; its types are accepted by torch.load with ``weights_only``.
State = dict[str, Any]
_BEGINNING: State = {"epoch": 0, "block": 0, "num_emitted": 0, "texts": None}


@dataclass(eq=False, repr=False)
class BlockStream(TorchIterableDataset[Window]):
    """Reads texts again and again, and shuffles their windows block by block.

    Each worker of each process reads its own share of the texts. It collects at least ``block_size`` windows, emits
    them in an order that depends on the seed, the epoch and the number of the block, and continues with the next block.
    Its position is therefore the place where the block begins (a place in the texts, and a number of windows after it)
    and the number of windows emitted; on resume, one block is read again. The stream never ends, so that processes
    whose shares differ in size stop together.

    Attributes:
        texts: Stream of texts.
        maker: Makes windows from texts.
        block_size: Minimum number of windows of a block.
        documents_per_call: Number of texts that are tokenized at once.
        seed: Seed of the shuffling.
        num_processes: Number of processes that train together.
        rank: Rank of this process.
        mark: Adds the domain to a window.

    Raises:
        UserError: While reading, if this share of the texts has no window.
    """

    texts: IterableDataset
    maker: WindowMaker
    _: KW_ONLY
    block_size: int
    documents_per_call: int = DOCUMENTS_PER_CALL
    seed: int
    num_processes: int = 1
    rank: int = 0
    mark: Callable[[Window], Window] = dict
    _state: State = field(init=False, default_factory=_BEGINNING.copy)
    _left_out: LeftOut = field(init=False, default_factory=LeftOut)

    def state_dict(self) -> State:
        """Returns the position of the stream."""
        return dict(self._state)

    def load_state_dict(self, state: State) -> None:
        """Makes the next iteration begin at a position."""
        self._state = dict(state)

    @carrying_iterator
    def __iter__(self) -> Iterator[Window]:
        epoch, block, num_emitted, begin = (self._state[key] for key in ("epoch", "block", "num_emitted", "texts"))
        num_skipped = self._state.get("num_skipped", 0)
        share, num_shares = self._share()
        texts = split_dataset_by_node(self.texts, rank=share, world_size=num_shares)
        while True:
            texts.set_epoch(epoch)
            if begin is not None:
                texts.load_state_dict(begin)
            read = self._read(texts, begin, num_skipped)
            current = _Block(begin, num_skipped)
            current.grow(read, self.block_size)
            while current.windows:
                following = _Block(*current.end)
                order = np.random.default_rng((self.seed, share, epoch, block)).permutation(len(current.windows))
                for place in order[num_emitted:]:
                    num_emitted += 1
                    self._state = {"epoch": epoch, "block": block, "num_emitted": num_emitted, "texts": current.begin}
                    if current.num_skipped:
                        self._state["num_skipped"] = current.num_skipped
                    yield self.mark(current.take(place))
                    # The next block grows as this one is used up: else all workers would read, and training wait.
                    following.grow(read, self.block_size * num_emitted // len(order))
                following.grow(read, self.block_size)
                current, block, num_emitted = following, block + 1, 0
            if block == 0:
                raise UserError(
                    f"every worker of every process needs texts of its own, and share {share + 1} of {num_shares} of "
                    "the stream has none; set data.num_workers or the number of processes lower, or data.streaming to "
                    "false"
                )
            epoch, block, begin, num_skipped = epoch + 1, 0, None, 0

    def _share(self) -> tuple[int, int]:
        worker = get_worker_info()
        num_workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        return self.rank * num_workers + number, self.num_processes * num_workers

    def _read(self, texts: IterableDataset, begin: State | None, num_skipped: int) -> Iterator[_Read]:
        """Yields the windows of the texts, ``documents_per_call`` texts at a time, and a long text piece by piece."""
        for documents in readable_batches(texts.iter(batch_size=self.documents_per_call), self.maker.source):
            num_read, to_skip = 0, num_skipped
            for piece in self.maker.pieces(*(documents[column] for column in self.maker.columns)):
                if self._left_out.add(piece.left_out):
                    lost = self._left_out
                    rank_zero_warn(
                        f"{lost.count:,} {self.maker.left_out_are[1]} of {self.maker.source.path!r} are left out so "
                        f"far. The first: {lost.reason}"
                    )
                num_read += len(piece.windows)
                windows = piece.windows[to_skip:]
                to_skip -= len(piece.windows) - len(windows)
                is_end = piece.done == 1
                end = (texts.state_dict(), 0) if is_end else (begin, num_read)
                if windows or is_end:
                    yield _Read([_compact(window) for window in windows], end)
            begin, num_skipped = texts.state_dict(), 0


class _Read(NamedTuple):
    """Windows that were read, and where the following ones begin: see :class:`_Block`."""

    windows: list[Window]
    end: tuple[State | None, int]


class _Block:
    """Windows that are shuffled together, and the place where they begin.

    Attributes:
        begin: Place in the texts; None for the beginning.
        num_skipped: Number of windows after that place that belong to earlier blocks.
        end: ``begin`` and ``num_skipped`` of the next block.
    """

    def __init__(self, begin: State | None, num_skipped: int) -> None:
        self.begin, self.num_skipped = begin, num_skipped
        self.end = begin, num_skipped
        self.windows: list[Window | None] = []

    def grow(self, read: Iterator[_Read], size: int) -> None:
        """Reads until there are ``size`` windows, or no text is left."""
        while len(self.windows) < size and (more := next(read, None)) is not None:
            self.windows += more.windows
            self.end = more.end

    def take(self, place: int) -> Window:
        """Removes and returns a window."""
        window, self.windows[place] = self.windows[place], None
        assert window is not None
        return window


def _compact(window: Window) -> Window:
    return {column: np.asarray(values, dtype=np.int32) for column, values in window.items()}


class StreamLoader:
    """Loader of a stream, which stores the position of the stream after each of the latest batches.

    Batches are fetched ahead: the position of a run is the one after the last optimizer step.

    Args:
        loader: Loader of the stream.
        num_done: Returns the number of batches of all optimizer steps since training began.
        begin: Number of batches trained, and the position to begin at; None for the beginning of the stream.
        step_sizes: Yields the number of batches of each optimizer step, when an iteration begins.
    """

    def __init__(
        self,
        loader: StatefulDataLoader[Any],
        num_done: Callable[[], int],
        begin: tuple[int, State | None],
        step_sizes: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        self.loader: StatefulDataLoader[Any] | None = loader
        self.num_done = num_done
        self.step_sizes = step_sizes
        self._batches: Generator[Any, None, None] | None = None
        self._begin = begin
        self._states: deque[tuple[int, State | None]] = deque()

    def __iter__(self) -> Iterator[Any]:
        self._batches = self._read()
        return whole_steps(self._batches, self.step_sizes())

    def _read(self) -> Generator[Any, None, None]:
        assert self.loader is not None
        # An epoch with a limited number of batches leaves a batch that was fetched ahead.
        count, state = self._position() if self._states else self._begin
        self._states.append((count, state))
        if state is not None:
            self.loader.load_state_dict(state)
        for batch in raise_carried(self.loader):
            count += 1
            self._states.append((count, self.loader.state_dict()))
            while self._states[0][0] < self.num_done():
                self._states.popleft()
            yield batch

    def close(self) -> None:
        """Ends the workers at once; left to the garbage collector, each would take seconds."""
        if self._batches is not None:
            self._batches.close()
        self._batches = self.loader = None

    def state(self) -> State | None:
        """Returns the position after the batches that were trained; None before the first."""
        return self._position()[1]

    def _position(self) -> tuple[int, State | None]:
        num_done = self.num_done()
        if num_done == self._begin[0]:
            return self._begin
        stored = dict(self._states)
        assert num_done in stored, f"{num_done} batches were trained, but positions are stored for {list(stored)}"
        return num_done, stored[num_done]
