"""Conversations that a chat template cannot render are left out of all sides, with a count and the first reason."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import CHATML, bytes_of, chatml, llama3_like, vocabulary_of, with_tokens
from small_models import packing_tokenizer
from tool_chats import TOOLS, hermes, llama

from xtoken_pl import DistillDataModule, TextSource
from xtoken_pl.data import Windower
from xtoken_pl.data.chats.conversations import read_documents
from xtoken_pl.data.chats.rendered import UnrenderableError
from xtoken_pl.data.chats.renderer import ChatRenderer
from xtoken_pl.utilities.errors import UserError

SOURCE = TextSource(path="x", messages_field="m", tools_field="tools")
CALL = {"name": "f", "arguments": {"city": "Paris"}}
USER, ANSWER = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Sunny."}
ONE = [USER, ANSWER | {"tool_calls": [CALL]}, {"role": "tool", "content": "21"}, ANSWER]
TWO = [USER, ANSWER | {"tool_calls": [CALL, CALL]}, ANSWER]
PLAIN = [USER, ANSWER]


def windows(
    chats: list[Any], tools: list[Any] | None = None, teacher: Any = None, student: Any = None
) -> list[dict[str, Any]]:
    teachers = {"t": vocabulary_of(teacher or llama())}
    windower = Windower(vocabulary_of(student or hermes()), teachers, 1000)
    columns = windower(read_documents(SOURCE, chats, tools or [None] * len(chats)))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_a_conversation_that_a_teacher_rejects_is_left_out_and_the_others_are_unchanged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        rows = windows([ONE, TWO, PLAIN, TWO])
    assert "2 of 4 conversations are left out. The first:" in caplog.text
    assert "template of the teacher 't' rejects the messages (one call at a time)" in caplog.text
    for row, same in zip(rows, windows([ONE, PLAIN]), strict=True):
        assert all(np.array_equal(row[column], same[column]) for column in same)


@pytest.mark.parametrize(
    ("template", "chat", "tools", "reason"),
    [
        (CHATML, ONE, None, "leaves out tool calls"),
        (CHATML, PLAIN, TOOLS, "ignores the tools"),
        (
            "{% for m in messages %}{{ '' if m.tool_calls else m.content }}{{ m.tool_calls }}{% endfor %}",
            ONE,
            None,
            "drops",
        ),
        ("{% for m in messages %}{{ m.content + m.tool_calls }}{% endfor %}", ONE, None, "rejects the messages"),
        ("{% for m in messages %}{{ m.content + m.tool_calls[0].function.name }}{% endfor %}", ONE, None, "rejects"),
        (
            "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}"
            "{{ c.function.arguments.city | upper }}{% endfor %}{% endfor %}",
            ONE,
            None,
            "drops, moves or changes a message or a tool call",
        ),
    ],
    ids=["no calls", "no tools", "no content", "wrong types", "undefined", "changed"],
)
def test_the_reason_is_named(template: str, chat: Any, tools: Any, reason: str) -> None:
    renderer = ChatRenderer(vocabulary_of(with_tokens(packing_tokenizer(), template)), "student")
    (conversation,) = read_documents(SOURCE, [chat], [tools])
    with pytest.raises(UnrenderableError, match=f"the template of the student {reason}"):
        renderer.render([conversation])


def test_results_of_tools_are_read_by_templates_without_tools() -> None:
    (row,) = windows([[USER, {"role": "tool", "content": "21"}, ANSWER]], student=chatml(), teacher=llama3_like())
    learned = [token for token, mask in zip(row["student_ids"], row["loss_mask"], strict=True) if mask]
    assert bytes_of(vocabulary_of(chatml()), learned) == b"Sunny."


@pytest.mark.parametrize(
    ("streaming", "num_proc"), [(False, None), (True, None), pytest.param(False, 2, marks=pytest.mark.slow)]
)
def test_a_source_of_which_nothing_is_left_is_refused_with_the_first_reason(
    tmp_path: Path, streaming: bool, num_proc: int | None
) -> None:
    (tmp_path / "a.jsonl").write_text((json.dumps({"m": TWO}) + "\n") * 3)
    source = TextSource(path=str(tmp_path / "a.jsonl"), messages_field="m")
    data = DistillDataModule(source, streaming=streaming, num_proc=num_proc, num_workers=0)
    data.connect(vocabulary_of(hermes()), {"t": vocabulary_of(llama())})
    with pytest.raises(UserError, match=r"every conversation of .* is left out. The first: .*one call at a time"):
        data.setup("fit")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_source_of_which_something_is_left_is_read(
    tmp_path: Path, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"m": chat}) + "\n" for chat in (TWO, ONE, PLAIN)))
    source = TextSource(path=str(tmp_path / "a.jsonl"), messages_field="m")
    data = DistillDataModule(source, streaming=streaming, num_workers=0)
    data.connect(vocabulary_of(hermes()), {"t": vocabulary_of(llama())})
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert "1 of 3 conversations are left out. The first: a chat template must" in caplog.text
    assert "% of the tokens to learn are in a span with teacher 't', in 2 windows" in caplog.text
