"""Answers recorded from a real vLLM server: they are read as they should be, and the stand-in answers like them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from stand_in_server import StandInServer

from xtoken_pl.teachers.served.answers import Question, text_rows
from xtoken_pl.teachers.served.vllm import VllmApi

_RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("recorded_vllm.json").read_text())
_COMPLETION = _RECORDED["completion"]


def test_the_rows_of_a_recorded_answer_are_read() -> None:
    ids = _COMPLETION["request"]["prompt"]
    question = Question(ids, np.array([1, 2, 6]), top_k=4)
    api = VllmApi("smollm2", "the server")
    assert api.request(question) == _COMPLETION["request"]
    rows = text_rows(api.read(_COMPLETION["answer"], question), question, np.ones(49152, dtype=bool))
    assert rows.ids is not None
    assert rows.log_tail is not None
    given = _COMPLETION["answer"]["choices"][0]["prompt_logprobs"]
    for index, place in enumerate(question.positions):
        tokens = {int(token_id): value for token_id, value in given[place].items()}
        best = sorted((token for token in tokens.items() if token[1]["rank"] <= 4), key=lambda item: item[1]["rank"])
        assert rows.ids[index].tolist() == [token_id for token_id, _ in best]
        assert rows.log_probs[index].tolist() == [np.float32(value["logprob"]) for _, value in best]
        assert rows.log_observed[index] == np.float32(tokens[ids[place]]["logprob"])
        mass = sum(np.exp(value["logprob"]) for value in tokens.values())
        assert np.exp(rows.log_tail[index]) == pytest.approx(1.0 - mass, abs=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "models",
        "tokenize",
        "completion",
        "one_token",
        "top_k_above_limit",
        "unknown_model",
        "prompt_too_long",
        "prompt_without_room_for_an_answer",
        "unknown_token",
        "no_key",
        "unknown_path",
    ],
)
def test_the_stand_in_answers_as_the_real_server_did(server: StandInServer, name: str) -> None:
    recorded = _RECORDED[name]
    server.name, server.max_logprobs, server.api_key = "smollm2", 128, "secret"
    body = recorded["request"]
    if body is not None and isinstance(body["prompt"], list):
        # Token ids of the small vocabulary; unknown ones stay unknown.
        body = body | {"prompt": [token if token >= 49152 else token % 400 for token in body["prompt"]]}
    headers = {} if name == "no_key" else {"Authorization": "Bearer secret"}
    url = server.url.removesuffix("/v1") + recorded["path"]
    answer = requests.request(recorded["method"], url, json=body, headers=headers, timeout=60)
    assert answer.status_code == recorded["status"]
    assert _form(answer.json()) == _form(recorded["answer"])


def _form(value: Any, key: str = "") -> Any:
    """Names and types of an answer, the words of its messages, and how the tokens of a row are ordered."""
    if key == "permission":
        return list
    if isinstance(value, dict):
        if value and all(name.isdigit() for name in value):
            return _form_of_row(value)
        return {name: _form(item, name) for name, item in value.items()}
    if isinstance(value, list):
        forms = [_form(item) for item in value]
        return forms if key == "prompt_logprobs" else forms[:1]
    if key in ("message", "error", "detail", "param", "type", "object"):
        return re.sub(r"\d+", "N", str(value))
    return type(value)


def _form_of_row(tokens: dict[str, Any]) -> Any:
    ranks = [token["rank"] for token in tokens.values()]
    return {name: type(value) for name, value in next(iter(tokens.values())).items()}, sorted(ranks[1:]) == ranks[1:]
