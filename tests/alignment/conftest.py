"""Aligners of real pairs of tokenizers."""

import pytest
from transformers import PreTrainedTokenizerFast

from xtoken_pl.alignment import SpanAligner

PAIRS = [
    ("llama3", "qwen3"),
    ("llama3", "o200k"),
    ("llama2_style", "llama3"),
    ("llama3", "llama2_style"),
    pytest.param(("smollm2", "gemma3"), marks=pytest.mark.slow),  # Gemma 3 takes 20 seconds to read
]


@pytest.fixture(scope="session", params=PAIRS, ids="_from_".join)
def aligner(request: pytest.FixtureRequest) -> SpanAligner:
    student, teacher = (request.getfixturevalue(name) for name in request.param)
    return SpanAligner(student, teacher)


@pytest.fixture(scope="session")
def llama3_from_qwen3(llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast) -> SpanAligner:
    return SpanAligner(llama3, qwen3)


@pytest.fixture(scope="session")
def smollm2_from_llama3(smollm2: PreTrainedTokenizerFast, llama3: PreTrainedTokenizerFast) -> SpanAligner:
    return SpanAligner(smollm2, llama3)


@pytest.fixture(scope="session")
def llama2_style_from_llama3(llama2_style: PreTrainedTokenizerFast, llama3: PreTrainedTokenizerFast) -> SpanAligner:
    return SpanAligner(llama2_style, llama3)
