"""What is said of prompts, and which settings and data are refused, before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prompt_data import MIXED, ONLY, STUDENT, TEACHERS, TEXT_ROWS, data_of, write
from small_models import TEXTS

from xtoken_pl import DistillDataModule, TextSource
from xtoken_pl.specs import PromptSettings
from xtoken_pl.utilities.errors import UserError


def test_the_log_counts_windows_with_prompts_and_those_that_are_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": "Answer: 3"}, {"text": TEXTS[0][:100] + " Answer: 4"}, {"text": "nothing"}]
    source = TextSource(path=write(tmp_path / "a.jsonl", rows))
    with caplog.at_level("INFO"):
        data_of(source, PromptSettings(max_new_tokens=170, end="Answer:"), sequence_length=200)
    assert "train: 2 of 3 windows have a prompt. Prompts that are cut at their beginning, to leave room" in caplog.text
    assert "max_new_tokens=170 in sequence_length=200: 1\n" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("only", [False, True])
def test_data_without_any_prompt_are_refused(tmp_path: Path, streaming: bool, only: bool) -> None:
    source = TextSource(path=write(tmp_path / "a.jsonl", TEXT_ROWS[:2]))
    settings = PromptSettings(max_new_tokens=20, end="ANSWER:", only=only)
    with pytest.raises(UserError, match=r"(none of|every window).*prompt_end"):
        data_of(source, settings, streaming=streaming)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"packing": "joined"}, r"one document .* got packing='joined'; set data.packing to none"),
        ({"sequence_length": 21}, r"max_new_tokens must leave room in sequence_length .*=20 and .*=21; .* at most 19"),
    ],
)
def test_settings_without_room_for_a_prompt_are_refused(tmp_path: Path, options: Any, expected: str) -> None:
    source = TextSource(path=write(tmp_path / "a.jsonl", TEXT_ROWS))
    with pytest.raises(UserError, match=expected):
        data_of(source, MIXED, setup=False, **options)


@pytest.mark.parametrize("prompts", [None, MIXED], ids=["off-policy", "mixed"])
def test_prompts_without_answers_are_refused_where_answers_are_learned(tmp_path: Path, prompts: Any) -> None:
    path = write(tmp_path / "a.jsonl", [{"p": "What?", "messages": [{"role": "user", "content": "What?"}]}])
    with pytest.raises(
        UserError, match=r"data\.train has only prompt_field='p'; set completion_field.*share: 1 and warm_up_steps: 0"
    ):
        data_of(TextSource(path=path, prompt_field="p"), prompts)
    with pytest.raises(UserError, match="role 'assistant' to learn from"):
        data_of(TextSource(path=path, messages_field="messages"), prompts)


def test_prompts_without_answers_are_refused_in_validation(tmp_path: Path) -> None:
    source = TextSource(path=write(tmp_path / "a.jsonl", [{"p": "What?"}]), prompt_field="p")
    data = DistillDataModule(source, {"asked": source}, sequence_length=96)
    with pytest.raises(UserError, match=r"data\.val\.asked has only prompt_field='p'.*or leave the source out"):
        data.connect(STUDENT, TEACHERS, prompts=ONLY)
    unanswered = TextSource(
        path=write(tmp_path / "b.jsonl", [{"m": [{"role": "user", "content": "a"}]}]), messages_field="m"
    )
    data = DistillDataModule(unanswered, unanswered, sequence_length=96)
    data.connect(STUDENT, TEACHERS, prompts=ONLY)
    with pytest.raises(UserError, match="role 'assistant' to learn from"):
        data.setup("fit")
