"""What is refused before training: another model, tokenizer or context, fewer tokens than asked, no such server."""

from __future__ import annotations

import numpy as np
import pytest
from served_teachers import Clock, ask, served, token_batch
from small_models import packing_tokenizer
from stand_in_server import StandInServer
from transformers import PreTrainedModel

from xtoken_pl.teachers.served.checks import check_server
from xtoken_pl.teachers.served.teacher import ServedTeacher
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

_APIS = pytest.mark.parametrize("api", ["vllm", "sglang"])


@_APIS
def test_a_good_server_passes_and_its_probe_is_remembered(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, other_model: PreTrainedModel, api: str
) -> None:
    teacher = served(server, vocabulary, clock, api=api)
    check_server(teacher, sequence_length=511)
    assert teacher.probe.log_probs is not None
    assert np.isfinite(teacher.probe.log_probs).all()
    server.model = other_model
    server.fail("reset")
    with pytest.raises(UserError, match="same model throughout a run"):
        ask(teacher, token_batch([[1, 2]], [[0]]))


def test_another_model_is_refused_by_name(server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock) -> None:
    with pytest.raises(UserError, match=r"must serve model 'phi-4', but serves teacher; .*`model` of the server"):
        check_server(served(server, vocabulary, clock, model="phi-4"), 128)


@_APIS
def test_another_tokenizer_is_refused(server: StandInServer, clock: Clock, api: str) -> None:
    other = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    with pytest.raises(UserError, match=r"must have the teacher's tokenizer, but of a probe text it makes \[\d+, .*"):
        check_server(served(server, other, clock, api=api), 128)


def test_a_server_without_a_tokenizer_gives_a_warning(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    server.has_tokenize = False
    with pytest.warns(UserWarning, match="has no /tokenize, so that its tokenizer could not be compared"):
        check_server(served(server, vocabulary, clock), 128)


@_APIS
def test_a_short_context_is_refused(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, api: str
) -> None:
    teacher = served(server, vocabulary, clock, api=api)
    with pytest.raises(UserError, match=r"data.sequence_length=512 tokens and one more, but its context has 512"):
        check_server(teacher, sequence_length=512)


@pytest.mark.parametrize(("top_k", "option"), [(8, "--max-logprobs 8"), ("all", "--max-logprobs -1")])
def test_the_largest_number_of_tokens_is_named(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, top_k: int | str, option: str
) -> None:
    server.max_logprobs = 5
    with pytest.raises(UserError, match=rf"top_k={top_k} tokens of a row, but gives at most 5; start it with {option}"):
        check_server(served(server, vocabulary, clock, top_k=top_k), 128)


def test_more_tokens_than_the_vocabulary_has_are_refused_without_a_request(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    with pytest.raises(UserError, match=r"top_k .*must be at most the number of its tokens, \d+, got 5000"):
        check_server(served(server, vocabulary, clock, top_k=5000), 128)
    assert not server.headers


def test_all_tokens_of_an_sglang_server_are_refused(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    with pytest.raises(UserError, match="top_k of an SGLang server must be a number, got 'all'"):
        check_server(served(server, vocabulary, clock, top_k="all", api="sglang"), 128)


def test_an_answer_of_another_kind_of_server_is_refused_at_once(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many servers speak OpenAI's protocol without ``prompt_logprobs``."""
    monkeypatch.setattr("stand_in_server.vllm_answer", lambda rows, name, tokenizer: {"model": name, "choices": [{}]})
    with pytest.raises(UserError, match="gave an answer without prompt_logprobs; check that it is a server of api="):
        check_server(served(server, vocabulary, clock), 128)
    assert not clock.pauses


def test_a_server_that_is_not_up_yet_is_waited_for(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    server.stop()
    clock.on_sleep = lambda: server.start() if len(clock.pauses) == 3 else None
    check_server(served(server, vocabulary, clock), 128)
    assert len(clock.pauses) == 3


def test_the_probe_fits_any_context(vocabulary: CanonicalVocabulary, server: StandInServer, clock: Clock) -> None:
    teacher: ServedTeacher = served(server, vocabulary, clock)
    assert 16 <= len(teacher.probe.ids) <= 32
