"""Compares a tokenizer with its tokenizer.json, and builds the tokenizer of that file where they differ.

transformers chooses a tokenizer class by ``tokenizer_class`` and ``model_type``. Many classes read only the vocabulary
and the merges of tokenizer.json: the normalizer, the split pattern, the decoder and missing special tokens are their
own. Such a class gives other token ids than the file if the file belongs to another family.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import Decoder
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xtoken_pl.tokenization.components import list_parts
from xtoken_pl.tokenization.vocabulary import BYTE_TO_UNICODE

#: Texts whose ids are compared. The first one that differs is shown, so that the short ones come first.
PROBES: tuple[str, ...] = (
    "1984",
    "a",
    " two  spaces",
    "    return x**2",
    "\tif _y:\r\n\n\n  pass  ",
    "I'LL won't, e.g. don't!",
    "($3.14; 50%) <b>https://example.org/a_b-c?d=1</b>",
    "HTTPServer camelCase \\frac{a}{b}",
    "naïve Å e\u0301 ﬁ ½ ① ＡＢＣ１２",
    "Привет, мир! Ελληνικά Việt Nam",
    "数字123 日本語のテキスト 한국어",
    "שלום مرحبا हिन्दी ไทย",
    "👩\u200d👩\u200d👧 🏳️\u200d🌈",
    "\u00a0 \u200b \u2003 \ufeff\x00",
    "▁a ▁▁ Ġb",
    "",
)

# A field of components that changes offsets, but no token id.
_OFFSETS = "trim_offsets"


def read_file(file: Path) -> Tokenizer:
    """Reads a tokenizer.json with the `tokenizers` library, without truncation or padding."""
    original = Tokenizer.from_file(str(file))
    original.no_truncation()
    original.no_padding()
    return original


def difference(tokenizer: PreTrainedTokenizerBase, original: Tokenizer, declared: Collection[str]) -> str | None:
    """Describes what ``tokenizer`` changes in ``original``; None if both give the same ids for every text.

    Args:
        tokenizer: Tokenizer that transformers loaded.
        original: Tokenizer in its tokenizer.json.
        declared: Special tokens that ``tokenizer`` may add.
    """
    name = type(tokenizer).__name__
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return f"chooses {name}, which does not read that file"
    parts = [
        part.replace("_", "-")
        for part in ("normalizer", "pre_tokenizer", "decoder")
        if _description(getattr(backend, part)) != _description(getattr(original, part))
    ]
    if _model(backend) != _model(original):
        parts.append("model")
    if not _has_same_added_tokens(tokenizer, original, declared):
        parts.append("added tokens")
    example = _example_of_other_ids(tokenizer, original)
    if example and not parts:  # special tokens around a text, or a class that changes texts or ids by itself
        parts.append("post-processor")
    return f"chooses {name}, which changes the file's {', '.join(parts)}{example}" if parts else None


def _example_of_other_ids(tokenizer: PreTrainedTokenizerBase, original: Tokenizer) -> str:
    """Shows the first text of :data:`PROBES` whose ids differ; empty if there is none."""
    for text in PROBES:
        right = original.encode(text)
        try:
            ids = tokenizer(text)["input_ids"]
        except Exception as error:  # `tokenizers` raises bare exceptions, for a missing unk token for instance
            return f" ({text!r} fails: {error})"
        if ids != right.ids:
            wrong, instead = _different_middle(tokenizer.convert_ids_to_tokens(ids), right.tokens)
            return f" ({text!r}: {'|'.join(wrong) or 'nothing'} instead of {'|'.join(instead) or 'nothing'})"
    return ""


def _different_middle(ours: list[str], theirs: list[str]) -> tuple[list[str], list[str]]:
    """Cuts off what two lists have in common at the start and at the end."""
    start = _num_common(ours, theirs)
    ours, theirs = ours[start:], theirs[start:]
    end = _num_common(ours[::-1], theirs[::-1])
    return ours[: len(ours) - end], theirs[: len(theirs) - end]


def _num_common(ours: list[str], theirs: list[str]) -> int:
    return next(
        (index for index, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )


def _description(component: Any) -> list[dict[str, Any]]:
    """A component's parts, without the fields that change neither ids nor decoded texts."""
    parts = list_parts(component)
    if isinstance(component, Decoder):  # a ByteLevel decoder has the fields of the pre-tokenizer, but no use for them
        parts = [{"type": "ByteLevel"} if part["type"] == "ByteLevel" else part for part in parts]
    return [{name: value for name, value in part.items() if name != _OFFSETS} for part in parts]


