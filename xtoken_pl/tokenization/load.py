"""Loads a tokenizer, with an error message that says how to fix the source."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import reason_of

#: Names of the files that hold a tokenizer: those of `tokenizers`, and those that transformers converts.
_FILES = ("tokenizer.json", "tokenizer.model", "*.model", "vocab.json", "vocab.txt", "*.tiktoken")


def load_tokenizer(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer from ``source``, a directory or a hub id.

    Raises:
        UserError: If no tokenizer can be loaded from ``source``.
    """
    folder = Path(source)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _FILES):
        raise UserError(
            f"a tokenizer must be a directory with a tokenizer.json or a hub id; the directory {source!r} has no "
            "tokenizer.json. Copy the tokenizer's files into it, or check the path"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # `tokenizers` raises bare exceptions for an invalid tokenizer.json
        raise UserError(
            f"a tokenizer must be a directory with a tokenizer.json or a hub id; {source!r} could not be loaded. Check "
            f"the path (relative paths start at the working directory) or the id. Reason: {reason_of(error)}"
        ) from error
    return cast(PreTrainedTokenizerBase, tokenizer)
