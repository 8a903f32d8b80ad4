"""A tiny model, its vocabulary and a server that runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from served_teachers import Clock
from small_models import splitting_tokenizer, write_model
from stand_in_server import StandInServer
from transformers import AutoModelForCausalLM, PreTrainedModel

from xtoken_pl.tokenization import CanonicalVocabulary


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with more rows in its head than its tokenizer has tokens."""
    return write_model(tmp_path_factory.mktemp("served") / "split", splitting_tokenizer(), num_head_rows=520)


@pytest.fixture(scope="session")
def model(folder: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    """The same architecture with other weights."""
    other = write_model(tmp_path_factory.mktemp("other") / "split", splitting_tokenizer(), seed=9, num_head_rows=520)
    return AutoModelForCausalLM.from_pretrained(other).eval()


@pytest.fixture(scope="session")
def vocabulary() -> CanonicalVocabulary:
    return CanonicalVocabulary.from_tokenizer(splitting_tokenizer())


@pytest.fixture
def server(model: PreTrainedModel) -> Iterator[StandInServer]:
    torch.set_num_threads(1)
    with StandInServer(model, splitting_tokenizer()) as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()