def _model(backend: Any) -> tuple[dict[str, Any], bytes]:
    """Settings of a model, and its vocabulary and merges as JSON."""
    head, _, tables = backend.model.__getstate__().partition(b',"vocab":')
    settings: dict[str, Any] = json.loads(head + b"}")
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        settings[affix] = settings.get(affix) or None
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] if settings.get("byte_fallback") else BYTE_TO_UNICODE.values()
    if settings["type"] == "BPE" and all(backend.token_to_id(piece) is not None for piece in pieces):
        settings |= {"unk_token": None, "fuse_unk": None}  # no character is unknown
    return settings, tables


def _has_same_added_tokens(tokenizer: PreTrainedTokenizerBase, original: Tokenizer, declared: Collection[str]) -> bool:
    """Whether the added tokens are those of the file, apart from declared special tokens that it lacks.

    A token with a role, such as eos, may be special in ``tokenizer`` only.
    """
    ours, theirs = tokenizer.added_tokens_decoder, original.get_added_tokens_decoder()
    roles = {*tokenizer.special_tokens_map.values(), *tokenizer.extra_special_tokens}
    for token_id, token in theirs.items():
        mine = ours.get(token_id)
        if mine is None or mine.content != token.content or _matching(mine) != _matching(token):
            return False
        if mine.special != token.special and not (mine.special and mine.content in roles):
            return False
        if mine.normalized != token.normalized and not mine.special:
            return False
    for token_id, mine in ours.items():
        known = original.token_to_id(mine.content)
        if known != token_id and not (known is None and mine.special and mine.content in declared):
            return False
    return True


def tokens_missing_in_file(
    tokenizer: PreTrainedTokenizerBase, original: Tokenizer, declared: Collection[str]
) -> list[str]:
    """Lists ordinary tokens that other files of a tokenizer declare and tokenizer.json lacks."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    tokens = [token.content for token in added if not token.special and token.content in declared]
    return [token for token in tokens if original.token_to_id(token) is None]


def _matching(token: Any) -> tuple[bool, bool, bool]:
    """How an added token is found in a text."""
    return token.lstrip, token.rstrip, token.single_word


def from_file(
    file: Path, tokenizer: PreTrainedTokenizerBase, original: Tokenizer, declared: Collection[str]
) -> PreTrainedTokenizerFast:
    """Builds the tokenizer of a tokenizer.json, with the roles, chat template and settings of ``tokenizer``.

    A role whose token is neither special in the file nor declared is an invention of the class of ``tokenizer``: it is
    dropped.

    Args:
        file: The tokenizer.json.
        tokenizer: Tokenizer that transformers loaded for it.
        original: Tokenizer in the file.
        declared: Special tokens that other files of the tokenizer declare.
    """
    special = {token.content for token in original.get_added_tokens_decoder().values() if token.special}
    known = special.union(declared)
    return with_settings(tokenizer, known.__contains__, tokenizer_file=str(file))


def with_settings(
    tokenizer: PreTrainedTokenizerBase, is_known: Callable[[str], bool], **source: Any
) -> PreTrainedTokenizerFast:
    """Builds a fast tokenizer that has the roles, chat template and settings of ``tokenizer``.

    Args:
        tokenizer: Tokenizer whose settings are taken over.
        is_known: Whether a special token is one of the new tokenizer; others are dropped.
        source: Argument of ``PreTrainedTokenizerFast`` from which it is built: ``tokenizer_file`` or
            ``tokenizer_object``.
    """
    return PreTrainedTokenizerFast(
        **source,
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        extra_special_tokens=[token for token in tokenizer.extra_special_tokens if is_known(token)],
        **{role: token for role, token in tokenizer.special_tokens_map.items() if is_known(token)},
    )
