"""Reading tools, tool calls and reasoning from rows: nothing is lost or added, and what cannot be used is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from chats import vocabulary_of
from tool_chats import TOOLS, hermes

from xtoken_pl import DistillDataModule, TextSource
from xtoken_pl.data import Windower, load_source
from xtoken_pl.data.chats.conversations import Conversation, read_documents, rewritten
from xtoken_pl.data.chats.tool_calls import ToolCall
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.utilities.errors import UserError

USER, ANSWER = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Sunny."}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"city": "Paris", "unit": None}}}
OTHER = {"function": {"name": "g", "arguments": {"days": [1, 2.5], "deep": {"x": "é"}}}}
CALLS = [
    USER,
    {"role": "assistant", "content": None, "reasoning_content": " I call. ", "tool_calls": [CALL, OTHER]},
    {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "21"},
    ANSWER,
]
SOURCE = TextSource(path="x", messages_field="messages", tools_field="tools")


def source_of(path: Path, **options: Any) -> TextSource:
    return TextSource(path=str(path), messages_field="messages", **options)


def read(source: TextSource, streaming: bool = False) -> list[Any]:
    rows = load_source(source, streaming=streaming)
    return [document for row in rows for document in read_documents(source, *([row[c]] for c in source.columns))]


@pytest.fixture(params=["jsonl", "parquet", "saved"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Writes rows as a file, or as a data set of `datasets`; returns the path."""

    def write(rows: list[dict[str, Any]]) -> Path:
        if request.param == "jsonl":
            (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            return tmp_path / "a.jsonl"
        names = {name: None for row in rows for message in row["messages"] for name in message}
        data = datasets.Dataset.from_list(
            [row | {"messages": [names | message for message in row["messages"]]} for row in rows]
        )
        if request.param == "parquet":
            data.to_parquet(tmp_path / "a.parquet")
            return tmp_path / "a.parquet"
        data.save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"

    return write


# What is read ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_calls_reasoning_and_tools_are_read_as_they_are(written: Any, streaming: bool) -> None:
    path = written([{"messages": CALLS, "tools": TOOLS}, {"messages": [USER, ANSWER], "tools": None}])
    calls, plain = read(source_of(path, tools_field="tools"), streaming)
    # A null is a value in JSON. Columns of objects have the same fields in all rows, so that it cannot be told from
    # a field that a row lacks.
    arguments = {"city": "Paris", **({"unit": None} if path.suffix == ".jsonl" else {})}
    first, second = calls.turns[1].tool_calls
    assert first == ToolCall("f", arguments, "c1")
    assert second == ToolCall("g", {"days": [1, 2.5], "deep": {"x": "é"}})
    assert (calls.turns[1].content, calls.turns[1].reasoning) == ("", "I call.")
    assert (calls.turns[2].tool_call_id, calls.turns[2].name) == ("c1", "f")
    assert calls.tools == tuple(TOOLS)
    assert [turn.is_learned for turn in calls.turns] == [False, True, False, True]
    assert plain == Conversation(tuple(turn._replace() for turn in plain.turns))
    assert not any(turn.tool_calls or turn.reasoning for turn in plain.turns)


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize(
    "calls", [[CALL], json.dumps([CALL]), [{"name": "f", "arguments": '{"city": "Paris", "unit": null}', "id": "c1"}]]
)
def test_all_usual_forms_are_read_alike(name: str, calls: Any, tmp_path: Path) -> None:
    messages = [USER, {"role": "assistant", name: "r", "tool_calls": calls}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    (conversation,) = read(source_of(tmp_path / "a.jsonl"))
    assert conversation.turns[1].tool_calls == (ToolCall("f", {"city": "Paris", "unit": None}, "c1"),)
    assert conversation.turns[1].reasoning == "r"


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS), [json.dumps(tool) for tool in TOOLS]])
def test_tools_are_objects_or_json_text(tools: Any) -> None:
    (conversation,) = read_documents(SOURCE, [[USER, ANSWER]], [tools])
    assert conversation.tools == tuple(TOOLS)


@pytest.mark.parametrize("nothing", [None, "", "null", "[]", []])
def test_nothing_stands_for_no_tools_and_no_calls(nothing: Any) -> None:
    (conversation,) = read_documents(SOURCE, [[USER, ANSWER | {"tool_calls": nothing}]], [nothing])
    assert (conversation.tools, conversation.turns[1].tool_calls) == ((), ())


def test_calls_alone_are_an_answer_and_their_fields_may_be_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": CALLS[:2]}))
    (conversation,) = read(source_of(tmp_path / "a.jsonl", ignored_fields=["reasoning_content"]))
    assert conversation.turns[1].tool_calls
    assert not conversation.turns[1].reasoning
    with pytest.raises(UserError, match="must be strings, got str and NoneType"):
        read(source_of(tmp_path / "a.jsonl", ignored_fields=["tool_calls", "reasoning_content"]))


