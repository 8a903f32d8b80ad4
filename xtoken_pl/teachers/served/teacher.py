"""A teacher behind a server, as a source of rows."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.batch import AllRows, TeacherBatch, TokenBatch
from xtoken_pl.checkpoints.served_weights import served_fingerprint
from xtoken_pl.losses.row_content import RowContent
from xtoken_pl.scoring.tasks import GivenRows
from xtoken_pl.specs import Server
from xtoken_pl.teachers.served.answers import Question, join_rows
from xtoken_pl.teachers.served.api import Api
from xtoken_pl.teachers.served.client import ServerClient
from xtoken_pl.teachers.served.scoring import Probe, Scorer
from xtoken_pl.teachers.served.sglang import SglangApi
from xtoken_pl.teachers.served.vllm import VllmApi
from xtoken_pl.teachers.source import GivenSource
from xtoken_pl.tokenization import CanonicalVocabulary

# B sequences, T padded length, N rows, k tokens stored of each row, V_t teacher's vocabulary size

_APIS: dict[str, type[Api]] = {"vllm": VllmApi, "sglang": SglangApi}
#: Text whose ids and log-probabilities tell tokenizers and weights apart.
PROBE_TEXT = (
    "The first of 1234567 tests: I'll pay $3.14\n\n\tdef f(x):\r\n    return x**2  # naïve café\n"
    "数字 — Привет, мир! a_b-c/d\\e ABCdef\n"
)
_MAX_PROBE_TOKENS = 32


class ServedTeacher(GivenSource):
    """Asks a server for the rows of batches.

    It may be sent to other processes: each makes its own client when it first asks, and reads the API key from the
    environment then.

    Args:
        name: Name of the teacher.
        server: The server, with the name of the model.
        vocabulary: Vocabulary of the teacher.
        now: Clock, in seconds.
        sleep: Function that waits for an event for some seconds.
    """

    def __init__(
        self,
        name: str,
        server: Server,
        vocabulary: CanonicalVocabulary,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        super().__init__(name, vocabulary)
        assert server.model is not None, "a teacher fills it in"
        self.server, self.model = server, server.model
        self.top_k = None if server.top_k == "all" else server.top_k
        ids = (*vocabulary.prefix_ids, *vocabulary.encode([PROBE_TEXT])[0])
        self.probe = Probe(ids[:_MAX_PROBE_TOKENS])
        self._now, self._sleep = now, sleep
        self._scorer: tuple[int, Scorer] | None = None  # with the process that it belongs to

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_scorer": None, "_holes": {}}

    @property
    def gives(self) -> RowContent:
        """Every row, with the k most probable tokens."""
        return RowContent("all", self.top_k)

    @property
    def scorer(self) -> Scorer:
        """The process's own connection to the server."""
        process = os.getpid()
        if self._scorer is None or self._scorer[0] != process:
            client = ServerClient(self.name, self.server, self._now, self._sleep)
            api = _APIS[self.server.api](self.model, client.place)
            self._scorer = process, Scorer(client, api, self.vocabulary.exists, self.probe, self._now)
        return self._scorer[1]

    @property
    def is_checked(self) -> bool:
        """Whether the server has been checked: the log-probabilities of its probe are known."""
        return self.probe.log_probs is not None

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the server's model, as checkpoints and caches store it; None before the server is checked."""
        known = self.probe.log_probs
        return None if known is None else served_fingerprint(self.model, known.tolist())

    def remember_probe(self, log_probs: NDArray[np.float32]) -> None:
        """Stores the probe's log-probabilities, which later answers are compared with in all processes."""
        self.probe = self.scorer.probe = Probe(self.probe.ids, log_probs)

    def rows(self, view: TeacherBatch) -> GivenRows:
        """Returns the rows of a batch; asks for them if they do not come with it."""
        known = view.known
        if known is None:
            (asked,) = self.ask([view.tokens])
            known = asked.to(view.tokens.labels.device)
        return self.given(known, view)

    def ask(self, batches: Sequence[TokenBatch], abandoned: threading.Event | None = None) -> list[AllRows]:
        """Asks for all rows of some batches, several texts at a time.

        Args:
            batches: The batches.
            abandoned: Event that ends the requests, and is set after an error.

        Returns:
            For each batch its rows in the order of ``tokens.rows``, on the CPU.

        Raises:
            UserError: If the server refuses, or does not answer within its ``patience``.
        """
        of_batches = [list_questions(tokens, self.top_k) for tokens in batches]
        questions = list(chain.from_iterable(of_batches))
        texts = iter(self.scorer.ask_all(questions, self.server.concurrency, abandoned))
        return [join_rows(list(islice(texts, len(own))), self.top_k, len(self.vocabulary)) for own in of_batches]


def list_questions(tokens: TokenBatch, top_k: int | None) -> list[Question]:
    """Lists the texts of a batch that have rows, each up to the last token that a row predicts.

    A text is a sequence or, with ``position_ids``, a document.
    """
    flat: NDArray[np.int64] = tokens.input_ids.numpy(force=True).ravel()
    rows: NDArray[np.int64] = tokens.rows.numpy(force=True)
    if tokens.position_ids is None:
        starts = rows - rows % tokens.input_ids.shape[1]
    else:
        starts = rows - tokens.position_ids.numpy(force=True).ravel()[rows]
    # Rows increase, so those of a text follow each other.
    starts, firsts = np.unique(starts, return_index=True)
    return [
        Question(flat[start : rows[end - 1] + 2].tolist(), rows[first:end] + 1 - start, top_k)
        for start, first, end in zip(starts, firsts, np.append(firsts, len(rows))[1:], strict=True)
    ]
