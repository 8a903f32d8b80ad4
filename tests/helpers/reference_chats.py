"""A slow reference for conversations: which bytes of a rendered conversation are learned, and who wrote them.

Written from the rules alone. The conversation is rendered as a whole by ``apply_chat_template``; the assistant's turns
are found by the template's own marks, and what the assistant wrote by plain search within them. What is learned is the
assistant's content, its reasoning, and the name and the arguments of each of its calls. Everything outside the
assistant's turns is forbidden: prompts, tools, what tools returned, and the template's text around them. The template's
text within an assistant's turn (``<think>``, the braces of a call) is left open.

Contents must not spell the marks of a turn, and no two parts of a turn may contain each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from real_templates import Messages, RealTemplate

from xtoken_pl.data.cutting import Window


class Part(NamedTuple):
    """A piece of what the assistant writes: its message, its kind, and its number among those of the message."""

    message: int
    kind: str
    number: int = 0


class Place(NamedTuple):
    """A byte of a part."""

    part: Part
    offset: int


@dataclass(frozen=True)
class RenderedReference:
    """A rendered conversation, byte by byte.

    Attributes:
        text: The rendered conversation.
        is_assistant: ``[n]`` whether the byte is in an assistant's turn, without its marks.
        places: ``[n]`` place of the byte in what the assistant wrote; None for all other bytes.
        parts: Bytes of every part that the template writes.
    """

    text: bytes
    is_assistant: list[bool]
    places: list[Place | None]
    parts: dict[Part, bytes]


def parts_of(message: dict[str, Any]) -> list[tuple[str, str]]:
    """Kinds and texts of what the assistant writes in a message."""
    reasoning = message.get("reasoning_content") or message.get("thinking") or ""
    found = [("reasoning", reasoning), ("content", message.get("content") or "")]
    for call in message.get("tool_calls") or []:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        found += [("name", call["function"]["name"]), ("arguments", arguments)]
    return [(kind, text) for kind, text in found if text]


def rendered(template: RealTemplate, messages: Messages, tools: Sequence[Any] | None = None) -> str:
    """The conversation as the template writes it, with the date that Llama 3's template writes without a clock."""
    tokenizer = template.tokenizer
    dated = tokenizer.chat_template.replace('strftime_now("%d %b %Y")', '"26 Jul 2024"')
    return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, chat_template=dated))


def render(template: RealTemplate, messages: Messages, tools: Sequence[Any] | None = None) -> RenderedReference:
    """Renders a conversation, and finds what the assistant wrote."""
    text = rendered(template, messages, tools)
    turns = list(re.finditer(f"{re.escape(template.assistant)}(.*?){re.escape(template.end)}", text, re.DOTALL))
    speaking = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(turns) == len(speaking), "a content spells the marks of a turn"
    is_assistant = [False] * len(text.encode())
    places: list[Place | None] = [None] * len(is_assistant)
    parts: dict[Part, bytes] = {}
    for index, turn in zip(speaking, turns, strict=True):
        first = len(text[: turn.start(1)].encode())
        written = turn[1].encode()
        is_assistant[first : first + len(written)] = [True] * len(written)
        start, numbers = 0, dict.fromkeys(("reasoning", "content", "name", "arguments"), 0)
        for kind, spoken in parts_of(messages[index]):
            found = written.find(spoken.encode(), start)
            part = Part(index, kind, numbers[kind])
            numbers[kind] += 1
            if found < 0:  # the template does not write it
                continue
            parts[part] = spoken.encode()
            start = found + len(parts[part])
            for offset in range(len(parts[part])):
                places[first + found + offset] = Place(part, offset)
    return RenderedReference(text.encode(), is_assistant, places, parts)


def token_bytes(template: RealTemplate, ids: Sequence[int]) -> list[bytes]:
    """The bytes of each token; a special token has those of its text."""
    vocabulary = template.vocabulary
    special = {index: token.content.encode() for index, token in template.tokenizer.added_tokens_decoder.items()}
    return [vocabulary.token_bytes[index] or special.get(index, b"") for index in ids]


