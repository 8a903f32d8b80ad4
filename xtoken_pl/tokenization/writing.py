"""How a tokenizer writes the bytes of a piece of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xtoken_pl.tokenization.vocabulary import BYTE_TO_UNICODE, CanonicalVocabulary


def whole_tokens(vocabulary: CanonicalVocabulary) -> dict[bytes, int]:
    """Bytes -> the token that has them; of several one that spells them before a byte piece, then the lowest id."""
    # Later entries win, so that the preferred ones come last.
    order = np.lexsort((-np.arange(len(vocabulary)), ~vocabulary.is_byte_piece))
    by_bytes = {vocabulary.token_bytes[token]: token for token in order.tolist()}
    by_bytes.pop(b"", None)
    return by_bytes


def write_bytes(vocabulary: CanonicalVocabulary, pieces: Sequence[bytes]) -> list[list[int]]:
    """The tokens that write each piece in the middle of a text; [] where they cannot, or would write other bytes.

    Bytes that its normalizer rewrites are written as it rewrites them.
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
            written.append(tokens if is_same else [])  # unknown characters, or bytes that no token has
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
    """Byte -> the token that falls back to it."""
    if vocabulary.components.kind == "metaspace":
        pieces = np.flatnonzero(vocabulary.is_byte_piece).tolist()
        return {vocabulary.token_bytes[token][0]: token for token in pieces}
    return {}


def _write_partial(backend: Any, vocabulary: CanonicalVocabulary, text: bytes, byte_ids: dict[int, int]) -> list[int]:
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
