"""Conversations that a chat template cannot render are left out of all sides, with a count and the first reason."""

from __future__ import annotations

import json
import logging
from itertools import islice
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
from xtoken_pl.data.left_out import LeftOutFile
from xtoken_pl.data.windows import WindowPiece
from xtoken_pl.utilities.errors import UserError

SOURCE = TextSource(path="x", messages_field="m", tools_field="tools")
CALL = {"name": "f", "arguments": {"city": "Paris"}}
USER, ANSWER = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Sunny."}
ONE = [USER, ANSWER | {"tool_calls": [CALL]}, {"role": "tool", "content": "21"}, ANSWER]
TWO = [USER, ANSWER | {"tool_calls": [CALL, CALL]}, ANSWER]
PLAIN = [USER, ANSWER]


def piece_of(chats: list[Any], teacher: Any = None, student: Any = None) -> WindowPiece:
    teachers = {"t": vocabulary_of(teacher or llama())}
    windower = Windower(vocabulary_of(student or hermes()), teachers, 1000)
    (piece,) = windower.pieces(read_documents(SOURCE, chats, [None] * len(chats)))
    return piece


def test_a_conversation_that_a_teacher_rejects_is_left_out_and_the_others_are_unchanged() -> None:
    piece = piece_of([ONE, TWO, PLAIN, TWO])
    assert len(piece.left_out) == 2
    assert all("template of the teacher 't' rejects the messages (one call at a time)" in r for r in piece.left_out)
    for row, same in zip(piece.windows, piece_of([ONE, PLAIN]).windows, strict=True):
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
    (row,) = piece_of(
        [[USER, {"role": "tool", "content": "21"}, ANSWER]], student=chatml(), teacher=llama3_like()
    ).windows
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


def data_of(folder: Path, chats: list[Any], **options: Any) -> DistillDataModule:
    (folder / "a.jsonl").write_text("".join(json.dumps({"m": chat}) + "\n" for chat in chats))
    source = TextSource(path=str(folder / "a.jsonl"), messages_field="m")
    data = DistillDataModule(source, num_workers=0, batch_size=1, shuffle_buffer=1, **options)
    data.connect(vocabulary_of(hermes()), {"t": vocabulary_of(llama())})
    return data


def test_the_number_is_said_for_the_whole_source_also_when_its_windows_are_found_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chats = [TWO, *[PLAIN] * 149, *[TWO] * 4, ONE]  # more than a hundred, which are tokenized at a time
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"5 of 155 conversations of '.*a.jsonl' are left out. The first: a chat"):
            data_of(tmp_path, chats).setup("fit")
    with caplog.at_level(logging.INFO):
        data_of(tmp_path, chats).setup("fit")
    assert "% of the tokens to learn are in a span with teacher 't', in 100 windows" in caplog.text


def test_a_unit_that_an_interrupted_run_has_noted_counts_once(tmp_path: Path) -> None:
    file = LeftOutFile(str(tmp_path / "left_out.jsonl"))
    assert file.total({(0, 100, 0, 1)}).count == 0
    file.append((0, 100, 0, 1), ["first", "second"])
    file.append((100, 150, 0, 1), ["third"])
    file.append((0, 75, 0, 1), ["of another division"])
    file.append((0, 100, 0, 1), ["first", "second"])
    total = file.total({(100, 150, 0, 1), (0, 100, 0, 1)})
    assert (total.count, total.reason) == (3, "first")


def test_a_stream_says_the_number_so_far_whenever_it_has_doubled(tmp_path: Path) -> None:
    data = data_of(tmp_path, [PLAIN, TWO, PLAIN, TWO, ONE], streaming=True)
    data.setup("fit")
    with pytest.warns(UserWarning, match="conversations of .* are left out so far") as warned:
        list(islice(data.train_dataloader(), 12))  # four passes
    counts = [str(warning.message).split()[0] for warning in warned if "left out so far" in str(warning.message)]
    assert counts == ["2", "4", "8"]
