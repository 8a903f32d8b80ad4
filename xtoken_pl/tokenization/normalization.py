"""Rewrites texts as the normalizers of several tokenizers do, so that all of them read the same bytes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from xtoken_pl.tokenization.components import list_parts, without_dummy_prefix
from xtoken_pl.tokenization.vocabulary import BYTE_TO_UNICODE, CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

# A long text is rewritten piece by piece, since a normalizer needs fifty times its memory.
_PIECE_LENGTH = 2**18
# No normalizer that rewrites each character by itself joins an ASCII character with one before it.
_ASCII = re.compile(r"[\x00-\x7f]")
_BY_CHARACTER = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt", "StripAccents", "Prepend", "ByteLevel"}
_TO_BYTE = {ord(char): byte for byte, char in BYTE_TO_UNICODE.items()}
_MAX_ROUNDS = 4
# Characters that normalizers rewrite: accents, full width, ligatures, capitals, several spaces.
_PROBE = "A\u00e9 e\u0301 \u212b \ufb01 \uff21 \uac01 \u1100\u1161\u11a8  \u0130 \u00bd\u2014\u2581a"


class Normalizer:
    """Rewrites a text as one tokenizer's normalizer does.

    What the tokenizer only writes differently is not changed: the space that some prepend, ``▁`` for a space, and
    GPT-2's characters for bytes.

    Args:
        vocabulary: Vocabulary of the tokenizer.
    """

    def __init__(self, vocabulary: CanonicalVocabulary) -> None:
        backend = vocabulary.tokenizer.backend_tokenizer
        if vocabulary.components.dummy_prefix:
            backend = without_dummy_prefix(backend)
        self._normalizer: Any = backend.normalizer
        self._is_metaspace = vocabulary.components.kind == "metaspace"
        parts = list_parts(self._normalizer)
        self._is_byte_level = any(part["type"] == "ByteLevel" for part in parts)
        self.changes_nothing = self._normalizer is None and not self._is_metaspace
        self._is_by_character = all(_is_by_character(part) for part in parts)
        self.name = ", ".join(part["type"] for part in parts if not _is_spelling(part))

    def __call__(self, text: str) -> str:
        """Rewrites a text."""
        pieces = _pieces(text) if self._is_by_character else [text]
        return "".join(map(self._rewrite, pieces))

    def _rewrite(self, text: str) -> str:
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        if self._is_byte_level:
            text = text.translate(_TO_BYTE).encode("latin-1").decode()
        return text.replace("▁", " ") if self._is_metaspace else text


class CommonNormalizer:
    """Rewrites a text with the normalizers of all tokenizers, again and again until none of them changes it.

    Args:
        vocabularies: Vocabularies of the tokenizers, by the names that messages give them.

    Raises:
        UserError: If the normalizers contradict each other: one composes accents and another decomposes them, say.
    """

    def __init__(self, vocabularies: Mapping[str, CanonicalVocabulary]) -> None:
        self.normalizers = {name: Normalizer(vocabulary) for name, vocabulary in vocabularies.items()}
        probe = self(_PROBE)
        if changed := [name for name, normalizer in self.normalizers.items() if normalizer(probe) != probe]:
            raise UserError(
                f"data.normalize needs tokenizers whose normalizers agree, got {self.description}, and what the others "
                f"write is rewritten by the {changed[0]}; set data.normalize to false"
            )

    @property
    def description(self) -> str:
        """The normalizers, for messages."""
        named = [f"{normalizer.name} of the {side}" for side, normalizer in self.normalizers.items() if normalizer.name]
        return " and ".join(named) or "no normalizer, since no tokenizer has one"

    def __call__(self, text: str) -> str:
        """Rewrites a text."""
        active = [normalizer for normalizer in self.normalizers.values() if not normalizer.changes_nothing]
        for _ in range(_MAX_ROUNDS):
            before = text
            for normalizer in active:
                text = normalizer(text)
            if text == before:
                break
        return text


def rewritten_share(normalizer: Normalizer, text: str) -> float:
    """Share of a text, in characters, that is in words, or in white space between them, which a normalizer changes."""
    parts = Counter(re.findall(r"\s+|\S+", text))
    changed = sum(len(part) * count for part, count in parts.items() if _is_changed(normalizer, part))
    return changed / max(1, len(text))


def _is_changed(normalizer: Normalizer, part: str) -> bool:
    inside = f"a{part}a" if part.isspace() else part  # spaces at the ends of a text are another matter
    return normalizer(inside) != inside


def _is_spelling(part: dict[str, Any]) -> bool:
    """Whether a part of a normalizer only writes text differently."""
    return part["type"] in ("Prepend", "ByteLevel") or (
        part["type"] == "Replace" and part["pattern"] == {"String": " "} and part["content"] == "▁"
    )


def _is_by_character(part: dict[str, Any]) -> bool:
    is_replaced_character = part["type"] == "Replace" and len(part["pattern"].get("String", "")) == 1
    return part["type"] in _BY_CHARACTER or is_replaced_character


def _pieces(text: str) -> Iterator[str]:
    """Cuts a long text before ASCII characters."""
    start = 0
    while found := _ASCII.search(text, start + _PIECE_LENGTH):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]
