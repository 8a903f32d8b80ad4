"""Windows of conversations: contents are aligned one by one, and only what the assistant says is learned."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import (
    CHATML,
    CHATS,
    SOURCE,
    bytes_of,
    chatml,
    learned_text,
    llama3_like,
    plain,
    vocabulary_of,
    windower,
    windows_of,
    with_tokens,
)
from small_models import TEXTS

from xtoken_pl import DistillDataModule, TextSource
from xtoken_pl.data import Windower
from xtoken_pl.data.chats.conversations import read_documents
from xtoken_pl.data.maker import WindowMaker

# Windows ------------------------------------------------------------------------------------------------------------


def test_only_what_the_assistant_says_is_learned_and_only_contents_are_aligned() -> None:
    for row, messages in zip(windows_of(CHATS), CHATS, strict=True):
        contents = [m["content"].strip() for m in messages]
        assert learned_text(row) == "".join(contents[1::2])
        for name, teacher in windower().teachers.items():
            spans = np.asarray(row[f"{name}/spans"]).reshape(-1, 4)
            aligned = [bytes_of(windower().student, row["student_ids"][a:b]) for a, b, _, _ in spans]
            assert b"".join(aligned).decode() == "".join(contents)
            for text, (_, _, c, d) in zip(aligned, spans, strict=True):
                assert bytes_of(teacher, row[f"{name}/ids"][c:d]) in (text, b" " + text)  # the template's space


def test_each_side_has_bos_only_if_its_template_writes_it() -> None:
    rows = windows_of(CHATS, length=80)
    assert len(rows) > 2
    for row in rows:
        bos = chatml().bos_token_id
        assert bos not in row["student_ids"]
        assert [token for token in row["llama/ids"] if token == llama3_like().bos_token_id] == [row["llama/ids"][0]]


def test_long_conversations_are_cut_at_common_token_boundaries(caplog: pytest.LogCaptureFixture) -> None:
    long = [{"role": "user", "content": TEXTS[2][:600]}, {"role": "assistant", "content": TEXTS[1][:600]}]
    with caplog.at_level(logging.WARNING):
        rows = windows_of([long], length=64)
    assert "".join(map(learned_text, rows)) == TEXTS[1][:600].strip()
    assert "windows of conversations longer than sequence_length=64 hold nothing to learn" in caplog.text
    assert all(any(row["loss_mask"]) for row in rows)
    assert max(len(row[column]) for row in rows for column in ("student_ids", "llama/ids", "plain/ids")) <= 64


def test_learn_turn_end_adds_the_turn_end_tokens() -> None:
    end, other_end = chatml().convert_tokens_to_ids("<|im_end|>"), llama3_like().convert_tokens_to_ids("<|eot_id|>")
    source = TextSource(path="x", messages_field="messages", learn_turn_end=True)
    for row, plain_row in zip(windows_of(CHATS, source=source), windows_of(CHATS), strict=True):
        more = np.flatnonzero(np.asarray(row["loss_mask"]) != np.asarray(plain_row["loss_mask"]))
        assert {row["student_ids"][place] for place in more} == {end}
        assert all(plain_row["loss_mask"][place - 1] for place in more)
        spans = np.asarray(row["llama/spans"]).reshape(-1, 4)
        ends = [[row["llama/ids"][c], d - c] for a, b, c, d in spans if a in more and b - a == 1]
        assert ends == [[other_end, 1]] * len(more)
        assert row["plain/spans"].tolist() == plain_row["plain/spans"].tolist()  # no such token there


def test_learn_turn_end_without_a_turn_end_token_is_refused() -> None:
    source = TextSource(path="x", messages_field="messages", learn_turn_end=True)
    given = Windower(vocabulary_of(plain()), {}, 1000)
    with pytest.raises(ValueError, match="template of the student writes none in the conversation that begins with"):
        windows_of(CHATS, source=source, given=given)


def test_conversations_without_an_answer_are_dropped_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    silent = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": " \n"}]
    with caplog.at_level(logging.WARNING):
        rows = windows_of([silent, CHATS[0], silent])
    assert len(rows) == 1
    assert "2 conversations in which the assistant says nothing to learn are dropped" in caplog.text


def test_prompts_and_completions_become_user_and_assistant_turns() -> None:
    source = TextSource(path="x", prompt_field="p", completion_field="c")
    user, assistant = CHATS[1]
    expected = windows_of([CHATS[1]])
    for prompt, completion in ((user["content"], assistant["content"]), ([user], [assistant])):
        columns = WindowMaker(source, windower())([prompt], [completion])
        for name, values in columns.items():
            assert np.array_equal(values[0], expected[0][name])
    # An assistant's turn within the prompt is not learned.
    columns = WindowMaker(source, windower())([CHATS[0][:3]], [CHATS[0][3:]])
    row = {name: values[0] for name, values in columns.items()}
    assert learned_text(row) == CHATS[0][3]["content"]


# Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"completion_field": "c"}, "set prompt_field, too, or leave completion_field out"),
        (
            {"messages_field": "m", "prompt_field": "p", "completion_field": "c"},
            "leave messages_field out, or prompt_field and completion_field",
        ),
        ({"messages_field": "m", "text_field": "body"}, "leave text_field out, or the fields of conversations"),
        ({"learn_turn_end": True}, "learn_turn_end needs conversations"),
    ],
)
def test_fields_of_several_kinds_are_refused(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        TextSource(path="x", **fields)


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (None, "messages must hold a list of at least one message {role, content}, got None"),
        ([], r"at least one message {role, content}, got \[\]"),
        ("hello", "got str"),
        (["hello"], "must have a role and a content, got str"),
        ([{"from": "human", "value": "a"}], r"got the keys \['from', 'value'\]"),
        ([USER], r"role 'assistant' to learn from, got the roles \['user'\]"),
        ([USER, {"role": "assistant", "content": None}], "must be strings, got str and NoneType"),
        ([{"role": "user", "content": [{"type": "image"}]}, ASSISTANT], "must be a string, got a list of 1 parts"),
        ([USER | {"tool_calls": [{"name": "f"}]}, ASSISTANT], "a message of messages also has tool_calls"),
    ],
)
def test_rows_without_a_conversation_are_refused_by_their_place(row: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected + r".* in row 2 of 2 of 'x'"):
        read_documents(SOURCE, [[USER, ASSISTANT | {"tool_calls": None}], row])


def test_missing_column_is_reported_with_the_existing_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": CHATS[0]}) + "\n")
    source = TextSource(path=str(tmp_path / "a.jsonl"), prompt_field="messages", completion_field="answer")
    data = DistillDataModule(source)
    data.connect(vocabulary_of(chatml()), {})
    with pytest.raises(ValueError, match=r"completion_field must be a column of the data, got 'answer'; .*messages"):
        data.setup("fit")


# Fingerprints ---------------------------------------------------------------------------------------------------------


def test_windows_cached_by_earlier_versions_stay_valid() -> None:
    ours = windower()
    teachers = {name: teacher.fingerprint for name, teacher in ours.teachers.items()}
    described = json.dumps([1, ours.student.fingerprint, teachers, ours.sequence_length])
    expected = hashlib.sha256(described.encode()).hexdigest()[:32]
    texts = TextSource(path="x")
    assert ours.fingerprint == WindowMaker(texts, ours).fingerprint == expected
    others = [WindowMaker(texts, ours, "joined"), WindowMaker(texts, ours, "separate"), WindowMaker(SOURCE, ours)]
    others += [WindowMaker(TextSource(path="x", messages_field="m", learn_turn_end=True), ours)]
    others += [WindowMaker(TextSource(path="x", prompt_field="p", completion_field="c"), ours)]
    assert len({expected, *(maker.fingerprint for maker in others)}) == 6
    # The identity of a stream contains this text.
    shown = "TextSource(path='x', name=None, data_files=None, split='train', text_field='text', revision=None"
    assert str(texts) == shown + ")"
    assert str(SOURCE) == shown + ", messages_field='messages')"


def test_chat_fingerprint_depends_on_the_template() -> None:
    other = with_tokens(chatml(), CHATML.replace("{% for", "Hello.{% for"))
    changed = Windower(vocabulary_of(other), windower().teachers, 1000)
    assert changed.fingerprint == windower().fingerprint
    assert changed.chat_fingerprint != windower().chat_fingerprint
