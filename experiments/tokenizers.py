"""The tokenizers of the student and its teachers: byte-level BPE, which differ in what they do with numbers.

- ``student`` packs numbers up to three digits into one token;
- ``splitting`` writes digits one by one, and merges words otherwise;
- ``packing`` packs numbers as the student does, under other ids, and merges words otherwise.

Two more write digits one by one, and differ in what they do with runs of capital letters, so that tokens of one often
end inside tokens of the other:

- ``pairs``, a student's, merges words as ``student`` does, and packs two letters of A to T into one token;
- ``halves`` merges words as ``packing`` does, and packs two or three letters of one half of the alphabet into one token
  if they are in alphabetical order.
"""

from __future__ import annotations

import json
from itertools import combinations, permutations
from string import ascii_uppercase
from typing import Literal

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from experiments.problems import problems
from xtoken_pl.tokenization.vocabulary import BYTE_TO_UNICODE

TokenizerName = Literal["student", "splitting", "packing", "pairs", "halves"]

_BOS, _EOS = "<|begin_of_text|>", "<|end_of_text|>"
_NUM_MERGES: dict[TokenizerName, int] = {"student": 90, "splitting": 110, "packing": 90}
_WORDS_AS: dict[TokenizerName, TokenizerName] = {"pairs": "student", "halves": "packing"}
_PACKS_NUMBERS: tuple[TokenizerName, ...] = ("student", "packing")
# Runs of capital letters are split into these pieces first.
_CAPITALS: dict[TokenizerName, str] = {
    "pairs": r"[A-T]{1,2}(?![a-z])|[U-Z](?![a-z])|",
    "halves": r"[A-M]{1,3}(?![a-z])|[N-Z]{1,3}(?![a-z])|",
}
_NUM_STORIES = 2000
# Teachers learned to merge on a text of their own beside a few stories: neither they nor the student have all tokens of
# the other.
_NUM_STORIES_OF_TEACHERS = 12
_OTHER_TEXTS: dict[TokenizerName, str] = {
    "splitting": """The harbour master counted ships at dawn and wrote their names in a thick ledger. Every captain owed
        a small fee for the night, and most of them paid with rope, tar or dried fish rather than silver. When storms
        came in from the west, nobody paid anything, and the master lit the lamps himself.""",
    "packing": """A gardener needs patience more than tools. Seeds that are placed too deep never appear, and those that
        stand too near the surface are taken by birds. She keeps a notebook: what was sown where, how much it rained,
        which beds gave beans and which gave only leaves. After ten springs the notebook is the garden.""",
}


def make_tokenizer(name: TokenizerName) -> PreTrainedTokenizerFast:
    """The tokenizer of a name; ``student`` and ``packing`` have a token for every number from 0 to 999."""
    packed = [*map(str, range(10, 1000))] if name in _PACKS_NUMBERS else _packed_letters(name)
    merges = _word_merges(_WORDS_AS.get(name, name))
    tokens = [_BOS, _EOS, *BYTE_TO_UNICODE.values(), *map("".join, merges), *packed]
    if name not in ("student", "pairs"):
        np.random.default_rng(0).shuffle(tokens)
    vocabulary, bos = {token: index for index, token in enumerate(tokens)}, tokens.index(_BOS)
    merges += [(text[:-1], text[-1]) for text in packed]
    # With ignore_merges a piece that is a token is that token: so are all numbers.
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = _pre_tokenizer("{1,3}" if name in _PACKS_NUMBERS else "", _CAPITALS.get(name, ""))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_BOS} $A", special_tokens=[(_BOS, bos)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=_BOS, eos_token=_EOS, pad_token=_EOS)


def _packed_letters(name: TokenizerName) -> list[str]:
    """The tokens of several capital letters; shorter ones first, which longer ones are merged from."""
    if name == "pairs":
        return ["".join(pair) for pair in permutations(ascii_uppercase[:20], 2)]
    if name == "halves":
        halves = (ascii_uppercase[:13], ascii_uppercase[13:])
        return ["".join(letters) for size in (2, 3) for half in halves for letters in combinations(half, size)]
    return []


def _pre_tokenizer(digits: str, capitals: str = "") -> pre_tokenizers.PreTokenizer:
    """Splits into pieces of capitals, numbers (of so many digits), words with the space before them, single others."""
    pattern = Regex(rf"{capitals}\p{{N}}{digits}| ?\p{{L}}+|[^\p{{N}}\p{{L}}]")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, behavior="isolated"), byte_level])


def _word_merges(name: TokenizerName) -> list[tuple[str, str]]:
    """The first merges of a BPE that is trained on stories, and for a teacher on a text of its own."""
    own = [_OTHER_TEXTS[name]] if name in _OTHER_TEXTS else []
    num_stories = _NUM_STORIES_OF_TEACHERS if own else _NUM_STORIES
    texts = own + [problem.prompt for problem in problems("words", num_stories, seed=0)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer("")
    trainer = trainers.BpeTrainer(
        vocab_size=256 + _NUM_MERGES[name], initial_alphabet=list(BYTE_TO_UNICODE.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
