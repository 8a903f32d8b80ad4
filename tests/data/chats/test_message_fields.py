"""Fields of messages and columns beside them: flags decide what is learned, and nothing is dropped without a word."""

from __future__ import annotations

import json
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from chats import CHATS, SOURCE, chatml, learned_text, vocabulary_of, windower, windows_of

from xtoken_pl import DistillDataModule, TextSource
from xtoken_pl.data import load_source
from xtoken_pl.data.chats.conversations import RowError, read_documents
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.sources.local_files import load_saved
from xtoken_pl.utilities.errors import UserError

USER, ASSISTANT = {"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "It is 5."}
FIRST = [USER, {"role": "assistant", "content": "wrong"}]
PROMPTS = TextSource(path="x", prompt_field="p", completion_field="c")


def learned(messages: list[dict[str, Any]]) -> str:
    return "".join(map(learned_text, windows_of([messages])))


# Flags ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weight", "loss", "train", "training", "trainable"])
@pytest.mark.parametrize("off", [0, False, 0.0])
def test_a_message_is_learned_as_its_flag_says(name: str, off: Any) -> None:
    on = type(off)(1)
    assert learned([USER, FIRST[1] | {name: off}, USER, ASSISTANT | {name: on}]) == "It is 5."
    assert learned([USER, FIRST[1] | {name: None}, USER, ASSISTANT]) == "wrongIt is 5."
    assert learned([USER | {name: off}, ASSISTANT]) == "It is 5."


def test_any_message_may_be_learned_by_train() -> None:
    assert learned([USER | {"train": True}, ASSISTANT | {"train": False}]) == USER["content"]
    assert learned([{"role": "critic", "content": "Good.", "train": True}, ASSISTANT]) == "Good.It is 5."


def test_a_message_that_is_not_learned_is_read_and_aligned_all_the_same() -> None:
    (flagged,) = windows_of([[*FIRST[:1], FIRST[1] | {"weight": 0}, USER, ASSISTANT]])
    (plain,) = windows_of([[*FIRST, USER, ASSISTANT]])
    for column in flagged:
        if column != "loss_mask":
            assert list(flagged[column]) == list(plain[column])


def test_the_turn_end_of_a_message_that_is_not_learned_is_not_learned() -> None:
    source = TextSource(path="x", messages_field="messages", learn_turn_end=True)
    (row,) = windows_of([[USER, FIRST[1] | {"train": False}, USER, ASSISTANT]], source=source)
    end = chatml().convert_tokens_to_ids("<|im_end|>")
    ends = [mask for token, mask in zip(row["student_ids"], row["loss_mask"], strict=True) if token == end]
    assert ends == [0, 0, 0, 1]


def test_completions_follow_flags_and_prompts_are_not_learned() -> None:
    columns = WindowMaker(PROMPTS, windower())([[USER]], [[FIRST[1] | {"weight": 0}, USER, ASSISTANT]])
    assert learned_text({name: values[0] for name, values in columns.items()}) == "It is 5."
    with pytest.raises(UserError, match=r"what the assistant answers is learned, but the prompt has train True"):
        read_documents(PROMPTS, [[ASSISTANT | {"train": True}, USER]], ["a"])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (ASSISTANT | {"weight": 0.5}, "weight must be 0 or 1, false or true, got weight 0.5"),
        (ASSISTANT | {"train": "no"}, "train must be 0 or 1, false or true, got train 'no'"),
        (ASSISTANT | {"weight": 0, "train": True}, "must agree, got train True, weight 0"),
        (USER | {"weight": 1}, "a message of the role 'user' has weight 1 .* or say `train: true`"),
        ({"role": "tool", "content": "a", "train": True}, "'tool' has train True .* set it to 0 or leave it out$"),
        ({"role": "gpt", "content": "a"}, "must be one of system, .*, got 'gpt' .*rename it, or say by a field"),
        (ASSISTANT | {"function_call": {"name": "f"}}, "also has function_call .*ignored_fields: \\[function_call\\]"),
        (USER | {"tool_calls": [{"name": "f"}], "thinking": "r"}, "also has tool_calls, thinking"),
        (ASSISTANT | {"reasoning_content": "r", "name": "bob"}, "also has name in"),
        (ASSISTANT | {"train_detail": [{"begin_offset": 0}]}, "also has train_detail"),
        (ASSISTANT | {"loss_scale": 0.5}, "also has loss_scale"),
        (ASSISTANT | {"content": "a \ud800"}, "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(message: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as raised:
        read_documents(SOURCE, [[USER, ASSISTANT], [message, ASSISTANT]])
    assert "in row 2 of 2 of 'x'" in str(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_fields_without_a_value_are_absent() -> None:
    empty = {"tool_calls": [], "function_call": None, "refusal": "", "audio": {"id": None}, "annotations": []}
    assert learned([USER | empty, ASSISTANT | empty]) == "It is 5."


@pytest.mark.parametrize(
    ("ignored", "expected"),
    [(["train"], [False, True]), (["train", "training", "trainable", "weight", "loss"], [True, True])],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_flag_is_followed_in_a_file_although_another_one_is_ignored(
    tmp_path: Path, ignored: list[str], expected: list[bool], streaming: bool
) -> None:
    messages = [USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT | {"train": False}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    source = TextSource(path=str(tmp_path / "a.jsonl"), messages_field="messages", ignored_fields=ignored)
    (row,) = load_source(source, streaming=streaming)
    (conversation,) = read_documents(source, [row["messages"]])
    assert [turn.is_learned for turn in conversation.turns if turn.role == "assistant"] == expected


def test_ignored_fields_are_left_out() -> None:
    source = TextSource(path="x", messages_field="messages", ignored_fields=["name", "weight"])
    (row,) = windows_of([[USER | {"name": "a"}, ASSISTANT | {"weight": 0}]], source=source)
    assert learned_text(row) == "It is 5."
    with pytest.raises(ValueError, match="ignored_fields needs conversations"):
        TextSource(path="x", ignored_fields=["name"])
    with pytest.raises(ValueError, match="role and content cannot be ignored_fields, got content"):
        TextSource(path="x", messages_field="m", ignored_fields=["content"])


# From files and data sets ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["jsonl", "parquet", "saved"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Writes rows as a file, or as a data set of `datasets`; returns the path."""

    def write(rows: list[dict[str, Any]]) -> str:
        if request.param == "jsonl":
            (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            return str(tmp_path / "a.jsonl")
        names = {name for row in rows for message in row["messages"] for name in message}
        filled = [row | {"messages": [{n: m.get(n) for n in names} for m in row["messages"]]} for row in rows]
        data = datasets.Dataset.from_list(filled)
        if request.param == "parquet":
            data.to_parquet(tmp_path / "a.parquet")
            return str(tmp_path / "a.parquet")
        data.save_to_disk(tmp_path / "saved")
        return str(tmp_path / "saved")

    return write


@pytest.mark.parametrize("streaming", [False, True])
def test_flags_of_files_and_data_sets_are_followed(written: Any, streaming: bool) -> None:
    path = written([{"messages": [USER, FIRST[1] | {"weight": 0}, USER, ASSISTANT]}, {"messages": CHATS[0]}] * 20)
    data = DistillDataModule(TextSource(path=path, messages_field="messages"), streaming=streaming, num_workers=0)
    data.connect(vocabulary_of(chatml()), {})
    data.setup("fit")
    said = set(map(learned_text, islice(data.datasets["train"], 20)))
    assert said == {"It is 5.", CHATS[0][1]["content"] + CHATS[0][3]["content"]}


@pytest.mark.parametrize("streaming", [False, True])
def test_an_odd_message_far_down_is_named_by_its_row(written: Any, streaming: bool) -> None:
    rows = [{"messages": [USER, ASSISTANT | {"function_call": None}]}] * 457
    path = written([*rows, {"messages": [USER, ASSISTANT | {"function_call": "f()"}]}, *rows])
    data = DistillDataModule(TextSource(path=path, messages_field="messages"), streaming=streaming, num_workers=0)
    data.connect(vocabulary_of(chatml()), {})
    with pytest.raises(RowError, match="also has function_call in row ") as raised:
        _all_windows(data)
    if not (streaming and path.endswith("saved")):
        assert f"in row 458 of {path!r}" in str(raised.value)


def _all_windows(data: DistillDataModule) -> list[Any]:
    data.setup("fit")
    return list(data.datasets["train"])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "beside", [{"tools": [{"name": "f"}]}, {"system": "Be brief."}, {"chat_template_kwargs": {"a": True}}]
)
def test_columns_beside_messages_that_a_template_might_read_are_refused(
    written: Any, beside: dict[str, Any], streaming: bool
) -> None:
    (name,) = beside
    messages = {"messages": [USER, ASSISTANT], "id": 1}
    path = written([messages | {name: None}, messages | beside])
    with pytest.raises(RowError, match=rf"but {name} stand beside those of .* set ignored_fields: \[{name}\]"):
        list(load_source(TextSource(path=path, messages_field="messages"), streaming=streaming))
    source = TextSource(path=path, messages_field="messages", ignored_fields=[name])
    assert len(list(load_source(source, streaming=streaming))) == 2


def test_files_whose_messages_have_other_fields_are_read_together(tmp_path: Path) -> None:
    for number, messages in enumerate(([USER, ASSISTANT], [USER, ASSISTANT | {"weight": 0, "name": None}, *FIRST])):
        datasets.Dataset.from_list([{"messages": messages}]).to_parquet(tmp_path / f"{number}.parquet")
    rows = load_source(TextSource(path=str(tmp_path), messages_field="messages"))
    assert [[m["train"] for m in row["messages"]] for row in rows] == [[False, True], [False, False, False, True]]


def test_windows_from_before_the_flags_were_read_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    def fingerprints(name: str, message: dict[str, Any]) -> tuple[str, str]:
        datasets.Dataset.from_list([{"messages": [USER, message]}]).save_to_disk(tmp_path / name)
        source = TextSource(path=str(tmp_path / name), messages_field="messages")
        return load_saved(source.path, "train", streaming=False)._fingerprint, load_source(source)._fingerprint

    before, now = fingerprints("flagged", ASSISTANT | {"weight": 0})
    assert before != now
    before, now = fingerprints("plain", ASSISTANT)
    assert before == now
