"""Fast forms of tokenizers that come without a tokenizer.json, compared with the programs that they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

from xtoken_pl.tokenization import bytes_form, sentencepiece_form, tiktoken_form
from xtoken_pl.tokenization.tokenizer_file import PROBES, with_settings
from xtoken_pl.tokenization.vocabulary import encode_texts
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import first_of

#: What Mistral's tokenizers call their special tokens; a tekken.json names no roles.
TEKKEN_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class Original:
    """A tokenizer that is not a fast one.

    Attributes:
        kind: What it is, for messages.
        encode: Ids of a text in its own program, without special tokens.
        fast_form: Builds the same tokenizer for the `tokenizers` library.
        probes: Texts whose ids are compared.
    """

    kind: str
    encode: Callable[[str], list[int]]
    fast_form: Callable[[], Tokenizer]
    probes: tuple[str, ...] = PROBES

    def first_difference(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Finds the first text of :attr:`probes` to which ``tokenizer`` gives other ids; None if there is none."""
        return next((text for text in self.probes if _encode(tokenizer, text) != self.encode(text)), None)


def find_original(tokenizer: PreTrainedTokenizerBase, file: Path | None) -> Original | None:
    """Finds the tokenizer that the one from transformers stands for; None if it is a fast one from the start.

    Args:
        tokenizer: Tokenizer that transformers loaded.
        file: File that holds its tokens, if there is one.

    Raises:
        UserError: If the file has tiktoken's ranks alone, see :func:`refuse_ranks`.
    """
    own = partial(_encode, tokenizer)
    if isinstance(tokenizer, ByT5Tokenizer):
        return Original("ByT5", own, partial(bytes_form.fast_form, tokenizer))
    if encoding := tiktoken_form.find_encoding(tokenizer):
        kind = f"the tiktoken encoding of {type(tokenizer).__name__}"
        return Original(kind, own, partial(tiktoken_form.fast_form, encoding))
    if file is None or not file.is_file():
        return None
    refuse_ranks(file)
    if file.suffix == ".model" and (model := sentencepiece_form.read_model(file)):
        return _of_sentencepiece(file, model, own if _backend(tokenizer) is None else None)
    return None


def _of_sentencepiece(file: Path, model: Any, own: Callable[[str], list[int]] | None) -> Original:
    sentencepiece_form.check(model, file.name)
    from sentencepiece import SentencePieceProcessor

    encode = own or SentencePieceProcessor(model_proto=model.SerializeToString()).encode
    return Original(
        f"the SentencePiece model {file.name}",
        encode,
        partial(sentencepiece_form.fast_form, model),
        (*PROBES, *sentencepiece_form.probes(model)),
    )


def refuse_ranks(file: Path) -> None:
    """Raises an error if a file has tiktoken's ranks alone: the pattern that splits texts is in the code of the model.

    Raises:
        UserError: If it has.
    """
    if tiktoken_form.has_ranks(file):
        raise UserError(
            f"a tiktoken file has ranks, but no pattern by which texts are split, got {str(file)!r} without the code "
            "of its tokenizer; set trust_remote_code to true if the code is in the same place, or save the tokenizer "
            "as tokenizer.json"
        )