def test_a_teacher_beside_a_conversation_does_not_change_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": CALLS, "tools": TOOLS, "expert": "math"}))
    source = source_of(tmp_path / "a.jsonl", tools_field="tools", teacher_field="expert")
    (row,) = load_source(source)
    assert (source.columns, row["expert"]) == (["messages", "tools", "expert"], "math")
    with_teacher, without = (
        read_documents(source, *([row[name]] for name in names)) for names in (source.columns, source.columns[:-1])
    )
    assert with_teacher == without
    texts = TextSource(path="x", teacher_field="expert")
    assert read_documents(texts, ["a"], [None]) == read_documents(texts, ["a"]) == ["a"]
    with pytest.raises(UserError, match="teacher_field must hold names of teachers or null, but 'expert' holds 3"):
        read_documents(texts, ["a"], [3])


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ("{", "tool_calls of a message of messages must be valid JSON, got '{'"),
        ({"name": "f"}, "must be a list, or its JSON text, got dict"),
        ([{"arguments": {}}], r"must be lists of \{function: \{name, arguments\}\}"),
        ([{"name": "f", "arguments": "[1]"}], r"must be an object, or its JSON text, got \[1\]"),
        ([{"name": "f", "arguments": "{a: 1}"}], "arguments in tool_calls .* must be valid JSON"),
        ([{"name": "f", "arguments": '{"a": NaN}'}], "NaN is not JSON"),
        ([{"name": "f", "arguments": {"a": float("inf")}}], "must be JSON and valid Unicode"),
        ([{"name": "f", "arguments": {"a": "\ud800"}}], "must be JSON and valid Unicode"),
        ([{"name": "f", "parameters": {"a": 1}}], "also have parameters"),
        ([{"type": "custom", "function": {"name": "f"}}], "must have the type 'function', got 'custom'"),
    ],
)
def test_calls_that_cannot_be_read_are_refused_by_their_place(calls: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected + ".* in row 2 of 2 of 'x'"):
        read_documents(SOURCE, [[USER, ANSWER], [USER, ANSWER | {"tool_calls": calls}]], [None, None])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (USER | {"reasoning": "r"}, "also has reasoning"),
        (ANSWER | {"tool_call_id": "c1"}, "also has tool_call_id"),
        (ANSWER | {"reasoning": "r", "thinking": "s"}, "thinking, reasoning .* must be the same text"),
        (ANSWER | {"thinking": ["r"]}, "thinking of a message .* must be a string, got list"),
        ({"role": "assistant", "reasoning": "r"}, "must have a role and a content"),
    ],
)
def test_fields_that_would_be_lost_are_refused(message: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        read_documents(SOURCE, [[USER, ANSWER, message]], [None])


def test_tools_that_cannot_be_read_are_refused() -> None:
    for tools, expected in (("{", "valid JSON"), ({"a": 1}, "must be a list"), ([1], "lists of objects .* got int")):
        with pytest.raises(UserError, match=f"tools must .*{expected}|{expected}"):
            read_documents(SOURCE, [[USER, ANSWER]], [tools])


def test_tools_beside_conversations_are_refused_with_the_field_that_reads_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": CALLS, "tools": TOOLS}))
    with pytest.raises(
        UserError, match=r"but tools stand beside .* set tools_field: tools .*ignored_fields: \[tools\]"
    ):
        read(source_of(tmp_path / "a.jsonl"))
    with pytest.raises(UserError, match=r"tools_field must be a column of the data, got 'functions'; .*'tools'"):
        read(source_of(tmp_path / "a.jsonl", tools_field="functions", ignored_fields=["tools"]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tools_field": "tools"}, "tools_field needs conversations"),
        ({"learn_reasoning": False}, "learn_reasoning needs conversations"),
        ({"learn_tool_calls": False}, "learn_tool_calls needs conversations"),
        ({"messages_field": "m", "tools_field": "m"}, "columns must be different, got m, m"),
        ({"teacher_field": "text"}, "columns must be different, got text, text"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        TextSource(path="x", **options)


# Fingerprints ---------------------------------------------------------------------------------------------------------


def test_the_switches_change_the_fingerprint_only_where_they_are_set() -> None:
    windower = Windower(vocabulary_of(hermes()), {}, 100)

    def fingerprint(**options: Any) -> str:
        return WindowMaker(TextSource(path="x", messages_field="m", **options), windower).fingerprint

    options = [{}, {"learn_reasoning": False}, {"learn_tool_calls": False}, {"tools_field": "t"}]
    assert len({fingerprint(**given) for given in options}) == len(options)
    assert fingerprint() == fingerprint(learn_reasoning=True, learn_tool_calls=True)
    # That of versions that had no such switches: their windows of plain conversations stay valid.
    described = json.dumps([windower.chat_fingerprint, 1, False, "none"])
    assert fingerprint() == hashlib.sha256(described.encode()).hexdigest()[:32]


def test_fields_that_are_ignored_are_not_taken_from_the_windows_of_a_saved_data_set(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"messages": [USER, ANSWER | {"thinking": "why"}]}]).save_to_disk(tmp_path / "saved")
    ids = []
    for ignored in (["thinking"], []):
        data = DistillDataModule(source_of(tmp_path / "saved", ignored_fields=ignored), num_workers=0)
        data.connect(vocabulary_of(hermes()), {})
        data.setup("fit")
        ids.append(len(data.datasets["train"][0]["student_ids"]))
    assert ids[0] < ids[1]


def test_reasoning_and_calls_are_rewritten_by_a_common_normalizer() -> None:
    (conversation,) = read_documents(SOURCE, [CALLS], [None])
    changed = rewritten(conversation, str.upper)
    assert isinstance(changed, Conversation)
    assert changed.turns[1].reasoning == "I CALL."
    assert changed.turns[1].tool_calls[1] == ToolCall("G", {"days": [1, 2.5], "deep": {"x": "É"}})
