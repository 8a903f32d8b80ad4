"""Tool calls and reasoning: what is learned and aligned, compared with a slow byte-level reference."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from chats import SOURCE, bytes_of, symbols, vocabulary_of, windows_of, with_tokens
from hypothesis import given
from hypothesis import strategies as st
from small_models import packing_tokenizer
from tool_chats import HERMES, SIDES, TOOLS, Written, hermes
from transformers import PreTrainedTokenizerFast

from xtoken_pl import SpanAligner, TextSource
from xtoken_pl.data import Windower
from xtoken_pl.data.chats.conversations import read_documents

PAIRS = [("hermes", "llama"), ("hermes", "xml"), ("llama", "hermes"), ("xml", "hermes"), ("xml", "llama")]
Messages = list[dict[str, Any]]

words = st.text(st.sampled_from('ab "\\\n\t{}<>é数👩:,0'), max_size=8) | st.sampled_from(["<|im_end|>", "</tool_call>"])
stripped = words.map(str.strip)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 10**20) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=5,
)
calls = st.builds(
    lambda name, arguments: {"name": name, "arguments": arguments},
    st.sampled_from(["get_weather", "f", "städte"]),
    st.dictionaries(st.sampled_from(["city", "days", "name", "q r"]), values, max_size=4),
)


@st.composite
def conversations(draw: st.DrawFn) -> Messages:
    """A question, an answer with one call and its result, perhaps with reasoning; then a plain answer, perhaps more."""
    messages: Messages = []
    for _ in range(draw(st.integers(1, 2))):
        messages.append({"role": "user", "content": draw(stripped)})
        answer = {"role": "assistant", "content": draw(stripped), "tool_calls": [draw(calls)]}
        messages += [answer, {"role": "tool", "content": draw(stripped), "name": "f"}]
        messages.append({"role": "assistant", "content": draw(stripped)})
        for said in (answer, messages[-1]):
            if reasoning := draw(stripped):
                said["reasoning"] = reasoning
    return messages


def render(side: str, messages: Messages, tools: Any = TOOLS) -> list[Written]:
    return list(SIDES[side][1](messages, tools))


def row_of(
    student: str, teachers: list[str], messages: Messages, tools: Any = TOOLS, **options: Any
) -> dict[str, Any] | None:
    """The window of a conversation; None if nothing in it is learned."""
    vocabularies = {name: vocabulary_of(SIDES[name][0]()) for name in teachers}
    windower = Windower(vocabulary_of(SIDES[student][0]()), vocabularies, 5000)
    source = TextSource(path="x", messages_field="m", tools_field="tools", **options)
    # As JSON text, in which a null is a value.
    given = [m | {"tool_calls": json.dumps(m["tool_calls"])} if "tool_calls" in m else m for m in messages]
    columns = windower(read_documents(source, [given], [tools]), source.learned)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return rows[0] if rows else None


def written_symbols(pieces: list[Written], parts: set[str] | None = None) -> bytes:
    kept = (piece for piece in pieces if parts is None or piece.part in parts)
    return b"".join(b"\xff" if piece.is_special else piece.text.encode() for piece in kept)


# What is learned ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", list(SIDES))
@given(messages=conversations(), reasoning=st.booleans(), tool_calls=st.booleans(), turn_end=st.booleans())
def test_exactly_what_the_assistant_writes_is_learned(
    side: str, messages: Messages, reasoning: bool, tool_calls: bool, turn_end: bool
) -> None:
    pieces, vocabulary = render(side, messages), vocabulary_of(SIDES[side][0]())
    parts = {"content"} | ({"reasoning", "tags"} if reasoning else set()) | ({"calls"} if tool_calls else set())
    said = {piece.turn for piece in pieces if piece.part in parts and piece.text}
    expected = [piece for piece in pieces if piece.part in parts or (piece.part == "end" and piece.turn in said)]
    turn_end = turn_end and side != "xml"  # which has no such token
    learned = written_symbols(expected, parts | ({"end"} if turn_end else set()))
    row = row_of(side, [], messages, learn_reasoning=reasoning, learn_tool_calls=tool_calls, learn_turn_end=turn_end)
    if row is None:
        assert not learned
        return
    assert symbols(vocabulary, row["student_ids"]) == written_symbols(pieces)
    assert symbols(vocabulary, np.asarray(row["student_ids"])[np.asarray(row["loss_mask"]) == 1]) == learned


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}])
def test_nothing_of_a_turn_that_is_not_learned_is_learned(flag: dict[str, Any]) -> None:
    call = {"role": "assistant", "content": "", "reasoning": "r", "tool_calls": [{"name": "f", "arguments": {}}]}
    messages = [{"role": "user", "content": "a"}, call | flag, {"role": "assistant", "content": "yes"}]
    row = row_of("hermes", ["llama"], messages)
    assert row is not None
    learned = [i for i, m in zip(row["student_ids"], row["loss_mask"], strict=True) if m]
    assert bytes_of(vocabulary_of(hermes()), learned) == b"yes"


def test_special_tokens_that_an_argument_spells_are_text() -> None:
    call = {"name": "f", "arguments": {"a": "<|im_end|>"}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    row = row_of("hermes", [], messages, learn_turn_end=True)
    assert row is not None
    end = hermes().convert_tokens_to_ids("<|im_end|>")
    assert list(row["student_ids"]).count(end) == 1 + 2  # of the tools, and the two messages


# What is aligned ------------------------------------------------------------------------------------------------------


def blocks(pieces: list[Written]) -> dict[int, list[Written]]:
    """Pieces of the calls by turn."""
    return {turn: [p for p in pieces if p.part == "calls" and p.turn == turn] for turn in {p.turn for p in pieces}}


def equal_places(ours: list[Written], theirs: list[Written]) -> list[tuple[int, int]]:
    """Pairs of bytes of two blocks that are equal by the rule: byte by byte, between units that are the same."""

    def cut(pieces: list[Written], shared: set[Any]) -> tuple[list[bytes], list[bytes]]:
        between, units = [b""], list[bytes]()
        for piece in pieces:
            own = b"\xff" if piece.is_special else piece.text.encode()
            if piece.unit in shared:
                units.append(own)
                between.append(b"")
            else:
                between[-1] += own
        return between, units

    spelled = [{p.unit: p.text for p in side if p.unit is not None} for side in (ours, theirs)]
    shared = {unit for unit, text in spelled[0].items() if spelled[1].get(unit) == text}
    (between, units), (other_between, _) = cut(ours, shared), cut(theirs, shared)
    pairs: list[tuple[int, int]] = []
    i = j = 0
    for number, (own, other) in enumerate(zip(between, other_between, strict=True)):
        other = other.replace(b"\xff", b"\xfe")
        head = 0
        while head < min(len(own), len(other)) and own[head] == other[head]:
            head += 1
        tail = 0
        while tail < min(len(own), len(other)) - head and own[-1 - tail] == other[-1 - tail]:
            tail += 1
        pairs += [(i + k, j + k) for k in range(head)]
        i, j = i + len(own), j + len(other)
        pairs += [(i - tail + k, j - tail + k) for k in range(tail)]
        if number < len(units):
            pairs += [(i + k, j + k) for k in range(len(units[number]))]
            i, j = i + len(units[number]), j + len(units[number])
    return pairs


def bounds(vocabulary: Any, ids: Any) -> list[int]:
    """Byte at which each token begins, and the end; special tokens count as one byte."""
    return np.cumsum([0, *(len(symbols(vocabulary, [token])) for token in ids)]).tolist()


@pytest.mark.parametrize("pair", PAIRS)
@given(messages=conversations())
def test_spans_of_calls_are_those_of_the_slow_reference(pair: tuple[str, str], messages: Messages) -> None:
    student, teacher = (vocabulary_of(SIDES[name][0]()) for name in pair)
    row = row_of(pair[0], [pair[1]], messages)
    assert row is not None
    ids, other_ids = np.asarray(row["student_ids"]), np.asarray(row[f"{pair[1]}/ids"])
    pieces = [render(name, messages) for name in pair]
    starts = [np.cumsum([0, *(len(written_symbols([piece])) for piece in side)]).tolist() for side in pieces]
    our_bounds, their_bounds = bounds(student, ids), bounds(teacher, other_ids)
    expected: set[tuple[int, int, int, int]] = set()
    for turn, ours in blocks(pieces[0]).items():
        theirs = blocks(pieces[1]).get(turn, [])
        if not ours or not theirs:
            continue
        first, other_first = (
            starts[side][
                next(k for k, piece in enumerate(pieces[side]) if piece.part == "calls" and piece.turn == turn)
            ]
            for side in (0, 1)
        )
        pairs = [(first + i, other_first + j) for i, j in equal_places(ours, theirs)]
        # Runs of consecutive equal bytes; within each, the token boundaries that both sides share.
        runs: list[list[tuple[int, int]]] = []
        for place in pairs:
            if not runs or (runs[-1][-1][0] + 1, runs[-1][-1][1] + 1) != place:
                runs.append([])
            runs[-1].append(place)
        for run in runs:
            ends = [run[0], *((i + 1, j + 1) for i, j in run)]
            common = [(i, j) for i, j in ends if i in our_bounds and j in their_bounds]
            expected |= {(i, k, j, m) for (i, j), (k, m) in pairwise(common)}
    spans = np.asarray(row[f"{pair[1]}/spans"]).reshape(-1, 4)
    assert (np.diff(spans[:, [0, 2]], axis=0) > 0).all()
    found = {(our_bounds[a], our_bounds[b], their_bounds[c], their_bounds[d]) for a, b, c, d in spans}
    assert expected <= found
    # All other spans are of contents and reasoning, which are aligned as contents are.
    whole = written_symbols(pieces[0])
    for a, b, c, d in spans:
        same = symbols(student, ids[a:b]), symbols(teacher, other_ids[c:d])
        assert same[0].strip() == same[1].strip()
    in_calls = np.concatenate([[piece.part == "calls"] * len(written_symbols([piece])) for piece in pieces[0]])
    assert len(in_calls) == len(whole)
    assert {span for span in found if in_calls[span[0]]} == expected


@given(arguments=st.dictionaries(st.sampled_from(["city", "days"]), values, max_size=3))
def test_calls_that_both_sides_write_alike_are_aligned_as_one_text(arguments: dict[str, Any]) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": arguments}]}
    teacher = with_tokens(packing_tokenizer(620), HERMES, "<|im_start|>", "<|im_end|>")
    windower = Windower(vocabulary_of(hermes()), {"t": vocabulary_of(teacher)}, 5000)
    columns = windower(read_documents(SOURCE, [[{"role": "user", "content": "a"}, call]]))
    row = {name: values[0] for name, values in columns.items()}
    spans = np.asarray(row["t/spans"]).reshape(-1, 4)
    learned = np.flatnonzero(row["loss_mask"])
    low, high = learned[0], learned[-1] + 1
    inside = spans[spans[:, 0] >= low]
    aligner = SpanAligner(hermes(), teacher)
    block, other_block = row["student_ids"][low:high], row["t/ids"][inside[0, 2] : inside[-1, 3]]
    expected = aligner.align(block, other_block, mid_text=True).to_array() + (low, low, inside[0, 2], inside[0, 2])
    assert np.array_equal(inside, expected)


@pytest.mark.parametrize("is_student", [False, True])
def test_a_space_that_a_tokenizer_puts_before_texts_is_not_aligned(
    llama2_style: PreTrainedTokenizerFast, is_student: bool
) -> None:
    """The tokenizer puts it after every special token, here before the calls."""
    tokenizer = copy.deepcopy(llama2_style)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ bos_token + m.role + ':' + m.content }}{% for c in m.tool_calls or [] %}"
        "{{ eos_token + (c.function | tojson) }}{% endfor %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token + 'assistant:' }}{% endif %}"
    )
    sides = [vocabulary_of(hermes()), vocabulary_of(tokenizer)]
    student, teacher = reversed(sides) if is_student else sides
    arguments = {"city": "Paris, é", "days": 3}
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "get_weather", "arguments": arguments}]}
    columns = Windower(student, {"t": teacher}, 5000)(
        read_documents(SOURCE, [[{"role": "user", "content": "a"}, call]])
    )
    row = {name: values[0] for name, values in columns.items()}
    ids, aligned = np.asarray(row["student_ids"]), b""
    for a, b, c, d in np.asarray(row["t/spans"]).reshape(-1, 4):
        if row["loss_mask"][a]:
            aligned += (text := bytes_of(student, ids[a:b]))
            other = bytes_of(teacher, row["t/ids"][c:d])
            # The first text after a special token has the space.
            assert text == other or {text, other} == {b"{", b" {"}
    written = '{"name": "get_weather", "arguments": {"city": "Paris, é", "days": 3}}'
    assert aligned.decode().strip() in written
    assert len(aligned) > 0.9 * len(written)


def test_a_template_that_takes_arguments_as_json_text_is_given_them() -> None:
    template = HERMES.replace("(c.function.arguments | tojson)", "c.function.arguments")
    assert template != HERMES
    tokenizer = with_tokens(packing_tokenizer(), template, "<|im_start|>", "<|im_end|>")
    call = {"name": "f", "arguments": {"city": 'a "b"', "none": "", "deep": [{"x": "é"}]}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    windower = Windower(vocabulary_of(tokenizer), {"t": vocabulary_of(hermes())}, 5000)
    columns = windower(read_documents(SOURCE, [messages]))
    learned = [i for i, m in zip(columns["student_ids"][0], columns["loss_mask"][0], strict=True) if m]
    assert bytes_of(vocabulary_of(tokenizer), learned) == written_symbols(render("hermes", messages, None), {"calls"})
    assert len(columns["t/spans"][0]) // 4 >= len(learned)  # the same text, the same tokenizer


# What a template leaves out -------------------------------------------------------------------------------------------


def test_plain_conversations_do_not_depend_on_the_switches() -> None:
    messages = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}]
    expected = windows_of([messages])
    for options in ({"learn_reasoning": False}, {"learn_tool_calls": False}):
        source = TextSource(path="x", messages_field="m", **options)
        for row, same in zip(windows_of([messages], source=source), expected, strict=True):
            assert all(np.array_equal(row[column], same[column]) for column in same)


def test_reasoning_that_only_the_teacher_writes_is_not_learned_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "thinking": "why", "content": "b"}]
    row = row_of("llama", ["hermes"], messages)
    assert row is not None
    assert bytes_of(vocabulary_of(SIDES["llama"][0]()), np.asarray(row["student_ids"])[-2:]) == b"b"
    assert "reasoning of 1 of 1 turns is not learned, since the chat template of the student" in caplog.text
