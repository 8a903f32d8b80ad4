"""A server is specified by its address and the name of a variable: no key, and nothing that cannot be asked for."""

from __future__ import annotations

from typing import Any

import pytest

from xtoken_pl import Server, Teacher
from xtoken_pl.utilities.errors import UserError

URL = "http://localhost:8000/v1"


@pytest.mark.parametrize(
    "url", [URL, "https://api.example.com/v1", "http://10.0.0.1:30000", "http://[::1]:8000/v1", "http://gpu-7/a/b/"]
)
def test_an_address_is_kept_as_it_is(url: str) -> None:
    assert Server(url=url).url == url


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost:8000/v1", "/v1", "ftp://host/v1", "http://", "http:///v1", "http://host:port/v1"),
        *("http://host:0/v1", "http://host:99999/v1", "http://[host/v1", "http://ho st/v1", "http://host/v1\n"),
    ],
)
def test_what_is_no_address_is_named(url: str) -> None:
    with pytest.raises(UserError, match="begins with http://") as caught:
        Server(url=url)
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://me:s3cr3t@host/v1", "http://s3cr3t@host/v1", "http://host/v1?key=s3cr3t", "http://host/v1#s3cr3t"),
        *("me:s3cr3t@host/v1", "http://me:s3cr3t@host:port/v1", "http://me:s3cr3t@[host/v1"),
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="api_key_env") as caught:
        Server(url=url)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-s3cr3t", "hf_s3cr3t", "s3cr3t", "Bearer s3cr3t", "AKs3cr3t", "1s3cr3t", ""])
def test_a_key_in_place_of_a_variable_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(UserError, match="not the key itself") as caught:
        Server(url=URL, api_key_env=key)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ({"top_k": 0}, "top_k of a server must be >= 1, got 0"),
        ({"api": "foo"}, "api must be one of vllm, sglang, got 'foo'"),
        ({"concurrency": 0}, "concurrency must be >= 1, got 0"),
        ({"timeout": 0.0}, "timeout of a server must be a finite number of seconds > 0, got 0"),
        ({"patience": float("inf")}, "patience of a server must be a finite number of seconds > 0, got inf"),
        ({"patience": float("nan")}, "patience of a server must be a finite number of seconds > 0, got nan"),
    ],
)
def test_values_that_cannot_work_are_refused(option: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        Server(**{"url": URL, **option})


def test_the_model_of_a_teacher_is_the_servers_by_default() -> None:
    assert Teacher(server=Server(url=URL, model="org/big")).model == "org/big"
    assert Teacher(model="folder", server=Server(url=URL, model="big")).model == "folder"
    assert Teacher(model="org/big", server=Server(url=URL)).model == "org/big"


@pytest.mark.parametrize("server", [None, Server(url=URL), Server(url=URL, model="")])
def test_some_model_must_be_named(server: Server | None) -> None:
    with pytest.raises(UserError, match="needs a `model`"):
        Teacher(server=server)


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ({"temperature": 2.0}, "temperature of a served teacher must be 1, got 2.0"),
        ({"quantization": "4bit"}, "quantization is about weights in this process"),
        ({"cpu_offload": True}, "cpu_offload is about weights in this process"),
    ],
)
def test_options_of_weights_are_refused_beside_a_server(option: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        Teacher(model="big", server=Server(url=URL), **option)
