"""Tiny models and tokenizers that are made in a second, for tests that need many of them."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from xtoken_pl.cli.prepare import train_student_tokenizer

TEXTS = [topics[name] for name in sorted(topics)][:40]
_NUMERALS = " ".join(map(str, range(10, 200)))


@cache
def packing_tokenizer(size: int = 700) -> PreTrainedTokenizerFast:
    """Packs up to three digits into a token; bos before a text."""
    return train_student_tokenizer([*TEXTS, *[_NUMERALS] * 400], size)


@cache
def splitting_tokenizer(size: int = 500) -> PreTrainedTokenizerFast:
    """Splits digits one by one, another vocabulary, no bos."""
    tokenizer = train_student_tokenizer([text.swapcase() for text in TEXTS], size)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    backend.post_processor = None
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end_of_text|>", pad_token="<|end_of_text|>")


def without_bos_and_eos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with its special token for padding alone: nothing shows where a text begins or ends."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = None
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|end_of_text|>")


@cache
def reversing_tokenizer(size: int = 900) -> PreTrainedTokenizerFast:
    """Packs numbers as :func:`packing_tokenizer` does, but has learned words from back to front.

    Over ordinary text its spans with that one are of all kinds, and W finds pairs beyond equal text.
    """
    reversed_words = [" ".join(word[::-1] for word in text.split(" ")) for text in TEXTS]
    return train_student_tokenizer([*reversed_words, *[_NUMERALS] * 400], size)


def write_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int = 0,
    num_head_rows: int | None = None,
    hidden_size: int = 32,
    scale: float = 8.0,
    tied: bool = False,
) -> str:
    """A random two-layer Llama with its tokenizer in ``folder``; returns the path.

    Args:
        num_head_rows: Rows of the head, when more or fewer than the tokenizer has.
        scale: Factor on the head, so that distributions are far from uniform.
        tied: Whether the head is the input embedding.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=num_head_rows or len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_neox(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int = 1,
    dropout: float = 0.0,
    max_position_embeddings: int = 64,
) -> str:
    """A random two-layer GPT-NeoX with its tokenizer in ``folder``; returns the path.

    Llama's normalization layers compute in float32, whatever the precision of the model; GPT-NeoX's do not.
    """
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=max_position_embeddings,
        rotary_pct=1.0,
        hidden_dropout=dropout,
        attention_dropout=0.0,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def numeral_tokenizer(
    *, longest_token: int, longest_split: int | None = None, letters: str = ""
) -> PreTrainedTokenizerFast:
    """Letters, and numerals of the digits 0 and 1. A text may be split into shorter numerals than there are."""
    lengths = range(1, longest_token + 1)
    tokens = [*letters, *("".join(digits) for length in lengths for digits in product("01", repeat=length))]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(rf"\p{{N}}{{1,{longest_split or longest_token}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