def require(packages: Mapping[str, str], file: str) -> None:
    """Raises an error if packages that read a tokenizer's file are missing.

    Args:
        packages: Names of the packages by the modules that they have.
        file: Name of the file, for the message.

    Raises:
        UserError: If one of them is not installed.
    """
    missing = [name for module, name in packages.items() if not _is_installed(module)]
    if missing:
        raise UserError(
            f"{file} is read with {' and '.join(missing)}, which is not installed; install it (pip install "
            "'xtoken_pl[tokenizers]'), or use a tokenizer that has a tokenizer.json"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that would hold it
        return False


def from_tekken(file: Path, settings: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Builds the tokenizer of Mistral's tekken.json, which writes the bos token before a text.

    Args:
        file: The tekken.json.
        settings: Contents of tokenizer_config.json: its roles and its chat template are taken over, and without a bos
            token, or with ``add_bos_token`` set to false, a text begins with its own tokens. A role whose token the
            tekken.json lacks is left out, with a warning.

    Raises:
        UserError: If tiktoken is not installed, or splits the probes in another way.
    """
    require({"tiktoken": "tiktoken"}, file.name)
    encoding = tiktoken_form.read_tekken(file)
    original = Original(file.name, encoding.encode_ordinary, partial(tiktoken_form.fast_form, encoding))
    fast = original.fast_form()
    roles = _tekken_roles(fast, settings)
    if "bos_token" in roles and settings.get("add_bos_token") is not False:
        _write_around(fast, [roles["bos_token"]], [])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, chat_template=settings.get("chat_template"), **roles)
    _check(tokenizer, original)
    return tokenizer


def _tekken_roles(fast: Tokenizer, settings: Mapping[str, Any]) -> dict[str, str]:
    """Reads the special tokens that have roles: those that the settings name, otherwise Mistral's."""
    declared = {role: settings[role] for role in TEKKEN_ROLES if role in settings}
    # An AddedToken is written as an object.
    named = {role: value.get("content") if isinstance(value, dict) else value for role, value in declared.items()}
    roles: dict[str, Any] = TEKKEN_ROLES | named
    known = {role: token for role, token in roles.items() if _is_token(fast, token)}
    if lost := [f"{role} {token!r}" for role, token in named.items() if token is not None and role not in known]:
        # Lightning takes seconds to import, and most commands that load a tokenizer do not need it.
        from lightning.pytorch.utilities import rank_zero_warn

        rank_zero_warn(f"roles of tokenizer_config.json are left out, whose tokens tekken.json lacks: {first_of(lost)}")
    return known


def as_original(tokenizer: PreTrainedTokenizerBase, original: Original) -> PreTrainedTokenizerBase:
    """Returns ``tokenizer`` if it is fast and gives the ids of ``original``, otherwise the fast form of ``original``.

    Code around an encoding may compose characters first, as Qwen's does: if the fast form differs from a slow
    tokenizer, that with NFC is tried.

    Raises:
        UserError: If the fast form gives other ids, too.
    """
    is_slow = _backend(tokenizer) is None
    if not is_slow and original.first_difference(tokenizer) is None:
        return tokenizer
    fast = original.fast_form()
    _write_around(fast, *_around(tokenizer))
    converted = _with_settings(fast, tokenizer)
    if is_slow and fast.normalizer is None and original.first_difference(converted) is not None:
        composing = Tokenizer.from_str(fast.to_str())
        composing.normalizer = normalizers.NFC()
        composed = _with_settings(composing, tokenizer)
        if original.first_difference(composed) is None:
            return composed
    _check(converted, original)
    return converted


def _with_settings(fast: Tokenizer, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """Gives a fast form the settings of ``tokenizer``, without special tokens that are ordinary ones of the form.

    transformers takes all user-defined pieces of a SentencePiece model for special tokens, which have no bytes.
    """
    special = {token.content for token in fast.get_added_tokens_decoder().values() if token.special}
    kept = special.union(tokenizer.special_tokens_map.values())
    return with_settings(tokenizer, lambda token: token in kept and _is_token(fast, token), tokenizer_object=fast)


def _check(converted: PreTrainedTokenizerFast, original: Original) -> None:
    text = original.first_difference(converted)
    if text is not None:
        raise UserError(
            f"a tokenizer must have an exact fast form, but that of {original.kind} gives {text!r} the ids "
            f"{_encode(converted, text)[:8]} instead of {original.encode(text)[:8]}; use a tokenizer that has a "
            "tokenizer.json"
        )


def _write_around(fast: Tokenizer, before: list[str], after: list[str]) -> None:
    """Lets a tokenizer write special tokens before and after a text."""
    if before or after:
        template = " ".join([*before, "$A", *after])
        ids = [(token, fast.token_to_id(token)) for token in dict.fromkeys(before + after)]
        fast.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """Special tokens that a tokenizer writes before and after a text."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"])
    special = [token in tokenizer.all_special_tokens for token in tokens]
    first = special.index(False) if False in special else len(tokens)
    last = len(tokens) - (special[::-1].index(False) if False in special else 0)
    return tokens[:first], tokens[last:]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return encode_texts(tokenizer, [text])[0]


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any | None:
    return getattr(tokenizer, "backend_tokenizer", None)


def _is_token(fast: Tokenizer, token: Any) -> bool:
    return isinstance(token, str) and fast.token_to_id(token) is not None
