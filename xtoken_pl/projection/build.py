"""Builds W from two tokenizers: exact matches first, then student tokens that the teacher writes in several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from xtoken_pl.projection.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.vocabulary import BYTE_TO_UNICODE


@dataclass(frozen=True)
class ProjectionParameters:
    r"""How pass 2 spreads a student token over the teacher tokens that write it.

    Attributes:
        beta: Weight of the first teacher token before normalization, > 0.
        gamma: Factor from one teacher token to the next, in (0, 1].
        max_tokens: A student token that needs more teacher tokens keeps a zero row.
        top: Entries kept in a row.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699: (0.9, 0.1), 4, 4.
    """

    beta: float = 0.9
    gamma: float = 0.1
    max_tokens: int = 4
    top: int = 4

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0, got {self.beta}")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {self.gamma}")
        if self.max_tokens < 1 or self.top < 1:
            raise ValueError(f"max_tokens and top must be >= 1, got {self.max_tokens} and {self.top}")


def build_projection(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    parameters: ProjectionParameters | None = None,
) -> Projection:
    r"""Builds the projection matrix W [V_s, V_t].

    Pass 1: W[s, t] = 1 where the canonical bytes, or the special roles, of s and t are equal. Where several teacher
    tokens have these bytes, a ``<0xHH>`` piece gives way to a piece that spells them, then the lowest id wins.
    Pass 2: every other student token is written by the teacher as :math:`\tau_0 .. \tau_{l-1}`. For
    :math:`l \le 4`, :math:`W[s, \tau_i] \propto \beta \gamma^i`, normalized over the row; equal tokens add up.
    Longer ones keep a zero row.

    Raises:
        InexactTokenizerError: If a tokenizer's tokens are not exact bytes.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, projection matrix.
    """
    parameters = parameters or ProjectionParameters()
    student = CanonicalVocabulary.from_tokenizer(student_tokenizer)
    teacher = CanonicalVocabulary.from_tokenizer(teacher_tokenizer)
    indices = np.zeros((len(student), parameters.top), dtype=np.int64)
    weights = np.zeros((len(student), parameters.top), dtype=np.float64)

    exact = exact_matches(student, teacher)
    is_exact = exact >= 0
    indices[is_exact, 0] = exact[is_exact]
    weights[is_exact, 0] = 1.0

    others = [s for s in np.flatnonzero(~is_exact).tolist() if student.token_bytes[s]]
    decay = parameters.beta * parameters.gamma ** np.arange(parameters.max_tokens)
    with teacher.mid_text_backend() as backend:
        rewritten = list(_rewrite(student, teacher, others, backend))
    for s, tokens in zip(others, rewritten, strict=True):
        if 1 <= len(tokens) <= parameters.max_tokens:
            row: dict[int, float] = {}
            for token, weight in zip(tokens, decay.tolist(), strict=False):
                row[token] = row.get(token, 0.0) + weight
            kept = sorted(row.items(), key=lambda item: (-item[1], item[0]))[: parameters.top]
            total = sum(weight for _, weight in kept)
            for place, (token, weight) in enumerate(kept):
                indices[s, place], weights[s, place] = token, weight / total

    return Projection(
        indices=torch.from_numpy(indices),
        weights=torch.from_numpy(weights).float(),
        is_exact=torch.from_numpy(is_exact),
        num_teacher=len(teacher),
        student_fingerprint=student.fingerprint,
        teacher_fingerprint=teacher.fingerprint,
        parameters=asdict(parameters),
    )


def exact_matches(student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> NDArray[np.int64]:
    """``[V_s]``, the teacher token of equal bytes or role for every student token, -1 for none; pass 1 of W."""
    by_bytes: dict[bytes, int] = {}
    # Later entries win, so the preferred ones come last: spelled pieces over byte pieces, then lower ids.
    order = np.lexsort((-np.arange(len(teacher)), ~teacher.is_byte_piece))
    for t in order.tolist():
        by_bytes[teacher.token_bytes[t]] = t
    by_bytes.pop(b"", None)
    exact = np.array([by_bytes.get(text, -1) for text in student.token_bytes], dtype=np.int64)
    for role, s in reversed(student.roles.items()):
        if role in teacher.roles:
            exact[s] = teacher.roles[role]
    return exact


def _rewrite(
    student: CanonicalVocabulary, teacher: CanonicalVocabulary, ids: list[int], backend: Any
) -> Iterator[list[int]]:
    """How the teacher writes the bytes of each student token; [] where it cannot."""
    byte_ids = _single_byte_ids(teacher)
    texts = [_decode(student.token_bytes[s]) for s in ids]
    encodings = iter(backend.encode_batch_fast([text for text in texts if text is not None], add_special_tokens=False))
    normalizer = backend.normalizer
    for s, text in zip(ids, texts, strict=True):
        wanted = student.token_bytes[s]
        tokens = _write_bytes(backend, teacher, wanted, byte_ids) if text is None else next(encodings).ids
        written = b"".join(teacher.token_bytes[token] for token in tokens)
        if written == wanted or (text is not None and written == _normalized(normalizer, text)):
            yield tokens
        else:  # unknown characters, or bytes that the teacher has no token for
            yield []


def _decode(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def _normalized(normalizer: object, text: str) -> bytes | None:
    if normalizer is None:
        return None
    normalized: str = normalizer.normalize_str(text)  # type: ignore[attr-defined]
    return normalized.replace("▁", " ").encode()


def _single_byte_ids(vocabulary: CanonicalVocabulary) -> dict[int, int]:
    """Byte -> the token that falls back to it."""
    if vocabulary.components.kind == "metaspace":
        pieces = np.flatnonzero(vocabulary.is_byte_piece).tolist()
        return {vocabulary.token_bytes[token][0]: token for token in pieces}
    return {}


def _write_bytes(backend: Any, vocabulary: CanonicalVocabulary, text: bytes, byte_ids: dict[int, int]) -> list[int]:
    """Writes bytes that are not whole characters.

    A byte-level BPE merges them like any bytes. A SentencePiece tokenizer writes whole characters as it always does,
    and the bytes of a part of one as ``<0xHH>`` pieces.
    """
    if vocabulary.components.kind == "byte_level":
        return [token.id for token in backend.model.tokenize("".join(BYTE_TO_UNICODE[byte] for byte in text))]
    tokens: list[int] = []
    for part in _whole_and_partial(text):
        if isinstance(part, str):
            tokens += backend.encode(part, add_special_tokens=False).ids
        elif all(byte in byte_ids for byte in part):
            tokens += [byte_ids[byte] for byte in part]
    return tokens


def _whole_and_partial(text: bytes) -> Iterator[str | bytes]:
    """Cuts bytes into stretches of whole characters (str) and stretches of parts of characters (bytes)."""
    while text:
        try:
            yield text.decode()
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield text[: error.start].decode()
            yield text[error.start : error.end]
            text = text[error.end :]
