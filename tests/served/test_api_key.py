"""The API key reaches the server and nothing else."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable

import pytest
from served_teachers import Clock, ask, served, token_batch
from stand_in_server import StandInServer

from xtoken_pl.teachers.served.checks import check_server
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

_KEY = "sk-SECRET-0123456789"
_BATCH = token_batch([[5, 17, 300, 42, 8]], [[0, 1, 3]])


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch, server: StandInServer) -> str:
    monkeypatch.setenv("TEACHER_KEY", _KEY)
    server.api_key = _KEY
    return _KEY


def test_every_request_carries_the_key(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, key: str
) -> None:
    teacher = served(server, vocabulary, clock, api_key_env="TEACHER_KEY")
    check_server(teacher, 128)
    ask(teacher, _BATCH)
    assert {headers.get("Authorization") for headers in server.headers} == {f"Bearer {key}"}


def test_a_netrc_file_does_not_replace_the_key(
    server: StandInServer,
    vocabulary: CanonicalVocabulary,
    clock: Clock,
    key: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    ask(served(server, vocabulary, clock, api_key_env="TEACHER_KEY"), _BATCH)
    server.api_key = None
    ask(served(server, vocabulary, clock), _BATCH)
    assert {headers.get("Authorization") for headers in server.headers} == {f"Bearer {key}", None}


def _lost(server: StandInServer) -> None:
    server.fail("reset")


def _broken(server: StandInServer) -> None:
    server.fail("error")


def _gone(server: StandInServer) -> None:
    server.stop()


def _refused(server: StandInServer) -> None:
    server.api_key, server.repeats_key = "another", True


def _busy(server: StandInServer) -> None:
    server.fail("busy")


@pytest.mark.parametrize("break_it", [_lost, _broken, _gone, _refused, _busy])
def test_the_key_is_in_no_message_log_or_state(
    server: StandInServer,
    vocabulary: CanonicalVocabulary,
    clock: Clock,
    key: str,
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[StandInServer], None],
) -> None:
    teacher = served(server, vocabulary, clock, api_key_env="TEACHER_KEY", patience=0.1)
    ask(teacher, _BATCH)
    break_it(server)
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as caught:
        ask(teacher, _BATCH)
    shown = [repr(caught.value), repr(caught.value.__cause__), caplog.text]
    shown += [
        repr(teacher),
        repr(vars(teacher)),
        repr(teacher.scorer),
        repr(vars(teacher.scorer)),
        repr(teacher.server),
    ]
    assert not [text for text in shown if key in text]
    assert key.encode() not in pickle.dumps(teacher.server)
    assert teacher.__getstate__()["_scorer"] is None


@pytest.mark.parametrize(("value", "said"), [(None, "but it is not set"), (" ", "but it is empty")])
def test_a_missing_key_is_refused_by_the_name_of_its_variable(
    server: StandInServer,
    vocabulary: CanonicalVocabulary,
    clock: Clock,
    value: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEACHER_KEY", value)
    with pytest.raises(UserError, match=f"environment variable 'TEACHER_KEY' must hold the API key .*{said}"):
        check_server(served(server, vocabulary, clock, api_key_env="TEACHER_KEY"), 128)
    assert not server.headers


def test_a_wrong_key_is_refused_by_the_name_of_its_variable(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, key: str
) -> None:
    server.api_key = "another"
    with pytest.raises(UserError, match=r"status 401.*check the key that the environment variable 'TEACHER_KEY' holds"):
        check_server(served(server, vocabulary, clock, api_key_env="TEACHER_KEY"), 128)


@pytest.mark.parametrize("bad", ["sk-SECRET\nX-Other: 1", "sk-SECRET schlüssel"])
def test_a_key_that_is_none_is_refused_without_being_shown(
    server: StandInServer,
    vocabulary: CanonicalVocabulary,
    clock: Clock,
    bad: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEACHER_KEY", bad)
    with pytest.raises(UserError, match="must consist of printable ASCII characters") as caught:
        ask(served(server, vocabulary, clock, api_key_env="TEACHER_KEY"), _BATCH)
    assert "SECRET" not in str(caught.value)


def test_the_client_cannot_be_pickled(server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock) -> None:
    teacher = served(server, vocabulary, clock)
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(teacher.scorer.client)
