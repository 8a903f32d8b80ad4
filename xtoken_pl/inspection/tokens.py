"""Displays tokens as text in which nothing is invisible and nothing can control a terminal or a page."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from xtoken_pl.tokenization import CanonicalVocabulary

_SIGNS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}
# Unicode categories of control characters (escape sequences), direction marks, and characters without a glyph.
_UNSHOWN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}
_PIECE = re.compile("[\udc80-\udcff]+|.", flags=re.DOTALL)


def visible(raw: bytes) -> str:
    """Converts bytes to text for display.

    White space becomes a sign (``·``, ``↵``, ``⇥``), parts of a character become hexadecimal bytes, other invisible
    characters become code points, and a leading combining mark is put on a dotted circle.

    >>> visible(b" caf" + "é".encode()[:1])
    '·caf⟨c3⟩'
    >>> visible("a\u202e\x1b[0m".encode())
    'a⟨U+202E⟩⟨U+001B⟩[0m'
    """
    # Each byte that is not part of a character becomes a lone surrogate; valid UTF-8 contains none.
    text = _PIECE.sub(_show, raw.decode("utf-8", "surrogateescape"))
    return f"◌{text}" if text and unicodedata.category(text[0]).startswith("M") else text


def _show(match: re.Match[str]) -> str:
    piece = match[0]
    if "\udc80" <= piece[0] <= "\udcff":
        return f"⟨{piece.encode('utf-8', 'surrogateescape').hex(' ')}⟩"
    if piece in _SIGNS:
        return _SIGNS[piece]
    return f"⟨U+{ord(piece):04X}⟩" if unicodedata.category(piece) in _UNSHOWN else piece


@dataclass(frozen=True)
class Token:
    """One token of a vocabulary.

    Attributes:
        id: Token id in the vocabulary.
        raw: Bytes of the token; empty for a special token.
        text: Text for display.
        is_special: Whether it is a special token.
    """

    id: int
    raw: bytes
    text: str
    is_special: bool


def tokens_of(vocabulary: CanonicalVocabulary, ids: Iterable[int]) -> list[Token]:
    """Returns the tokens with the given ids."""
    return [_token(vocabulary, int(token_id)) for token_id in ids]


def text_of(vocabulary: CanonicalVocabulary, ids: Iterable[int]) -> str:
    """Returns the text of tokens for reading: plain spaces, a line break after each ``↵``, special tokens by name."""
    parts = groupby(tokens_of(vocabulary, ids), key=lambda token: bool(token.raw))
    return "".join(
        visible(b"".join(token.raw for token in tokens)).replace("·", " ").replace("↵", "↵\n")
        if has_text
        else "".join(token.text for token in tokens)
        for has_text, tokens in parts
    )


def _token(vocabulary: CanonicalVocabulary, token_id: int) -> Token:
    raw = vocabulary.token_bytes[token_id]
    text = visible(raw)
    if not raw:
        name = vocabulary.tokenizer.convert_ids_to_tokens(token_id) if vocabulary.exists[token_id] else None
        text = visible(name.encode()) if name else f"⟨id {token_id}⟩"
    return Token(token_id, raw, text, bool(vocabulary.is_special[token_id]))
