"""The fast form of ByT5's tokenizer, whose tokens are single bytes."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from xtoken_pl.tokenization.vocabulary import BYTE_TO_UNICODE


def fast_form(tokenizer: Any) -> Tokenizer:
    """Builds a byte-level BPE without merges, with the ids of a ``ByT5Tokenizer``."""
    vocabulary = {character: byte + tokenizer.offset for byte, character in BYTE_TO_UNICODE.items()}
    special = {token.content: token_id for token_id, token in sorted(tokenizer.added_tokens_decoder.items())}
    fast = Tokenizer(models.BPE(vocabulary | special, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return fast
