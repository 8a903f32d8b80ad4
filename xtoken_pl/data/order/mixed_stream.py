"""A weighted mixture of streams, which can be resumed at any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import lcm
from typing import Any

from torch.utils.data import IterableDataset as TorchIterableDataset

from xtoken_pl.data.cutting import Window
from xtoken_pl.data.order.mixed_order import exact_shares
from xtoken_pl.data.order.streams import BlockStream, State
from xtoken_pl.data.worker_errors import Carried
from xtoken_pl.utilities.errors import UserError

# k sources


@dataclass(frozen=True)
class NamedStream:
    """One stream of a mixture.

    Attributes:
        name: Name of its source.
        weight: Weight > 0 of its source.
        windows: The stream.
        say_where: Puts the place of the source before the message of an error.
    """

    name: str
    weight: float
    windows: BlockStream
    say_where: Callable[[UserError], UserError]


@dataclass(eq=False, repr=False)
class MixedStream(TorchIterableDataset[Window]):
    """Reads several streams in turn, each as often as its weight says.

    After any number of windows, each source has given its share to less than one window: the source is chosen by
    Tijdeman's algorithm, the one that would fall behind its share first among those that are not ahead of it. Every
    worker of every process mixes its own shares of the texts in this way.

    Attributes:
        streams: The streams.

    References:
        R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980).
    """

    streams: Sequence[NamedStream]
    _counts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._counts = {stream.name: 0 for stream in self.streams}
        shares = exact_shares([stream.weight for stream in self.streams])
        self._total = lcm(*(share.denominator for share in shares))
        self._shares = {stream.name: int(s * self._total) for stream, s in zip(self.streams, shares, strict=True)}

    def state_dict(self) -> State:
        """Returns the position of every stream, and the number of windows that it has given."""
        positions = {stream.name: stream.windows.state_dict() for stream in self.streams}
        return {"sources": positions, "counts": dict(self._counts)}

    def load_state_dict(self, state: State) -> None:
        """Makes the next iteration begin at a position."""
        self._counts = dict(state["counts"])
        for stream in self.streams:
            stream.windows.load_state_dict(state["sources"][stream.name])

    def __iter__(self) -> Iterator[Any]:
        read = {stream.name: _read(stream) for stream in self.streams}
        while True:
            name = self._next()
            window = next(read[name])
            self._counts[name] += 1
            yield window
            if isinstance(window, Carried):
                return

    def _next(self) -> str:
        """Name of the source of the next window."""
        total, num_read = self._total, sum(self._counts.values()) + 1
        slack = max(2 * len(self._shares) - 2, 1)
        behind = {name: share * num_read - self._counts[name] * total for name, share in self._shares.items()}
        due = [name for name in behind if slack * behind[name] >= total]
        return min(due, key=lambda name: (total * (slack - 1) - slack * behind[name]) / self._shares[name])


def _read(stream: NamedStream) -> Iterator[Any]:
    """Yields the windows of a stream; an error says which one it is."""
    try:
        for window in stream.windows:
            yield Carried(stream.say_where(window.error)) if isinstance(window, Carried) else window
    except UserError as error:
        raise stream.say_where(error) from None
