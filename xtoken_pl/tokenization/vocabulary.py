"""A tokenizer's vocabulary as canonical bytes: the tokens of a text concatenate to its UTF-8 bytes.

This is the start of the flow: alignment, projection and the vocabulary checks all read it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from xtoken_pl.tokenization.components import (
    Components,
    InexactTokenizerError,
    as_mid_text,
    read_components,
)
from xtoken_pl.tokenization.roles import special_roles
from xtoken_pl.utilities.errors import UserError

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# Attribute of a tokenizer object that caches its vocabulary, so that both are freed together.
_CACHE = "_xtoken_pl_vocabulary"

# Two tokenizers with the same vocabulary may still split a text differently (merges, split pattern, normalizer). The
# ids of this text are part of the fingerprint, so that such tokenizers get different ones.
_PROBE = (
    "The 1st of 1234567 tests: I'll pay $3.14\n\n\tdef f(x):\r\n    return x**2  # naïve café Å e\u0301\n"
    "数字１２３ — Привет, мир! שלום 👩‍👩‍👧 \u00a0 \u200b a_b-c/d\\e <|endoftext|> ▁ABCdef   \n"
)


@dataclass(frozen=True, eq=False)
class CanonicalVocabulary:
    """Canonical bytes and special roles of every token id.

    - byte-level BPE: GPT-2's byte-to-unicode table is inverted;
    - metaspace: every ``▁`` is a space, ``<0xHH>`` is that byte;
    - special tokens and unused ids have no bytes; special tokens are identified by their role.

    Attributes:
        token_bytes: ``[V]`` bytes of each id, empty for special tokens and unused ids.
        is_special: ``[V]`` bool, True for special tokens.
        exists: ``[V]`` bool, False for ids that no token has (holes).
        is_byte_piece: ``[V]`` bool, True for the ``<0xHH>`` pieces of a metaspace tokenizer.
        roles: Token id of each role (see :mod:`xtoken_pl.tokenization.roles`).
        prefix_ids: Special ids that the tokenizer prepends to a text (bos, or none).
        flat_bytes: Concatenated bytes of all ids.
        offsets: ``[V + 1]`` start of each id's bytes in ``flat_bytes``, and the end of the last one's.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699 (canonicalization of strings; bytes are ours).
    """

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    components: Components
    token_bytes: list[bytes] = field(repr=False)
    is_special: NDArray[np.bool_] = field(repr=False)
    exists: NDArray[np.bool_] = field(repr=False)
    is_byte_piece: NDArray[np.bool_] = field(repr=False)
    roles: dict[str, int]
    prefix_ids: tuple[int, ...]
    flat_bytes: NDArray[np.uint8] = field(repr=False)
    offsets: NDArray[np.int64] = field(repr=False)

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> CanonicalVocabulary:
        """Reads the vocabulary of a fast tokenizer; cached on the tokenizer object until that changes.

        Raises:
            InexactTokenizerError: If the tokenizer's tokens are not exact bytes.
        """
        # A copy of a tokenizer also copies the cache, hence the id.
        state = (id(tokenizer), len(tokenizer), special_roles(tokenizer))
        known: tuple[Any, CanonicalVocabulary] | None = tokenizer.__dict__.get(_CACHE)
        if known is None or known[0] != state:
            known = tokenizer.__dict__[_CACHE] = (state, cls._read(tokenizer))
        return known[1]

    @classmethod
    def _read(cls, tokenizer: PreTrainedTokenizerBase) -> CanonicalVocabulary:
        components = read_components(tokenizer)
        backend = tokenizer.backend_tokenizer
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values()) + 1
        added = tokenizer.added_tokens_decoder
        special = {token_id for token_id, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        token_bytes = [b""] * size
        exists = np.zeros(size, dtype=bool)
        is_byte_piece = np.zeros(size, dtype=bool)
        for token, token_id in vocabulary.items():
            exists[token_id] = True
            if token_id in special:
                continue
            if components.kind == "byte_level":
                is_added = token_id in added
                token_bytes[token_id] = _added_bytes(backend, token) if is_added else _undo_byte_level(token)
            elif match := _BYTE_PIECE.fullmatch(token):
                token_bytes[token_id] = bytes([int(match[1], 16)])
                is_byte_piece[token_id] = True
            else:
                token_bytes[token_id] = token.replace("▁", " ").encode()
        is_special = np.zeros(size, dtype=bool)
        is_special[sorted(special)] = True
        lengths = np.fromiter(map(len, token_bytes), dtype=np.int64, count=size)
        return cls(
            tokenizer=tokenizer,
            components=components,
            token_bytes=token_bytes,
            is_special=is_special,
            exists=exists,
            is_byte_piece=is_byte_piece,
            roles={role: token_id for role, token_id in special_roles(tokenizer).items() if token_id in special},
            prefix_ids=_prefix_ids(tokenizer, special),
            flat_bytes=np.frombuffer(b"".join(token_bytes), dtype=np.uint8),
            offsets=np.concatenate(([0], np.cumsum(lengths))),
        )

    def __len__(self) -> int:
        return len(self.token_bytes)

    @property
    def num_bytes(self) -> NDArray[np.int64]:
        """``[V]`` number of bytes of each token; 0 for special tokens."""
        return np.diff(self.offsets)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Encodes whole texts without adding special tokens; text that spells a special token is encoded as text."""
        return encode_texts(self.tokenizer, texts)

    def byte_stream(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Returns the bytes of a token sequence and each token's length in bytes.

        Args:
            ids: ``[n]`` token ids.

        Returns:
            Concatenated bytes, and ``[n]`` lengths.

        Raises:
            UserError: If an id is outside the vocabulary.
        """
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            raise UserError(
                f"token ids must be in [0, {len(self)}), the vocabulary of {self.name!r}, "
                f"got {ids.min()} to {ids.max()}; encode the text with this tokenizer"
            )
        starts = self.offsets[ids]
        lengths = self.offsets[ids + 1] - starts
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if ids.size else 0
        gather = np.repeat(starts - (ends - lengths), lengths) + np.arange(total)
        return self.flat_bytes[gather], lengths

    @property
    def name(self) -> str:
        """Name of the tokenizer in messages."""
        return self.tokenizer.name_or_path or type(self.tokenizer).__name__

    @cached_property
    def vocabulary_fingerprint(self) -> str:
        """Hash of each id's bytes and of the special tokens' names: equal if two models share their token ids."""
        digest = hashlib.sha256()
        digest.update(self.offsets.tobytes())
        digest.update(self.flat_bytes.tobytes())
        special = self.tokenizer.convert_ids_to_tokens(np.flatnonzero(self.is_special).tolist())
        digest.update(json.dumps([self.components.kind, special, np.flatnonzero(~self.exists).tolist()]).encode())
        return digest.hexdigest()[:32]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary, the roles and the way a text is split; W and caches are checked against it."""
        digest = hashlib.sha256(self.vocabulary_fingerprint.encode())
        described = [self.components.dummy_prefix, self.roles, self.prefix_ids, self.encode([_PROBE])[0]]
        digest.update(json.dumps(described).encode())
        backend = self.tokenizer.backend_tokenizer
        for part in (backend.normalizer, backend.pre_tokenizer, backend.model):  # all of the split pattern and merges
            digest.update(part.__getstate__() if part is not None else b"None")
        return digest.hexdigest()[:32]

    @contextmanager
    def mid_text_backend(self) -> Iterator[Any]:
        """Yields the backend set to encode a piece of a longer text: spaces at its ends stay, special tokens are text.

        Raises:
            InexactTokenizerError: If one step of the normalizer removes white space at the ends of a text and inside.
        """
        backend = self._mid_text
        before = backend.encode_special_tokens
        backend.encode_special_tokens = True
        try:
            yield backend
        finally:
            backend.encode_special_tokens = before

    @cached_property
    def _mid_text(self) -> Any:
        return as_mid_text(self.tokenizer.backend_tokenizer, self.name)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Encodes whole texts without adding special tokens; text that spells a special token is encoded as text."""
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


#: GPT-2's table: the printable character that stands for each byte.
BYTE_TO_UNICODE: dict[int, str] = bytes_to_unicode()
# A character below 256 outside the table becomes one that latin-1 cannot encode, so that it is detected.
_UNDO = dict.fromkeys(range(256), "\uffff") | {ord(char): chr(byte) for byte, char in BYTE_TO_UNICODE.items()}


def _undo_byte_level(token: str) -> bytes:
    try:
        return token.translate(_UNDO).encode("latin-1")
    except UnicodeEncodeError:
        # The token has a character outside the table: its own UTF-8 bytes, as in the ByteLevel decoder.
        return token.encode()


def _added_bytes(backend: Any, token: str) -> bytes:
    """Bytes of an added token of a byte-level tokenizer, which texts spell as it is."""
    spelled = _undo_byte_level(token)
    if spelled != token.encode() and (token_id := backend.model.token_to_id(token)) is not None:
        raise InexactTokenizerError(
            f"an id must stand for one text, but {token_id} is the added token {token!r}, and elsewhere stands for the "
            f"bytes {spelled!r}; remove it from the added tokens"
        )
    return token.encode()


def _prefix_ids(tokenizer: PreTrainedTokenizerBase, special: set[int]) -> tuple[int, ...]:
    """Special ids that the tokenizer prepends to a text."""
    ids: list[int] = tokenizer("a")["input_ids"]
    count = next((index for index, token_id in enumerate(ids) if token_id not in special), 0)
    return tuple(ids[:count])
