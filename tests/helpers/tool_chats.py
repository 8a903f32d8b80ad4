"""Chat templates with tools and reasoning, and what each of them writes, piece by piece, without a template engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from chats import with_tokens
from small_models import packing_tokenizer, splitting_tokenizer
from transformers import PreTrainedTokenizerFast

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"properties": {"city": "string"}}}}]
_TAGS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")

#: In the manner of Hermes and Qwen: several calls as JSON in tags, reasoning in tags.
HERMES = (
    "{% if tools %}{{ '<|im_start|>system\\n<tools>' + (tools | tojson) + '</tools><|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content %}{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}"
    '{{ \'\\n<tool_call>\\n{"name": "\' + c.function.name + \'", "arguments": \' + (c.function.arguments | tojson) }}'
    "{{ '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
#: In the manner of Llama 3: one call as JSON after a special token, results as JSON strings, no reasoning.
LLAMA = (
    "{{ bos_token }}{% if tools %}{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' + (tools | tojson(indent=4)) "
    "+ '<|eot_id|>' }}{% endif %}{% for m in messages %}"
    "{{ '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\\n\\n' }}"
    "{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}"
    "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{% set c = m.tool_calls[0].function %}"
    "{{ '<|python_tag|>{\"name\": \"' + c.name + '\", \"parameters\": ' + (c.arguments | tojson) + '}' }}{% endif %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
#: In the manner of Qwen 3 Coder: parameters in tags, strings as they are; no special tokens, no generation prompt.
XML = (
    "{% if tools %}{{ 'tools: ' + (tools | tojson) + '\\n' }}{% endif %}{% for m in messages %}"
    "{{ m.role + ':\\n' }}{% if m.thinking %}{{ '(' + m.thinking + ')\\n' }}{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<call>\\n<function=' + c.function.name + '>\\n' }}"
    "{% for name, value in c.function.arguments.items() %}{{ '<parameter=' + name + '>\\n' }}"
    "{{ value if value is string else value | tojson }}{{ '\\n</parameter>\\n' }}{% endfor %}"
    "{{ '</function>\\n</call>' }}{% endfor %}{{ '\\n\\n' }}{% endfor %}"
)


@cache
def hermes() -> PreTrainedTokenizerFast:
    return with_tokens(packing_tokenizer(), HERMES, *_TAGS)


@cache
def llama() -> PreTrainedTokenizerFast:
    return with_tokens(packing_tokenizer(600), LLAMA, *_TAGS)


@cache
def xml() -> PreTrainedTokenizerFast:
    return with_tokens(splitting_tokenizer(), XML)


# What the templates write ---------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """A piece of a rendered conversation.

    ``part``: "content", "reasoning", "tags", "calls" or "end" of an assistant's turn, "" for everything else. ``unit``
    names what was given to the template: a called name or a string of its arguments.
    """

    text: str
    part: str = ""
    turn: int = -1
    unit: tuple[Any, ...] | None = None
    is_special: bool = False


def json_pieces(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, tuple[Any, ...] | None]]:
    """Yields the JSON text of a value; every string that is not a name is a unit."""
    if isinstance(value, str) and value:
        yield '"', None
        yield json.dumps(value, ensure_ascii=False)[1:-1], path
        yield '"', None
    elif isinstance(value, dict):
        yield "{", None
        for number, (name, part) in enumerate(value.items()):
            yield ", " * (number > 0) + json.dumps(name, ensure_ascii=False) + ": ", None
            yield from json_pieces(part, (*path, name))
        yield "}", None
    elif isinstance(value, list):
        yield "[", None
        for number, part in enumerate(value):
            yield ", " * (number > 0), None
            yield from json_pieces(part, (*path, number))
        yield "]", None
    else:
        yield json.dumps(value, ensure_ascii=False), None


Pieces = Iterator[Written]


def _special(text: str, part: str = "", turn: int = -1) -> Written:
    return Written(text, part, turn, is_special=True)


def write_hermes(messages: list[dict[str, Any]], tools: Any) -> Pieces:
    if tools:
        yield _special("<|im_start|>")
        yield Written("system\n<tools>" + json.dumps(tools, ensure_ascii=False) + "</tools>")
        yield from (_special("<|im_end|>"), Written("\n"))
    for turn, message in enumerate(messages):
        yield _special("<|im_start|>")
        if message["role"] == "tool":
            yield Written("user\n<tool_response>\n" + message["content"] + "\n</tool_response>")
            yield from (_special("<|im_end|>"), Written("\n"))
            continue
        is_said = message["role"] == "assistant"
        yield Written(message["role"] + "\n")
        if message.get("reasoning"):
            yield Written("<think>\n", "tags", turn)
            yield Written(message["reasoning"], "reasoning", turn)
            yield Written("\n</think>\n\n", "tags", turn)
        yield Written(message["content"], "content" if is_said else "", turn)
        for number, call in enumerate(message.get("tool_calls", [])):
            yield Written('\n<tool_call>\n{"name": "', "calls", turn)
            yield Written(call["name"], "calls", turn, (turn, number))
            yield Written('", "arguments": ', "calls", turn)
            for text, unit in json_pieces(call["arguments"], (turn, number)):
                yield Written(text, "calls", turn, unit)
            yield Written("}\n</tool_call>", "calls", turn)
        yield from (_special("<|im_end|>", "end" if is_said else "", turn), Written("\n"))


def write_llama(messages: list[dict[str, Any]], tools: Any) -> Pieces:
    def header(role: str) -> Pieces:
        yield from (_special("<|start_header_id|>"), Written(role), _special("<|end_header_id|>"), Written("\n\n"))

    yield _special("<|begin_of_text|>")
    if tools:
        yield from header("system")
        yield from (Written(json.dumps(tools, ensure_ascii=False, indent=4)), _special("<|eot_id|>"))
    for turn, message in enumerate(messages):
        is_said = message["role"] == "assistant"
        is_result = message["role"] == "tool"
        yield from header("ipython" if is_result else message["role"])
        content = message["content"]
        yield Written(json.dumps(content, ensure_ascii=False) if is_result else content, "content" * is_said, turn)
        for call in message.get("tool_calls", []):
            yield _special("<|python_tag|>", "calls", turn)
            yield Written('{"name": "', "calls", turn)
            yield Written(call["name"], "calls", turn, (turn, 0))
            yield Written('", "parameters": ', "calls", turn)
            for text, unit in json_pieces(call["arguments"], (turn, 0)):
                yield Written(text, "calls", turn, unit)
            yield Written("}", "calls", turn)
        yield _special("<|eot_id|>", "end" if is_said else "", turn)


def write_xml(messages: list[dict[str, Any]], tools: Any) -> Pieces:
    if tools:
        yield Written("tools: " + json.dumps(tools, ensure_ascii=False) + "\n")
    for turn, message in enumerate(messages):
        yield Written(message["role"] + ":\n")
        if message.get("reasoning"):
            yield Written("(", "tags", turn)
            yield Written(message["reasoning"], "reasoning", turn)
            # Without a special token, a turn ends with its last character that is not white space.
            says_more = message["content"] or message.get("tool_calls")
            yield from (Written(")", "tags", turn), Written("\n", "tags" if says_more else "", turn))
        yield Written(message["content"], "content" if message["role"] == "assistant" else "", turn)
        for number, call in enumerate(message.get("tool_calls", [])):
            yield Written("<call>\n<function=", "calls", turn)
            yield Written(call["name"], "calls", turn, (turn, number))
            yield Written(">\n", "calls", turn)
            for name, value in call["arguments"].items():
                yield Written(f"<parameter={name}>\n", "calls", turn)
                if isinstance(value, str):
                    yield Written(value, "calls", turn, (turn, number, name) if value else None)
                else:
                    for text, unit in json_pieces(value, (turn, number, name)):
                        yield Written(text, "calls", turn, unit)
                yield Written("\n</parameter>\n", "calls", turn)
            yield Written("</function>\n</call>", "calls", turn)
        yield Written("\n\n")


#: Tokenizer and slow writer of each template, by name.
SIDES: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], Callable[..., Pieces]]] = {
    "hermes": (hermes, write_hermes),
    "llama": (llama, write_llama),
    "xml": (xml, write_xml),
}
