"""Failures of a server: each is waited for or stops the run, and no wrong row is ever returned."""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections import deque
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from served_teachers import Clock, ask, assert_equal_rows, served, token_batch
from stand_in_server import RETRY_AFTER, FailureKind, StandInServer
from transformers import PreTrainedModel

from xtoken_pl.specs import Server
from xtoken_pl.teachers.served.teacher import ServedTeacher
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

_BATCH = token_batch([[5, 17, 300, 42, 8], [77, 6, 6, 410]], [[0, 1, 3], [2]])
_WRONG: list[FailureKind] = ["text", "short", "nan", "few", "no_mass", "too_much"]
_TRANSIENT: list[FailureKind] = ["reset", "cut", "gzip", "busy", "error", *_WRONG]
_APIS = pytest.mark.parametrize("api", ["vllm", "sglang"])


@_APIS
@pytest.mark.parametrize("kind", _TRANSIENT)
def test_a_failure_changes_no_number(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, kind: FailureKind, api: str
) -> None:
    expected = ask(served(server, vocabulary, clock, api=api), _BATCH)
    assert not clock.pauses
    server.fail(kind)
    assert_equal_rows(ask(served(server, vocabulary, clock, api=api), _BATCH), expected)
    assert len(clock.pauses) == 1


def test_a_slow_server_is_asked_again(server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock) -> None:
    expected = ask(served(server, vocabulary, clock), _BATCH)
    server.fail("slow")
    assert_equal_rows(ask(served(server, vocabulary, clock, timeout=1.0), _BATCH), expected)
    assert len(clock.pauses) >= 1


