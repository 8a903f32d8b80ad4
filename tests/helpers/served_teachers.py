"""Served teachers whose clock does not tick by itself, and the rows of the model that the stand-in server runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stand_in_server import StandInServer
from torch import Tensor
from transformers import PreTrainedModel

from xtoken_pl.batch import AllRows, TokenBatch
from xtoken_pl.batch.quantization import floats_of
from xtoken_pl.specs import Server
from xtoken_pl.teachers.served.teacher import ServedTeacher
from xtoken_pl.tokenization import CanonicalVocabulary


def _nothing() -> None:
    """May be pickled, unlike a lambda."""


@dataclass
class Clock:
    """A clock that only sleeping moves; ``on_sleep`` is called at each."""

    time: float = 1000.0
    pauses: list[float] = field(default_factory=list)
    on_sleep: Callable[[], None] = _nothing

    def now(self) -> float:
        return self.time

    def sleep(self, event: threading.Event, seconds: float) -> None:
        self.pauses.append(seconds)
        self.time += seconds
        self.on_sleep()


def served(server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, **options: Any) -> ServedTeacher:
    """A teacher behind a stand-in server; ``options`` are those of :class:`Server`."""
    spec = Server(**({"url": server.url, "model": server.name, "top_k": 8} | options))
    return ServedTeacher("phi", spec, vocabulary, now=clock.now, sleep=clock.sleep)


def ask(teacher: ServedTeacher, tokens: TokenBatch) -> AllRows:
    """The rows of one batch."""
    (rows,) = teacher.ask([tokens])
    return rows


def token_batch(ids: list[list[int]], rows: list[list[int]], starts: list[list[int]] | None = None) -> TokenBatch:
    """Pads sequences; ``rows`` are positions in each sequence, ``starts`` the first tokens of its documents."""
    width = max(map(len, ids))
    input_ids = torch.zeros(len(ids), width, dtype=torch.long)
    for index, sequence in enumerate(ids):
        input_ids[index, : len(sequence)] = torch.tensor(sequence)
    flat = torch.tensor([index * width + row for index, own in enumerate(rows) for row in own], dtype=torch.long)
    mask = torch.tensor([[1] * len(own) + [0] * (width - len(own)) for own in ids])
    positions = None
    if starts is not None:
        of_each = []
        for own, sequence in zip(starts, ids, strict=True):
            begins = np.array([*own, len(sequence)])
            places = np.arange(width)
            of_each.append(places - begins[np.searchsorted(begins, places, side="right") - 1])
        positions = torch.from_numpy(np.stack(of_each))
    return TokenBatch(input_ids, mask, flat, input_ids.flatten()[flat + 1], positions)


@torch.no_grad()
def live_log_probs(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """``[T, V]`` log-probabilities of a text's rows, in float64."""
    log_probs: Tensor = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return log_probs


def numbers(rows: AllRows) -> dict[str, NDArray[Any]]:
    """All values of some rows."""
    values = {"log_probs": floats_of(rows.top.log_probs), "log_observed": floats_of(rows.log_observed)}
    if rows.top.ids is not None and rows.top.log_tail is not None:
        values |= {"ids": rows.top.ids, "log_tail": floats_of(rows.top.log_tail)}
    return {name: value.numpy() for name, value in values.items()}


def assert_equal_rows(found: AllRows, expected: AllRows) -> None:
    """Compares bit by bit."""
    for name, value in numbers(expected).items():
        np.testing.assert_array_equal(numbers(found)[name], value, err_msg=name)
