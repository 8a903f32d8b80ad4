"""Where numerals stand in a batch and what models say of them: from plain transformers, and tokens as text."""

from __future__ import annotations

from typing import cast

import torch
from small_models import packing_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from xtoken_pl.batch import DistillBatch


def is_numeral(text: str) -> bool:
    return text.isdigit() and len(text) > 1


def texts_of(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The text of every token of ASCII, the written name of every other."""
    return [
        token.replace("Ġ", " ").replace("Ċ", "\n") for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    ]


def numerals() -> list[int]:
    return [token for token, text in enumerate(texts_of(packing_tokenizer())) if is_numeral(text)]


def probabilities(folder: str, ids: Tensor) -> Tensor:
    """[T, V]: of the token after each."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        return cast(Tensor, model(ids[None]).logits[0].softmax(-1))


def sequences(batch: DistillBatch, teacher: str | None = None) -> list[Tensor]:
    """The token ids of every sequence, without padding."""
    tokens = batch.student if teacher is None else batch.teachers[teacher].tokens
    return [ids[mask.bool()] for ids, mask in zip(tokens.input_ids, tokens.attention_mask, strict=True)]


def numeral_rows(ids: Tensor) -> list[int]:
    """Places whose next token is a numeral."""
    chosen = set(numerals())
    return [place - 1 for place, token in enumerate(ids.tolist()) if place and token in chosen]


def known_to(folder: str) -> list[str]:
    """Texts whose numeral is the student's most probable token."""
    tokenizer, texts = packing_tokenizer(), texts_of(packing_tokenizer())
    found = []
    for sign in "=+-*/;:,.!?":
        guess = int(probabilities(folder, torch.tensor(tokenizer(sign)["input_ids"][:2]))[-1].argmax())
        found += [sign + texts[guess]] if guess in numerals() else []
    return found


def starts(ids: Tensor, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The place in the text where each token begins; special tokens have no text."""
    texts, special = texts_of(tokenizer), set(tokenizer.all_special_ids)
    lengths = [0 if token in special else len(texts[token]) for token in ids.tolist()]
    return [sum(lengths[:place]) for place in range(len(lengths))]
