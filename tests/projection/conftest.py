"""Projections between real vocabularies, and a small one."""

import pytest
from projections import Built, sparse
from transformers import PreTrainedTokenizerFast

from xtoken_pl.projection import Projection


@pytest.fixture(scope="session")
def llama3_from_qwen3(llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast) -> Built:
    return Built(llama3, qwen3)


@pytest.fixture(scope="session")
def llama3_from_o200k(llama3: PreTrainedTokenizerFast, o200k: PreTrainedTokenizerFast) -> Built:
    return Built(llama3, o200k)


@pytest.fixture(
    scope="session",
    params=[("llama2_style", "smollm2_first_2000"), ("smollm2_first_2000", "llama2_style")],
    ids="_from_".join,
)
def small_pair(request: pytest.FixtureRequest) -> Built:
    return Built(*map(request.getfixturevalue, request.param))


@pytest.fixture
def small() -> Projection:
    return sparse([{0: 1.0}, {2: 0.9, 1: 0.1}, {}, {3: 0.75, 0: 0.25}, {3: 1.0}], num_teacher=6)
