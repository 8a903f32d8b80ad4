"""Templates that write calls in unusual ways: what is learned of a call, and in which form it is written."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from chats import SOURCE, bytes_of, vocabulary_of, with_tokens
from small_models import packing_tokenizer
from tokenizers import normalizers
from tool_chats import HERMES, hermes

from xtoken_pl.data import Windower
from xtoken_pl.data.chats.conversations import read_documents


def learned_of(template: str, messages: list[dict[str, Any]]) -> bytes:
    """Bytes that a student with a template learns, with one byte for each special token."""
    tags = ("<|im_start|>", "<|im_end|>", "<|python_tag|>")
    vocabulary = vocabulary_of(with_tokens(packing_tokenizer(), template, *tags))
    columns = Windower(vocabulary, {}, 5000)(read_documents(SOURCE, [messages]))
    learned = np.asarray(columns["student_ids"][0])[np.asarray(columns["loss_mask"][0]) == 1]
    return b"".join(b"\xff" if vocabulary.is_special[token] else vocabulary.token_bytes[token] for token in learned)


@pytest.mark.parametrize("joined", ["~", "}}{{"])
def test_arguments_that_a_template_prints_are_json(joined: str) -> None:
    template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name "
        + joined
        + " c.function.arguments }}{% endfor %}{% endfor %}"
    )
    calls = [{"name": "f", "arguments": {"city": 'a "b"', "none": None, "deep": [True]}}]
    answer = {"role": "assistant", "content": "b", "tool_calls": json.dumps(calls)}  # in which a null is a value
    learned = learned_of(template, [{"role": "user", "content": "a"}, answer])
    assert learned == b'bf{"city": "a \\"b\\"", "none": null, "deep": [true]}'


def test_the_beginning_of_a_call_is_learned_if_the_prompt_begins_a_reasoning_that_the_turn_lacks() -> None:
    """In the manner of DeepSeek: the prompt is one line."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content }}{% for c in m.tool_calls or [] %}"
        "{{ '<|python_tag|>call ' + c.function.name }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<think>\\n' }}{% endif %}"
    )
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}
    assert learned_of(template, [{"role": "user", "content": "a"}, call]) == b"\xffcall f"


def test_a_call_whose_last_text_is_written_twice_is_learned_to_its_end() -> None:
    """In the manner of gpt-oss, a name is also written beside the result."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.role == 'tool' %}{{ ' f' + m.name }}{% endif %}"
        "{% for c in m.tool_calls or [] %}{% set ns.name = c.function.name %}{{ ' to=' + ns.name + '<|python_tag|>' }}"
        "{{ '<invoke ' + ns.name + '>' + (c.function.arguments | tojson) + '</invoke>' }}{% endfor %}"
        "{% if m.role == 'tool' %}{{ ' from ' + ns.name }}{% endif %}{{ ': ' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    template = "{% set ns = namespace(name='') %}" + template
    answer = {"role": "assistant", "content": "", "tool_calls": [{"name": "g", "arguments": {"days": 1}}]}
    result = {"role": "tool", "content": "no", "name": "x"}
    for messages in ([answer], [answer, result], [answer, result, answer, result | {"content": ""}, answer]):
        learned = learned_of(template, [{"role": "user", "content": "a"}, *messages])
        number = messages.count(answer)
        assert learned == b' to=g\xff<invoke g>{"days": 1}</invoke>: ' * number, messages


def test_what_a_normalizer_rewrites_in_a_call_does_not_hide_the_rest() -> None:
    tokenizer = with_tokens(packing_tokenizer(620), HERMES, "<|im_start|>", "<|im_end|>")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    arguments = {"first": "an e\u0301 that is composed", "city": "Paris, é", "days": 3}
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "get_weather", "arguments": arguments}]}
    sides = [vocabulary_of(hermes()), vocabulary_of(tokenizer)]
    for student, teacher in (sides, reversed(sides)):
        messages = [{"role": "user", "content": "a"}, call]
        columns = Windower(student, {"t": teacher}, 5000)(read_documents(SOURCE, [messages]))
        row = {name: values[0] for name, values in columns.items()}
        aligned = b""
        for start, end, other_start, other_end in np.asarray(row["t/spans"]).reshape(-1, 4):
            if row["loss_mask"][start]:
                aligned += bytes_of(student, row["student_ids"][start:end])
                assert aligned.endswith(bytes_of(teacher, row["t/ids"][other_start:other_end]))
        for part in (
            '<tool_call>\n{"name": "get_weather", "arguments": {"',
            '", "city": "Paris, é", "days": 3}}\n</tool_call>',
        ):
            assert part.encode() in aligned
        assert "e\u0301" not in aligned.decode()
