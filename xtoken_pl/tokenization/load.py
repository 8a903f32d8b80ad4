"""Load a tokenizer, with an error that says what to do."""

from __future__ import annotations

from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def load_tokenizer(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of ``source``, a folder or a hub id.

    Raises:
        ValueError: If nothing can be loaded from there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"a tokenizer must be a folder with a tokenizer.json or a hub id; {source!r} could not be loaded. "
            f"Check the path (relative paths start at the working folder) or the id. Reason: {error}"
        ) from error
    return cast(PreTrainedTokenizerBase, tokenizer)
