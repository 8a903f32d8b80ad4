"""Wrong specifications of a teacher's server."""

from __future__ import annotations

from typing import Any

from wrong_inputs import Case, case

#: A key or a password that no message may show.
SECRET = "s3cr3t"
_SERVER = "--model.teachers.same.server"
_HERE = f"{_SERVER}.url http://localhost:8000/v1 {_SERVER}"


def _in_file(name: str, server: Any, *expected: str, teacher: str = "same", **options: Any) -> Case:
    config = {"model": {"teachers": {teacher: {"server": server, **options}}}}
    return case(f"servers: {name}", "", *expected, config=config)


CASES = [
    case("servers: unknown option", f"{_HERE}.tokens 8", f"{_SERVER}.tokens is not an option"),
    _in_file(
        "misspelled option",
        {"url": "http://localhost/v1", "topk": 8},
        *("model.teachers.same.server.topk in extra.yaml is not an option", "did you mean top_k?"),
    ),
    _in_file(
        "no address",
        {"top_k": 8},
        *("model.teachers.other.server.url is required, not given", "set it in a file"),
        teacher="other",
        model="same",
    ),
    _in_file(
        "no model",
        {"url": "http://localhost/v1"},
        *("model.teachers.other.model is required, not given", "set it in a file"),
        teacher="other",
    ),
    case(
        "servers: address alone",
        f"{_SERVER} http://localhost/v1",
        *("must be a mapping of options, got 'http://localhost/v1'", "did you mean {url: http://localhost/v1}?"),
    ),
    case("servers: null as an option", f"{_SERVER} null", "must be a mapping of options, got 'null'", "in a file"),
    _in_file("list", ["http://localhost/v1"], "model.teachers.same.server in extra.yaml must be a mapping of options"),
    case("servers: no tokens", f"{_HERE}.top_k 0", "top_k of a server must be >= 1, got 0", "'all' asks for"),
    case(
        "servers: tokens in words", f"{_HERE}.top_k some", f"{_SERVER}.top_k must be all or a whole number, got 'some'"
    ),
    case("servers: unknown protocol", f"{_HERE}.api foo", f"{_SERVER}.api must be one of vllm, sglang, got 'foo'"),
    case("servers: timeout", f"{_HERE}.timeout 0", "timeout of a server must be a finite number", "got 0"),
    case("servers: no protocol", f"{_SERVER}.url localhost:8000", "begins with http://", "got 'localhost:8000'"),
    case(
        "servers: password",
        f"{_SERVER}.url http://me:{SECRET}@localhost/v1",
        *("an address alone, without a user, a password", "api_key_env"),
    ),
    case(
        "servers: key", f"{_HERE}.api_key_env sk-{SECRET}", "the name of an environment variable", "not the key itself"
    ),
    case("servers: key of letters", f"{_HERE}.api_key_env hf_{SECRET}", "capital letters", "not the key itself"),
    case("servers: key as an option", f"{_HERE}.api_key {SECRET}", "is not an option", "did you mean api_key_env?"),
    _in_file(
        "key in a list",
        {"url": "http://localhost/v1", "api_key_env": [SECRET]},
        *("api_key_env in extra.yaml must be text or null", "may be secret"),
    ),
    case(
        "servers: temperature",
        f"{_HERE}.top_k 8 --model.teachers.same.temperature 2",
        *("temperature of a served teacher must be 1, got 2", "leave it out"),
    ),
    case(
        "servers: quantization",
        f"{_HERE}.top_k 8 --model.teachers.same.quantization 4bit",
        *("quantization is about weights in this process", "got '4bit'", "leave it out"),
    ),
]