def test_an_absent_server_is_waited_for(server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock) -> None:
    teacher = served(server, vocabulary, clock, concurrency=1)
    expected = ask(teacher, _BATCH)
    server.stop()

    def start_later() -> None:
        if len(clock.pauses) == 5:
            server.start()

    clock.on_sleep = start_later
    assert_equal_rows(ask(teacher, _BATCH), expected)
    assert clock.pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_a_connection_that_is_cut_before_it_is_encrypted_is_made_again(
    vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def cut() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:  # it is closed
                    return
                connection.recv(10_000)
                connection.shutdown(socket.SHUT_RDWR)
                connection.close()

        threading.Thread(target=cut, daemon=True).start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/v1"
        teacher = ServedTeacher(
            "phi", Server(url=url, model="m", top_k=8, patience=3.0), vocabulary, now=clock.now, sleep=clock.sleep
        )
        with pytest.raises(UserError, match=r"must answer within patience=3 s.*connection lost while it was made"):
            ask(teacher, _BATCH)


def test_a_server_without_encryption_is_refused_at_once(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    with pytest.raises(UserError, match="must speak TLS with a valid certificate"):
        ask(served(server, vocabulary, clock, url=server.url.replace("http:", "https:")), _BATCH)
    assert not clock.pauses


@_APIS
def test_a_server_that_returns_with_other_weights_stops_the_run(
    server: StandInServer,
    vocabulary: CanonicalVocabulary,
    clock: Clock,
    other_model: PreTrainedModel,
    api: str,
) -> None:
    teacher = served(server, vocabulary, clock, api=api)
    ask(teacher, _BATCH)
    server.model = other_model
    server.fail("reset")
    with pytest.raises(UserError, match=r"same model throughout a run, but .* differ by .* nats"):
        ask(teacher, _BATCH)


def test_other_weights_after_a_silence_are_noticed(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, other_model: PreTrainedModel
) -> None:
    teacher = served(server, vocabulary, clock)
    ask(teacher, _BATCH)
    server.model = other_model
    clock.time += 60.0
    with pytest.raises(UserError, match="same model throughout a run"):
        ask(teacher, _BATCH)


def test_the_probe_is_not_repeated_without_a_reason(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    teacher = served(server, vocabulary, clock)
    ask(teacher, _BATCH)
    assert len(server.prompts) == 3
    ask(teacher, _BATCH)
    assert len(server.prompts) == 5


def test_another_model_stops_at_once(server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock) -> None:
    server.fail("model")
    with pytest.raises(UserError, match="must answer for model 'teacher', but answers for 'another'"):
        ask(served(server, vocabulary, clock), _BATCH)
    assert not clock.pauses


@_APIS
def test_another_text_stops_at_once(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, api: str
) -> None:
    server.fail("token", "token")
    with pytest.raises(UserError, match="must read the token ids as they are sent"):
        ask(served(server, vocabulary, clock, api=api), _BATCH)
    assert not clock.pauses


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_logprobs": 5}, "status 400.*Requested prompt logprobs of 8, which is greater than max allowed: 5"),
        ({"max_model_len": 3}, "status 400.*maximum context length is 3 tokens"),
        ({"name": "moved"}, "status 404.*`teacher` does not exist.*check `url` and `model`"),
        ({"api_key": "right"}, "status 401.*Unauthorized.*name the environment variable .* by `api_key_env`"),
        ({"failures": deque(["redirect"])}, "status 307.*set `url` to the address that it redirects to"),
    ],
)
def test_a_refusal_stops_at_once_in_the_words_of_the_server(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, options: dict[str, object], said: str
) -> None:
    for name, value in options.items():
        setattr(server, name, value)
    with pytest.raises(UserError, match=said):
        ask(served(server, vocabulary, clock, model="teacher"), _BATCH)
    assert not clock.pauses


def test_a_server_is_given_up_when_the_patience_is_used_up(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    server.stop()
    with pytest.raises(UserError, match=r"must answer within patience=60 s.*Connection refused.*Start the server"):
        ask(served(server, vocabulary, clock, patience=60.0, concurrency=1), _BATCH)
    assert 50.0 <= sum(clock.pauses) <= 60.0


def test_the_patience_begins_anew_with_each_answer(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    batch = token_batch([[5, 17 + index, 300] for index in range(10)], [[0, 1]] * 10)
    teacher = served(server, vocabulary, clock, patience=10.0, concurrency=1)
    expected = ask(teacher, batch)
    for _ in range(10):  # 7 seconds each
        server.fail("busy", None, None)  # the answer to the request, and to the probe
    clock.time += 1000.0
    assert_equal_rows(ask(teacher, batch), expected)
    assert clock.pauses == [RETRY_AFTER] * 10


@pytest.mark.parametrize(
    ("named", "shortest", "longest"),
    [
        ("7", 7.0, 7.0),
        ("0", 0.5, 0.5),
        (format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True), 0.5, 3600.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.5, 0.5),
        ("soon", 0.5, 0.5),
    ],
    ids=["seconds", "no seconds", "date", "date of the past", "no date"],
)
def test_the_server_may_ask_for_a_longer_pause(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, named: str, shortest: float, longest: float
) -> None:
    server.retry_after = named
    server.fail("busy")
    ask(served(server, vocabulary, clock, patience=7200.0), _BATCH)
    (pause,) = clock.pauses
    assert shortest <= pause <= longest


def test_a_longer_wait_than_the_patience_is_not_begun(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    server.fail(*["busy"] * 4)
    with pytest.raises(UserError, match=r"patience=5 s.*status 429: Too many requests"):
        ask(served(server, vocabulary, clock, patience=5.0), _BATCH)
    assert not clock.pauses


def test_waiting_draws_no_random_number(server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock) -> None:
    server.fail("error", "reset", "nan")
    state = random.getstate()
    ask(served(server, vocabulary, clock), _BATCH)
    assert random.getstate() == state


def test_one_line_tells_that_waiting_begins_and_one_that_it_ends(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    batch = token_batch([[5, 17 + index, 300] for index in range(6)], [[0, 1]] * 6)
    teacher = served(server, vocabulary, clock, concurrency=1)
    server.fail("error", "error", "error")
    with caplog.at_level(logging.INFO):
        ask(teacher, batch)
    begins, ends = (record.getMessage() for record in caplog.records if "the server of" in record.getMessage())
    assert "'phi'" in begins
    assert "does not answer as it should (status 503: Service Unavailable); it is asked again for up to 600 s" in begins
    assert ends.endswith("answers again, after 4 s")
