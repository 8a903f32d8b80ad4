"""Reads the weights of a GGUF file; configuration and tokenizer come from the original model.

GGUF has neither exactly: of a tokenizer it holds the tokens and the name of a pre-tokenizer, and of the configuration
what llama.cpp reads.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from xtoken_pl.models.completeness import check_keys, check_numbers
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import first_of, reason_of

#: SentencePiece's sign for a space, which some files spell as one.
_SPACE = "▁"


def load_gguf(
    file: Path, config: PreTrainedConfig | None = None, *, role: str, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Loads and dequantizes the weights of a GGUF file.

    Args:
        file: The file.
        config: Configuration of the model; None takes what the file has of it.
        role: Role of the model in messages.
        dtype: Data type of the weights.

    Raises:
        UserError: If a package is missing, transformers does not read the file or its architecture, or weights are
            missing, have other shapes or are not numbers.
    """
    check_gguf_packages()
    options: dict[str, Any] = {} if config is None else {"config": config}
    options |= {"quantization_config": GgufConfig(dequantize=True), "dtype": dtype}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **options)
    except Exception as error:  # of the library that reads the file, of NumPy, or of transformers
        raise UserError(
            f"the weights of the {role} must be a GGUF file of an architecture that transformers reads, but "
            f"{str(file)!r} ({architecture(file)}) could not be loaded; use the original checkpoint, or another file. "
            f"Reason: {reason_of(error)}"
        ) from error
    check_keys(model, found, files=str(file), role=role)
    check_numbers(model, files=str(file), role=role)
    return cast(PreTrainedModel, model)


def check_gguf_packages() -> None:
    """Checks that the packages that read GGUF files are installed.

    Raises:
        UserError: If one is not.
    """
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise UserError(
            f"reading a GGUF file needs packages that are not installed ({', '.join(missing)}); run: pip install "
            "'xtoken_pl[quickstart]'"
        )


def architecture(file: Path) -> str:
    """Name of the architecture, for messages."""
    name = _field(file, "general.architecture")
    return "no GGUF file" if name is None else f"architecture {name!r}"


def check_tokens(file: Path, tokenizer: PreTrainedTokenizerBase, *, original: str) -> None:
    """Checks that a tokenizer gives every token the id that it has in a GGUF file.

    Args:
        file: The GGUF file.
        tokenizer: Tokenizer of the original model.
        original: Directory or hub id of the original model, for messages.

    Raises:
        UserError: If the file holds no tokens, the tokenizer has more, or tokens differ.
    """
    tokens: list[str] | None = _field(file, "tokenizer.ggml.tokens")
    if tokens is None:
        raise UserError(
            f"a GGUF file must hold its tokens (tokenizer.ggml.tokens), but {str(file)!r} has none; give another file"
        )
    backend: Tokenizer = tokenizer.backend_tokenizer
    ids = backend.get_vocab(with_added_tokens=True).values()
    different = [
        f"{index} is {tokens[index]!r}, not {piece!r}" if index < len(tokens) else f"{index} ({piece!r}) is missing"
        for index in sorted(ids)
        if (piece := backend.id_to_token(index)) is not None
        if index >= len(tokens) or tokens[index].replace(_SPACE, " ") != piece.replace(_SPACE, " ")
    ]
    if different:
        raise UserError(
            f"the tokens of {str(file)!r} must be those of {original!r}, but {len(different)} of {len(ids)} differ: "
            f"{first_of(different)}; give the model that the file was made from"
        )


def _field(file: Path, name: str) -> Any:
    """A value of a GGUF file's metadata; None if there is none, or it is not a GGUF file."""
    from gguf import GGUFReader

    try:
        field = GGUFReader(file).fields.get(name)
    except (ValueError, IndexError):
        return None
    return None if field is None else field.contents()
