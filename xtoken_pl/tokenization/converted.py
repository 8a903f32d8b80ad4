"""Fast forms of tokenizers that come without a tokenizer.json, compared with the programs that they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations.mistral.constants import is_tekken_vocab_filename

from xtoken_pl.tokenization import sentencepiece_form, tiktoken_form
from xtoken_pl.tokenization.tokenizer_file import PROBES
from xtoken_pl.utilities.errors import UserError

#: What Mistral's tokenizers call their special tokens; a tekken.json names no roles.
TEKKEN_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class Original:
    """A tokenizer that is not a fast one.

    Attributes:
        kind: What it is, for messages.
        encode: Ids of a text in its own program, without special tokens.
        fast_form: Builds the same tokenizer for the `tokenizers` library.
        roles: Tokens of the roles that the tokenizer itself does not declare.
    """

    kind: str
    encode: Callable[[str], list[int]]
    fast_form: Callable[[], Tokenizer]
    roles: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_encoding(cls, encoding: Any, kind: str, **roles: str) -> Original:
        return cls(kind, encoding.encode_ordinary, lambda: tiktoken_form.fast_form(encoding), roles)

    @classmethod
    def of_sentencepiece(cls, file: Path, model: Any) -> Original:
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_proto=model.SerializeToString())
        return cls(
            f"the SentencePiece model {file.name}", processor.encode, lambda: sentencepiece_form.fast_form(model)
        )


def find_original(tokenizer: PreTrainedTokenizerBase, file: Path | None) -> Original | None:
    """Finds the tokenizer that the one from transformers stands for; None if it is a fast one from the start.

    Args:
        tokenizer: Tokenizer that transformers loaded.
        file: File from which it was loaded, if there is one.

    Raises:
        UserError: If the file has tiktoken's ranks alone: the pattern that splits texts is in the code of the model.
    """
    if encoding := tiktoken_form.find_encoding(tokenizer):
        return Original.of_encoding(encoding, f"the tiktoken encoding of {type(tokenizer).__name__}")
    if file is None or not file.is_file():
        return None
    if is_tekken_vocab_filename(file):
        return Original.of_encoding(tiktoken_form.read_tekken(file), file.name, **TEKKEN_ROLES)
    if file.suffix == ".model" and (model := sentencepiece_form.read_model(file)):
        return Original.of_sentencepiece(file, model)
    if file.suffix in (".model", ".tiktoken"):
        raise UserError(
            f"a tiktoken file has ranks, but no pattern by which texts are split, got {str(file)!r} without the code "
            "of its tokenizer; set trust_remote_code to true if the code is in the same place, or save the tokenizer "
            "as tokenizer.json"
        )
    return None


def as_original(tokenizer: PreTrainedTokenizerBase, original: Original) -> PreTrainedTokenizerBase:
    """Returns ``tokenizer`` if it gives the ids of ``original``, otherwise the fast form of ``original``.

    Raises:
        UserError: If the fast form gives other ids, too.
    """
    is_fast = getattr(tokenizer, "backend_tokenizer", None) is not None
    if is_fast and not original.roles and _first_difference(tokenizer, original) is None:
        return tokenizer
    converted = _with_roles(original.fast_form(), tokenizer, original.roles)
    if text := _first_difference(converted, original):
        raise UserError(
            f"a tokenizer must have an exact fast form, but that of {original.kind} gives {text!r} the ids "
            f"{_encode(converted, text)[:8]} instead of {original.encode(text)[:8]}; use a tokenizer that has a "
            "tokenizer.json"
        )
    return converted


def _with_roles(
    fast: Tokenizer, tokenizer: PreTrainedTokenizerBase, roles: Mapping[str, str]
) -> PreTrainedTokenizerFast:
    """Gives a fast form the roles, the chat template and the tokens around a text that ``tokenizer`` has."""
    before, after = _around(tokenizer)
    if before or after:
        template = " ".join([*before, "$A", *after])
        ids = [(token, fast.token_to_id(token)) for token in dict.fromkeys(before + after)]
        fast.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    named = {**roles, **tokenizer.special_tokens_map}
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        **{role: token for role, token in named.items() if _is_token(fast, token)},
    )


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """Special tokens that a tokenizer writes before and after a text."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"])
    special = [token in tokenizer.all_special_tokens for token in tokens]
    first = special.index(False) if False in special else len(tokens)
    last = len(tokens) - (special[::-1].index(False) if False in special else 0)
    return tokens[:first], tokens[last:]


def _first_difference(tokenizer: PreTrainedTokenizerBase, original: Original) -> str | None:
    return next((text for text in PROBES if _encode(tokenizer, text) != original.encode(text)), None)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids


def _is_token(fast: Tokenizer, token: Any) -> bool:
    return isinstance(token, str) and fast.token_to_id(token) is not None
