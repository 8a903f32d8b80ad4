"""Encodes pieces of text, given as bytes, as a tokenizer would in the middle of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xtoken_pl.tokenization.vocabulary import BYTE_TO_UNICODE, CanonicalVocabulary


def whole_tokens(vocabulary: CanonicalVocabulary) -> dict[bytes, int]:
    """Maps bytes to the token that has them; a spelled token is preferred to a byte piece, then the lowest id."""
    # Later entries overwrite earlier ones, so the preferred ones come last.
    order = np.lexsort((-np.arange(len(vocabulary)), ~vocabulary.is_byte_piece))
    by_bytes = {vocabulary.token_bytes[token]: token for token in order.tolist()}
    by_bytes.pop(b"", None)
    return by_bytes


def write_bytes(vocabulary: CanonicalVocabulary, pieces: Sequence[bytes]) -> list[list[int]]:
    """Encodes each piece as in the middle of a text; [] if the tokens cannot reproduce the bytes of the piece.

    Tokens that reproduce the output of the tokenizer's normalizer are accepted, too.
    """
    byte_ids = _single_byte_ids(vocabulary)
    texts = [_decode(piece) for piece in pieces]
    written: list[list[int]] = []
    with vocabulary.mid_text_backend() as backend:
        whole = [text for text in texts if text is not None]
        encodings = iter(backend.encode_batch_fast(whole, add_special_tokens=False))
        for piece, text in zip(pieces, texts, strict=True):
            partial = text is None
            tokens = _write_partial(backend, vocabulary, piece, byte_ids) if partial else next(encodings).ids
            result = b"".join(vocabulary.token_bytes[token] for token in tokens)
            is_same = result == piece or (text is not None and result == _normalized(backend.normalizer, text))
            written.append(tokens if is_same else [])  # [] for unknown characters, or bytes that no token has
    return written


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
    """Byte-fallback token of each byte; empty for a byte-level tokenizer."""
    return {vocabulary.token_bytes[token][0]: token for token in np.flatnonzero(vocabulary.is_byte_piece).tolist()}


def _write_partial(backend: Any, vocabulary: CanonicalVocabulary, text: bytes, byte_ids: dict[int, int]) -> list[int]:
    """Encodes bytes that are not valid UTF-8.

    A byte-level BPE merges them like any bytes. A SentencePiece tokenizer encodes whole characters as usual, and the
    bytes of partial characters as ``<0xHH>`` pieces.
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
    """Splits bytes into runs of whole characters (str) and parts of characters (bytes)."""
    while text:
        try:
            yield text.decode()
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield text[: error.start].decode()
            yield text[error.start : error.end]
            text = text[error.end :]
