"""Tokenizers whose vocabulary is a short list of texts, and the two of the worked example of ESCD's paper."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def split_tokenizer(texts: Sequence[str], *, special: Sequence[str] = ("<eos>",)) -> PreTrainedTokenizerFast:
    """Cuts a text into the given ones, the longest first; the first special token is eos."""
    backend = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, [], ignore_merges=True))
    longest_first = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    split = pre_tokenizers.Split(Regex(longest_first), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[0])


#: The worked example of arXiv 2609.34738, appendix B.5.
STUDENT_TOKENS = ("Br", "Cat", "ead", "eads", "eak")
TEACHER_TOKENS = {"Bread": 0.4, "Breads": 0.2, "Break": 0.3, "Cat": 0.1}