def boundaries(template: RealTemplate, ids: Sequence[int], reference: RenderedReference) -> list[int]:
    """First byte of every token, and the end.

    Raises:
        AssertionError: If the tokens do not spell the rendered conversation.
    """
    written = token_bytes(template, ids)
    assert b"".join(written) == reference.text
    return [0, *np.cumsum([len(token) for token in written]).tolist()]


def check_mask(
    template: RealTemplate, window: Window, reference: RenderedReference, *, unlearned: Sequence[str] = ()
) -> None:
    """Checks the loss mask of a window that holds a whole conversation.

    Args:
        template: The student's side.
        window: The window.
        reference: The conversation, rendered with the student's template.
        unlearned: Kinds of parts that are switched off.
    """
    bounds = boundaries(template, window["student_ids"], reference)
    for token, is_learned in enumerate(window["loss_mask"]):
        for byte in range(bounds[token], bounds[token + 1]):
            place = reference.places[byte]
            shown = reference.text[bounds[token] : bounds[token + 1]]
            if place is not None and place.part.kind not in unlearned:
                assert is_learned, f"{shown!r} of {place.part} is not learned"
            if not reference.is_assistant[byte] or (place is not None and place.part.kind in unlearned):
                assert not is_learned, f"{shown!r} at byte {byte} is learned ({place})"


def check_spans(
    student: RealTemplate,
    teacher: RealTemplate,
    window: Window,
    ours: RenderedReference,
    theirs: RenderedReference,
    *,
    unlearned: Sequence[str] = (),
) -> set[Place]:
    """Checks the spans of a window that holds a whole conversation; returns the bytes of the student that they cover.

    A span that is learned has the same bytes on both sides, up to a space that a template writes before a part, and the
    same place in what the assistant wrote.
    """
    own, other = (
        boundaries(student, window["student_ids"], ours),
        boundaries(teacher, window[f"{teacher.name}/ids"], theirs),
    )
    covered: set[Place] = set()
    for span in np.asarray(window[f"{teacher.name}/spans"]).reshape(-1, 4).tolist():
        if not all(window["loss_mask"][span[0] : span[1]]):  # a batch leaves it out
            continue
        mine, its = range(own[span[0]], own[span[1]]), range(other[span[2]], other[span[3]])
        while len(mine) > len(its) and ours.text[mine.start] == ord(" "):
            mine = mine[1:]
        while len(its) > len(mine) and theirs.text[its.start] == ord(" "):
            its = its[1:]
        assert ours.text[mine.start : mine.stop] == theirs.text[its.start : its.stop]
        for byte, their_byte in zip(mine, its, strict=True):
            assert ours.is_assistant[byte]
            assert theirs.is_assistant[their_byte]
            place = ours.places[byte]
            assert place == theirs.places[their_byte], "a span joins different parts of the conversation"
            if place is not None:
                assert place.part.kind not in unlearned
                covered.add(place)
    return covered


def places_of_common_parts(
    sides: Sequence[tuple[RenderedReference, Sequence[int]]], *, unlearned: Sequence[str] = ()
) -> set[Place]:
    """The bytes that spans must cover: all of the parts that both templates write.

    A token of a call may also hold text of the template, such as its closing brace and a line end, and is then no
    counterpart of the other side's. Contents and reasoning have tokens of their own.

    Args:
        sides: Each side's rendered conversation and the boundaries of its tokens.
        unlearned: Kinds of parts that are switched off.
    """
    (ours, _), (theirs, _) = sides
    wanted = {
        Place(part, offset)
        for part, text in ours.parts.items()
        if theirs.parts.get(part) == text and part.kind not in unlearned
        for offset in range(len(text))
    }
    tokens = [
        {reference.places[byte] for byte in range(*token)} for reference, bounds in sides for token in pairwise(bounds)
    ]
    lost: set[Place | None] = {None}
    while more := set().union(*(token for token in tokens if token & lost)) - lost:
        lost |= more
    assert all(place.part.kind in ("name", "arguments") for place in wanted & lost if place is not None)
    assert {place.part for place in wanted - lost} == {place.part for place in wanted}
    return wanted - lost
