"""How a fast tokenizer writes bytes, read from its own components.

Only two kinds write every token as exact bytes: byte-level BPE, and SentencePiece (metaspace) with byte fallback.
Every other kind is refused, because its tokens do not concatenate to the bytes of the text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Regex, normalizers
from transformers import PreTrainedTokenizerBase

from xtoken_pl.utilities.errors import UserError

Kind = Literal["byte_level", "metaspace"]

#: Pattern of what a SentencePiece model removes at both ends of a text; at the end, it does not tell ▁ from a space.
SPACES_AT_ENDS = r"\A +|[ ▁]+\z"
# White space that a normalizer may remove.
_SPACES = (" ", "  ", "   ", "▁", "▁▁", "\n", "\t", "\r\n", " \n", "\u00a0")


class InexactTokenizerError(UserError):
    """Raised for a tokenizer whose tokens are not exact bytes of the text."""


@dataclass(frozen=True)
class Components:
    """The way in which a tokenizer writes bytes.

    Attributes:
        kind: ``byte_level`` (GPT-2's byte-to-unicode table) or ``metaspace`` (``▁`` is a space, ``<0xHH>`` a byte).
        dummy_prefix: Whether the tokenizer prepends a space that is not part of the text (Llama 2).
    """

    kind: Kind
    dummy_prefix: bool


def read_components(tokenizer: PreTrainedTokenizerBase) -> Components:
    """Reads how ``tokenizer`` writes bytes from its decoder, model, pre-tokenizer and normalizer.

    Raises:
        InexactTokenizerError: If the tokenizer has no fast backend, or is of a kind that is not exact (WordPiece,
            WordLevel, BPE with word-end suffixes, SentencePiece without byte fallback).
    """
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InexactTokenizerError(
            f"tokenizer {name!r} ({type(tokenizer).__name__}) has no fast backend to read its components from; "
            "use its fast version (tokenizer.json)"
        )
    model = backend.model
    model_kind = type(model).__name__
    if model_kind not in ("BPE", "Unigram"):
        raise _inexact(name, f"its model is {model_kind}")
    decoders = {part["type"] for part in list_parts(backend.decoder)}
    suffix = getattr(model, "end_of_word_suffix", None) or getattr(model, "continuing_subword_prefix", None)
    if suffix:
        raise _inexact(name, f"its {model_kind} model marks parts of words with {suffix!r}")
    dummy_prefix = _has_dummy_prefix(backend)
    if "ByteLevel" in decoders:
        return Components("byte_level", dummy_prefix)
    if "Metaspace" in decoders or "ByteFallback" in decoders:
        if not _has_byte_fallback(model):
            raise _inexact(name, f"its {model_kind} model has no byte fallback, so unknown characters are lost")
        if (lost := _byte_without_piece(backend)) is not None:
            raise _inexact(name, f"its {model_kind} model has no piece for the byte 0x{lost:02X}")
        return Components("metaspace", dummy_prefix)
    raise _inexact(name, f"its {model_kind} model has the decoder {sorted(decoders) or 'None'}")


def _inexact(name: str, reason: str) -> InexactTokenizerError:
    return InexactTokenizerError(
        f"tokenizer {name!r} cannot be treated exactly: {reason}. "
        "Use a byte-level BPE tokenizer, or a SentencePiece tokenizer with byte fallback"
    )


def _has_byte_fallback(model: Any) -> bool:
    # A Unigram model exposes the setting in its state alone, behind the vocabulary.
    exposed = getattr(model, "byte_fallback", None)
    return bool(model.__getstate__().endswith(b'"byte_fallback":true}') if exposed is None else exposed)


def _byte_without_piece(backend: Any) -> int | None:
    """The first byte of UTF-8 that neither a byte piece nor, in ASCII, a character stands for."""
    in_use = (*range(0xC0), *range(0xC2, 0xF5))
    known = backend.get_vocab(with_added_tokens=False)
    return next(
        (
            byte
            for byte in in_use
            if f"<0x{byte:02X}>" not in known and (byte >= 0x80 or chr(byte).replace(" ", "▁") not in known)
        ),
        None,
    )


def _has_dummy_prefix(backend: Any) -> bool:
    if any(part["type"] == "Prepend" for part in list_parts(backend.normalizer)):
        return True
    return any(
        (part["type"] == "Metaspace" and part.get("prepend_scheme", "never") != "never")
        or (part["type"] == "ByteLevel" and part.get("add_prefix_space", False))
        for part in list_parts(backend.pre_tokenizer)
    )


def list_parts(component: Any) -> list[dict[str, Any]]:
    """Flat list of a component's parts, with nested sequences expanded."""
    return [] if component is None else _flatten(json.loads(component.__getstate__()))


def _flatten(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [leaf for part in state[_inner(state)] for leaf in _flatten(part)]


def _inner(sequence: dict[str, Any]) -> str:
    """Key under which a sequence holds its parts."""
    return next(key for key in ("decoders", "normalizers", "pretokenizers") if key in sequence)


def without_dummy_prefix(backend: Any) -> Any:
    """Returns a copy of ``backend`` that prepends no space."""
    return _with_parts(backend, _without_prefix)


def as_mid_text(backend: Any, name: str) -> Any:
    """Returns ``backend``, or a copy, that encodes a text as if it stood in the middle of a longer one.

    It prepends no space, and leaves white space at both ends of the text.

    Args:
        backend: Backend of a fast tokenizer.
        name: Name of the tokenizer, for the message.

    Raises:
        InexactTokenizerError: If one step of the normalizer removes white space at the ends and elsewhere.
    """

    def changed(part: dict[str, Any]) -> dict[str, Any] | None:
        return None if _strips_ends(part, name) else _without_prefix(part)

    return _with_parts(backend, changed)


def _with_parts(backend: Any, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Any:
    """Returns ``backend`` with changed parts of its normalizer and pre-tokenizer, as a copy if one is another."""
    parts = {name: getattr(backend, name) for name in ("normalizer", "pre_tokenizer")}
    states = {name: json.loads(part.__getstate__()) for name, part in parts.items() if part is not None}
    changed = {name: _changed(state, change) for name, state in states.items()}
    if changed == states:
        return backend
    return type(backend).from_str(json.dumps(json.loads(backend.to_str()) | changed))


def _changed(state: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> dict[str, Any] | None:
    if state["type"] != "Sequence":
        return change(state)
    inner = _inner(state)
    parts = (_changed(part, change) for part in state[inner])
    return {**state, inner: [part for part in parts if part is not None]}


def _without_prefix(part: dict[str, Any]) -> dict[str, Any] | None:
    if part["type"] == "Prepend":
        return None
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    if part["type"] == "ByteLevel" and "add_prefix_space" in part:
        return {**part, "add_prefix_space": False}
    return part


def _strips_ends(part: dict[str, Any], name: str) -> bool:
    """Whether a part of a normalizer removes white space at an end of a text, and nowhere else."""
    if part["type"] == "Strip":
        return True
    if part["type"] != "Replace" or "Regex" not in part["pattern"]:
        return False
    pattern = part["pattern"]["Regex"]
    replace = normalizers.Replace(Regex(pattern), part["content"]).normalize_str
    at_ends = [space for space in _SPACES if replace(f"{space}a") == "a" or replace(f"a{space}") == "a"]
    between = [space for space in at_ends if replace(f"a{space}b") != f"a{space}b"]
    if between == at_ends:  # it removes white space wherever that is, or none
        return False
    # ^ and $ match at both ends of a line.
    lines = [text for space in at_ends for text in (f"a\n{space}b", f"a{space}\nb")]
    if between or any(replace(text) != text for text in lines):
        raise _inexact(name, f"its normalizer replaces {pattern!r} at the ends of a text and also inside")
    return True
