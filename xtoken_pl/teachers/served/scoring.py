"""Asks a server for the rows of texts, and makes sure that the same model answers throughout a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.checkpoints.served_weights import MAX_PROBE_DIFFERENCE
from xtoken_pl.teachers.served.answers import Question, TextRows, text_rows
from xtoken_pl.teachers.served.api import Api
from xtoken_pl.teachers.served.client import ServerClient, TransientError
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.threads import call_in_threads

#: Seconds of silence after which another server might answer; none can be restarted in less.
_RESTART_SECONDS = 10.0


@dataclass(frozen=True)
class Probe:
    """A text that shows which weights a server has.

    Attributes:
        ids: Its token ids.
        log_probs: Log-probabilities of all tokens but the first; None if they are not known yet.
    """

    ids: tuple[int, ...]
    log_probs: NDArray[np.float32] | None = None

    @property
    def question(self) -> Question:
        """The request that is answered with the log-probabilities."""
        return Question(list(self.ids), np.arange(1, len(self.ids)), top_k=1)


class Scorer:
    """Asks one server, from one process.

    After every failure, and after a silence in which the server may have been restarted, the probe is asked again
    before another answer is used.

    Args:
        client: Client of the server.
        api: Protocol of the server.
        exists: ``[V_t]`` bool, False for ids that the teacher's tokenizer lacks.
        probe: Probe; its log-probabilities are those of the first answer if they are not known.
        now: Clock, in seconds.
    """

    def __init__(
        self, client: ServerClient, api: Api, exists: NDArray[np.bool_], probe: Probe, now: Callable[[], float]
    ) -> None:
        self.client, self.api, self.probe = client, api, probe
        self._exists, self._now = exists, now
        self._lock = threading.Lock()
        # Numbers of reasons to doubt that the model is the same: so far, and when it was last probed.
        self._num_doubts, self._num_settled = 1, 0

    def ask_all(
        self, questions: Sequence[Question], concurrency: int, abandoned: threading.Event | None = None
    ) -> list[TextRows]:
        """Returns the rows of several texts, which some threads ask for.

        Raises:
            UserError: The first error of :meth:`ask`; the other requests are given up.
        """
        if self._now() - self.client.last_success > _RESTART_SECONDS:
            self._doubt()
        abandoned = threading.Event() if abandoned is None else abandoned
        return call_in_threads(partial(self.ask, abandoned=abandoned), questions, concurrency, abandoned)

    def ask(self, question: Question, abandoned: threading.Event | None = None) -> TextRows:
        """Returns the rows of one text; repeats the request while it fails.

        Args:
            question: The text.
            abandoned: Event that ends the attempts.

        Raises:
            UserError: If the server refuses, another model or another text is answered for, or the patience is used
                up.
        """

        def attempt() -> TextRows:
            try:
                rows = self.ask_once(question)
                self._settle_doubts()
            except TransientError:
                self._doubt()
                raise
            return rows

        return self.client.keep_trying(attempt, abandoned)

    def ask_once(self, question: Question) -> TextRows:
        """Returns the rows of one text, without another attempt.

        Raises:
            TransientError: If a later attempt may succeed.
        """
        answer = self.client.send(self.api.path, self.api.request(question))
        return text_rows(self.api.read(answer, question), question, self._exists)

    def _doubt(self) -> None:
        with self._lock:
            self._num_doubts += 1

    def _settle_doubts(self) -> None:
        with self._lock:
            num_doubts = self._num_doubts
            if num_doubts == self._num_settled:
                return
            found = self.ask_once(self.probe.question).log_observed
            expected = self.probe.log_probs if self.probe.log_probs is not None else found
            self.probe = Probe(self.probe.ids, expected)
            if (difference := float(np.abs(found - expected).mean())) > MAX_PROBE_DIFFERENCE:
                raise UserError(
                    f"{self.client.place} must answer with the same model throughout a run, but its log-probabilities "
                    f"of a probe text now differ by {difference:.2g} nats in the mean; start it with the model that "
                    "the run began with, then resume the run"
                )
            self._num_settled = num_doubts
