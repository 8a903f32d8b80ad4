"""A server's answer as arrays: checks that it can be learned from, and selection of the most probable tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.batch import AllRows, TopTokens
from xtoken_pl.batch.quantization import bits_of
from xtoken_pl.teachers.served.client import TransientError

# n rows of a text, m tokens answered for each, k tokens asked for, V_t teacher's vocabulary size

#: Largest error of the mass of a row, for servers that compute in 16 bits.
_TOLERANCE = 1e-2
#: Smallest mass of a tail, so that its logarithm is finite where rounding leaves nothing.
SMALLEST_TAIL = 1e-12


class BadAnswerError(TransientError):
    """An answer that cannot be learned from."""


@dataclass(frozen=True)
class Question:
    """A text, and the rows that are wanted of it.

    Attributes:
        ids: Token ids from the start of the text to the last token of interest.
        positions: ``[n]`` places of the tokens that the rows predict, at least 1.
        top_k: Number of most probable tokens; None for all.
    """

    ids: list[int]
    positions: NDArray[np.int64]
    top_k: int | None

    @property
    def labels(self) -> NDArray[np.int64]:
        """``[n]`` tokens that the rows predict."""
        return np.asarray(self.ids, dtype=np.int64)[self.positions]


@dataclass(frozen=True)
class Answer:
    """Log-probabilities as a server gives them.

    Attributes:
        ids: ``[n, m]`` token ids, the observed one possibly among them; -1 where a row has fewer than m.
        log_probs: ``[n, m]`` their log-probabilities.
        num_top: ``[n]`` number of most probable tokens among them.
        observed: ``[n]`` log-probability of the observed tokens.
    """

    ids: NDArray[np.int64]
    log_probs: NDArray[np.float64]
    num_top: NDArray[np.int64]
    observed: NDArray[np.float64]


def padded(
    ids: NDArray[np.int64], log_probs: NDArray[np.float64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pads rows of ``counts`` tokens that follow each other in flat arrays, ``[n, m]`` each."""
    places = np.arange(counts.max(initial=0)) < counts[:, None]
    ids_of_rows = np.full(places.shape, -1, dtype=np.int64)
    log_probs_of_rows = np.full(places.shape, -np.inf)
    ids_of_rows[places], log_probs_of_rows[places] = ids, log_probs
    return ids_of_rows, log_probs_of_rows


@dataclass(frozen=True)
class TextRows:
    """Rows of one text.

    Attributes:
        log_probs: ``[n, k]`` log-probabilities of the most probable tokens, or ``[n, V_t]`` of all.
        ids: ``[n, k]`` their ids, V_t for an id that the tokenizer lacks; None for all tokens.
        log_tail: ``[n]`` logarithm of the mass of tokens that are neither among the k nor observed; None for all.
        log_observed: ``[n]`` log-probability of the observed tokens.
    """

    log_probs: NDArray[np.float32]
    ids: NDArray[np.int32] | None
    log_tail: NDArray[np.float32] | None
    log_observed: NDArray[np.float32]


def text_rows(answer: Answer, question: Question, exists: NDArray[np.bool_]) -> TextRows:
    """Selects what is kept of an answer.

    Args:
        answer: The answer.
        question: What was asked for.
        exists: ``[V_t]`` bool, False for ids that the teacher's tokenizer lacks.

    Raises:
        BadAnswerError: If the answer has NaN, infinity or fewer tokens than asked, or is no distribution.
    """
    _check_numbers(answer, question.top_k)
    clamped = Answer(answer.ids, np.minimum(answer.log_probs, 0.0), answer.num_top, np.minimum(answer.observed, 0.0))
    if question.top_k is None:
        return _all_tokens(clamped, question.labels, exists)
    return _top_tokens(clamped, question.labels, exists, question.top_k)


def _check_numbers(answer: Answer, top_k: int | None) -> None:
    given = answer.ids >= 0
    if not (np.isfinite(answer.log_probs[given]).all() and np.isfinite(answer.observed).all()):
        raise BadAnswerError("an answer with NaN or infinity among the log-probabilities")
    if top_k is not None and (fewest := answer.num_top.min(initial=top_k)) < top_k:
        raise BadAnswerError(f"an answer with {fewest} tokens of a row, but top_k={top_k} were asked for")
    highest = max(answer.log_probs.max(initial=-np.inf), answer.observed.max(initial=-np.inf))
    mass = np.exp(np.minimum(answer.log_probs, 1.0)).sum(1).max(initial=0.0)
    if highest > _TOLERANCE or mass > 1.0 + _TOLERANCE:
        raise BadAnswerError(f"an answer that is no distribution: a row's probabilities sum to {mass:.4g}")


def _top_tokens(answer: Answer, labels: NDArray[np.int64], exists: NDArray[np.bool_], top_k: int) -> TextRows:
    # Descending; equal log-probabilities in the order of ids.
    order = np.lexsort((answer.ids, -answer.log_probs))[:, :top_k]
    ids = np.take_along_axis(answer.ids, order, axis=1)
    log_probs = np.take_along_axis(answer.log_probs, order, axis=1)
    lacking = ~_known(ids, exists)
    ids[lacking], log_probs[lacking] = len(exists), -np.inf
    has_observed = (ids == labels[:, None]).any(1)
    mass = np.exp(log_probs).sum(1) + np.where(has_observed, 0.0, np.exp(answer.observed))
    log_tail = np.log(np.maximum(1.0 - mass, SMALLEST_TAIL))
    return TextRows(
        log_probs.astype(np.float32),
        ids.astype(np.int32),
        log_tail.astype(np.float32),
        answer.observed.astype(np.float32),
    )


def _all_tokens(answer: Answer, labels: NDArray[np.int64], exists: NDArray[np.bool_]) -> TextRows:
    """Normalizes over the ids that the tokenizer has, as a teacher in this process does."""
    smallest = np.exp(answer.log_probs).sum(1).min(initial=1.0)
    if smallest < 1.0 - _TOLERANCE:
        raise BadAnswerError(
            f"an answer with fewer tokens than asked: of all tokens, a row has a mass of {smallest:.4g}"
        )
    row, place = np.nonzero(_known(answer.ids, exists))
    dense = np.full((len(labels), len(exists)), -np.inf)
    dense[row, answer.ids[row, place]] = answer.log_probs[row, place]
    dense -= np.log(np.exp(dense).sum(1, keepdims=True))
    return TextRows(dense.astype(np.float32), None, None, dense[np.arange(len(labels)), labels].astype(np.float32))


def _known(ids: NDArray[np.int64], exists: NDArray[np.bool_]) -> NDArray[np.bool_]:
    is_inside = (ids >= 0) & (ids < len(exists))
    return is_inside & exists[np.where(is_inside, ids, 0)]


def join_rows(texts: list[TextRows], top_k: int | None, num_ids: int) -> AllRows:
    """Concatenates the rows of several texts.

    Args:
        texts: Rows of each text.
        top_k: Number of tokens of a row; None for all.
        num_ids: Vocabulary size V_t.
    """
    none = np.empty(0, dtype=np.float32)
    width = num_ids if top_k is None else top_k
    empty = TextRows(none.reshape(0, width), none.astype(np.int32).reshape(0, width), none, none)
    parts = [*texts] or [empty]
    top = TopTokens(
        bits_of(np.concatenate([part.log_probs for part in parts])),
        None if top_k is None else bits_of(np.concatenate([part.ids for part in parts])),
        None if top_k is None else bits_of(np.concatenate([part.log_tail for part in parts])),
    )
    return AllRows(top, bits_of(np.concatenate([part.log_observed for part in parts])))
