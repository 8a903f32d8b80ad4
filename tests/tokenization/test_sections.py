"""A long text that is encoded in sections gets the tokens of the whole text, from real tokenizers of every kind."""

from __future__ import annotations

import base64
import random
import unicodedata
from collections.abc import Callable
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import packing_tokenizer, splitting_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.tokenization.sections import encode_in_sections

PROSE = "".join(topics[name] for name in sorted(topics))[:60_000]
TEXTS = {
    "prose and code": PROSE,
    "digits": "".join(map(str, range(6_000))),
    "base64, no white space": base64.b64encode(random.Random(0).randbytes(20_000)).decode(),
    "one character": "a" * 20_000,
    "spaces": " " * 20_000,
    "white space of all kinds": ("x\n\n  \n" * 3 + " " * 7) * 700,
    "lines of white space": "a" + " \n" * 9_000 + " " * 3_000 + "b",
    "Japanese and emoji": "日本語の文章、数字１２３と👩‍👩‍👧。\n" * 900,
    "decomposed Vietnamese": unicodedata.normalize("NFD", "Việt Nam có khí hậu nhiệt đới. ") * 600,
    "names of special tokens": "<|endoftext|><s> a</s><|im_end|> " * 900,
}


def joined(vocabulary: CanonicalVocabulary, text: str, section_length: int) -> list[int]:
    return [token for section in encode_in_sections(vocabulary, text, section_length) for token in section.ids.tolist()]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", ["smollm2", "qwen3", "o200k", "llama3", "llama2_style"])
def test_sections_have_the_tokens_of_the_whole_text(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    vocabulary = CanonicalVocabulary.from_tokenizer(request.getfixturevalue(name))
    assert joined(vocabulary, TEXTS[kind], 8_192) == vocabulary.encode([TEXTS[kind]])[0]


@given(
    st.lists(
        st.sampled_from(["the ", "12345", " tokenizer", "\n\n", "é", "数字", "👩‍👧", "    ", "x" * 50]), max_size=400
    )
)
@pytest.mark.parametrize("make", [packing_tokenizer, splitting_tokenizer])
def test_sections_of_any_text_have_its_tokens(make: Callable[[], PreTrainedTokenizerFast], words: list[str]) -> None:
    vocabulary, text = CanonicalVocabulary.from_tokenizer(make()), "".join(words)
    assert joined(vocabulary, text, 640) == vocabulary.encode([text])[0]


def test_ends_are_the_characters_at_which_tokens_end(smollm2: PreTrainedTokenizerFast) -> None:
    vocabulary, text = CanonicalVocabulary.from_tokenizer(smollm2), TEXTS["Japanese and emoji"]
    written = b""
    for section in encode_in_sections(vocabulary, text, 4_096):
        for token, end in zip(section.ids.tolist(), section.ends.tolist(), strict=True):
            written += vocabulary.token_bytes[token]
            whole = written.decode(errors="replace")
            assert text[:end] == whole if end >= 0 else whole.endswith("\ufffd")


def test_white_space_that_a_post_processor_trims_belongs_to_its_token(smollm2: PreTrainedTokenizerFast) -> None:
    backend = smollm2.backend_tokenizer
    before = backend.post_processor
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    try:
        (section,) = encode_in_sections(CanonicalVocabulary.from_tokenizer(smollm2), "if x:\n\n    y ")
        assert type(backend.post_processor) is processors.ByteLevel
    finally:
        backend.post_processor = before
    lengths = CanonicalVocabulary.from_tokenizer(smollm2).num_bytes[section.ids]
    assert section.ends.tolist() == np.cumsum(lengths).tolist()


def test_only_sections_of_the_text_are_encoded_at_once(smollm2: PreTrainedTokenizerFast) -> None:
    vocabulary = CanonicalVocabulary.from_tokenizer(smollm2)
    sections = list(encode_in_sections(vocabulary, PROSE, 4_096))
    assert max(section.ends.max() - section.ends[section.ends >= 0].min() for section in sections) <= 4_096
    assert len(sections) <= 1.1 * len(PROSE) / 4_096
