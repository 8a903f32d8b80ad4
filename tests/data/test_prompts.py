"""Windows with prompts, and data that are read for their prompts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import CHATS, bytes_of
from hypothesis import given
from hypothesis import strategies as st
from prompt_data import CHAT_ROWS, MIXED, ONLY, STUDENT, TEACHERS, TEXT_ROWS, data_of, windows_of, write
from real_tokenizers import llama2_style, qwen3, smollm2
from small_models import TEXTS

from xtoken_pl import CanonicalVocabulary, DistillDataModule, TextSource
from xtoken_pl.batch import DOMAIN, PROMPT, STUDENT_IDS, Prompt, prompt_column, teacher_columns
from xtoken_pl.data import Windower, collate
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.prompts import PromptMaker
from xtoken_pl.specs import PromptSettings

SIDES = {"": STUDENT, **TEACHERS}
words = st.sampled_from(["the ", "12345", " tokenizer", "\n\n", "é", "数字", "👩‍👧", "  ", "def f(x):", "\t"])


def with_prompts(windower: Windower, text: str, **settings: Any) -> list[Window]:
    """The windows of a text with the columns of their prompts."""
    made = PromptMaker(windower, PromptSettings(**{"max_new_tokens": 10, **settings}))
    (piece,) = made.pieces([text], TextSource(path="x").learned)
    return piece.windows


def text_of(vocabulary: CanonicalVocabulary, window: Window, side: str) -> bytes:
    """The text of a side's prompt, behind what stands before every text."""
    ids = window[prompt_column(side)].tolist()
    assert tuple(ids[: len(vocabulary.prefix_ids)]) == vocabulary.prefix_ids
    assert len(ids) > len(vocabulary.prefix_ids)
    return bytes_of(vocabulary, ids)


# Texts ----------------------------------------------------------------------------------------------------------------


@given(text=st.lists(words, min_size=1, max_size=80).map("".join), num_bytes=st.integers(1, 60))
def test_the_prompt_of_a_text_is_the_beginning_of_its_window_with_equal_bytes(text: str, num_bytes: int) -> None:
    for window in with_prompts(Windower(STUDENT, TEACHERS, 64), text, num_bytes=num_bytes):
        whole = bytes_of(STUDENT, window[STUDENT_IDS])
        if not len(window[PROMPT]):
            continue
        said = {text_of(vocabulary, window, side) for side, vocabulary in SIDES.items()}
        assert len(said) == 1
        (prompt,) = said
        prompt.lstrip(bytes(range(0x80, 0xC0))).decode()  # a window, not its prompt alone, may begin in a character
        assert len(prompt) <= num_bytes
        if not window[PROMPT][1]:
            for side in SIDES:
                ids = window[teacher_columns(side)[0] if side else STUDENT_IDS]
                own = window[prompt_column(side)]
                assert own.tolist() == ids[: len(own)].tolist()
        assert prompt in whole[:num_bytes]


def test_a_prompt_of_a_text_is_as_long_as_it_may_be_and_never_ends_with_eos() -> None:
    text = "The 12345 words of a text.\n"
    windower = Windower(STUDENT, TEACHERS, 64)
    lengths = []
    for num_bytes in range(1, 40):
        (window,) = with_prompts(windower, text, num_bytes=num_bytes)
        lengths.append(len(text_of(STUDENT, window, "")) if len(window[PROMPT]) else 0)
    ends = {0, *np.cumsum([len(STUDENT.token_bytes[token]) for token in STUDENT.encode([text])[0]]).tolist()}
    for teacher in TEACHERS.values():
        ends &= {0, *np.cumsum([len(teacher.token_bytes[token]) for token in teacher.encode([text])[0]]).tolist()}
    assert lengths == [max(end for end in ends if end <= num_bytes) for num_bytes in range(1, 40)]
    for side, vocabulary in SIDES.items():
        assert window[prompt_column(side)][-1] != vocabulary.roles["eos"]


@pytest.mark.parametrize("text", ["Question: 1 + 2?\nAnswer: 3. Answer: 4", "Answer: then Answer:"])
def test_the_prompt_of_a_text_ends_behind_the_first_occurrence_of_a_text(text: str) -> None:
    (window,) = with_prompts(Windower(STUDENT, TEACHERS, 96), text, end="Answer:")
    assert text_of(STUDENT, window, "").decode() == text[: text.index("Answer:") + len("Answer:")]


def test_a_long_prompt_of_a_text_is_cut_at_its_beginning_on_all_sides_alike() -> None:
    text = TEXTS[0][:100] + "Answer: forty"
    (window,) = with_prompts(Windower(STUDENT, TEACHERS, 200), text, end="Answer:", max_new_tokens=170)
    assert window[PROMPT].tolist() == [0, 1]
    (said,) = {text_of(vocabulary, window, side) for side, vocabulary in SIDES.items()}
    assert said.endswith(b"Answer:")
    assert said in text.encode()
    assert 25 < max(len(window[prompt_column(side)]) for side in SIDES) <= 30


@pytest.mark.parametrize("end", [None, "Answer:"])
def test_prompts_of_real_tokenizers_have_equal_bytes(end: str | None) -> None:
    sides = {"": smollm2(), "qwen": qwen3(), "llama": llama2_style()}
    vocabularies = {name: CanonicalVocabulary.from_tokenizer(tokenizer) for name, tokenizer in sides.items()}
    windower = Windower(vocabularies[""], {name: side for name, side in vocabularies.items() if name}, 200)
    for text in ("Naïve 数字 👩‍👧 and 12345 words.\n\nAnswer: yes", TEXTS[0][:300] + " Answer: no"):
        for window in with_prompts(windower, text, num_bytes=30, end=end):
            if len(window[PROMPT]):
                said = {text_of(vocabularies[side], window, side).removeprefix(b" ") for side in sides}
                assert len(said) == 1


def test_a_window_without_the_end_of_a_prompt_has_none() -> None:
    windows = with_prompts(
        Windower(STUDENT, TEACHERS, 64), TEXTS[0][:400] + " Answer: 3 " + TEXTS[1][:400], end="Answer:"
    )
    has_prompt = [len(window[PROMPT]) > 0 for window in windows]
    assert sum(has_prompt) == 1
    for window, has in zip(windows, has_prompt, strict=True):
        assert {len(window[prompt_column(side)]) > 0 for side in SIDES} == {has}


# Windows with prompts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "field"), [(TEXT_ROWS, {}), (CHAT_ROWS, {"messages_field": "messages"})])
@pytest.mark.parametrize("streaming", [False, True])
def test_windows_with_prompts_are_those_without_them_and_more_columns(
    tmp_path: Path, rows: Any, field: Any, streaming: bool
) -> None:
    source = TextSource(path=write(tmp_path / "a.jsonl", rows), **field)
    made = []
    for prompts in (None, MIXED):
        data = data_of(source, prompts, streaming=streaming, shuffle_buffer=4)
        loader = iter(data.train_dataloader())
        made.append([next(loader) for _ in range(4)])
    for without, own in zip(*made, strict=True):
        assert without.prompts is None
        assert own.prompts is not None
        assert len(own.prompts) == len(own.student.input_ids)
        assert own.student.input_ids.tolist() == without.student.input_ids.tolist()
        for name in TEACHERS:
            view, other = own.teachers[name], without.teachers[name]
            assert view.tokens.input_ids.tolist() == other.tokens.input_ids.tolist()
            assert view.spans.student_first.tolist() == other.spans.student_first.tolist()
    assert any(prompt is not None for batch in made[1] for prompt in batch.prompts or ())


def test_every_window_of_a_conversation_has_the_prompt_of_the_conversation(tmp_path: Path) -> None:
    long = [*CHATS[0], {"role": "assistant", "content": TEXTS[0][:400]}]
    source = TextSource(path=write(tmp_path / "a.jsonl", [{"messages": long}]), messages_field="messages")
    windows = windows_of(data_of(source, MIXED))
    assert len(windows) > 2
    prompts = [Prompt.from_window(window, list(TEACHERS)) for window in windows]
    assert prompts[0] is not None
    assert all(prompt == prompts[0] for prompt in prompts)
    assert prompts[0].is_chat


def test_validation_has_no_prompts(tmp_path: Path) -> None:
    source = TextSource(path=write(tmp_path / "a.jsonl", TEXT_ROWS))
    data = DistillDataModule(source, source, sequence_length=96, batch_size=3, num_workers=0)
    data.connect(STUDENT, TEACHERS, prompts=ONLY)
    data.setup("fit")
    assert all(batch.prompts is None and len(batch.student.labels) for batch in data.val_dataloader())
    assert all(batch.prompts is not None for batch in data.train_dataloader())


def test_fingerprints_depend_on_the_settings_that_change_prompts_alone() -> None:
    texts, chats = TextSource(path="x"), TextSource(path="x", messages_field="messages")
    windower = Windower(STUDENT, TEACHERS, 96)

    def fingerprint(source: TextSource, **settings: Any) -> str:
        given = PromptSettings(**{"max_new_tokens": 20, **settings}) if settings else None
        return WindowMaker(source, windower, prompts=given).fingerprint

    others = [{"num_bytes": 9}, {"num_bytes": 8}, {"end": "a"}, {"max_new_tokens": 7}, {"only": True}]
    assert len({fingerprint(texts), *(fingerprint(texts, **other) for other in others)}) == 6
    assert fingerprint(texts, end="a", num_bytes=3) == fingerprint(texts, end="a")
    # The prompt of a conversation ends where the assistant is to answer.
    assert len({fingerprint(chats), *(fingerprint(chats, **other) for other in others)}) == 4


# Prompts alone --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_of_prompts_is_read(tmp_path: Path, streaming: bool) -> None:
    path = write(tmp_path / "a.jsonl", [{"p": f"What is {number} + 3?"} for number in range(5)])
    data = data_of(TextSource(path=path, prompt_field="p"), ONLY, streaming=streaming, shuffle_buffer=4)
    batch = next(iter(data.train_dataloader()))
    assert len(batch.student.labels) == 0
    assert batch.student.input_ids.shape == (3, 1)
    assert batch.prompts is not None
    for prompt in batch.prompts:
        assert prompt is not None
        assert [*prompt.ids] == ["", *TEACHERS]
        assert (prompt.is_chat, prompt.is_cut) == (True, False)
        assert bytes_of(STUDENT, prompt.ids[""]).endswith(b" + 3?\nassistant\n")
        assert all(b" + 3?" in bytes_of(SIDES[side], ids) for side, ids in prompt.ids.items())


def test_conversations_need_no_answer_and_each_gives_one_prompt(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Why?"}]
    answer = [{"role": "assistant", "content": "unasked"}]
    rows = [{"messages": messages} for messages in (*CHATS, asked, answer)]
    source = TextSource(path=write(tmp_path / "a.jsonl", rows), messages_field="messages")
    with pytest.warns(UserWarning, match=r"1 of 4 conversations of .* are left out. The first: a prompt ends with"):
        windows = windows_of(data_of(source, ONLY, sequence_length=200))
    assert len(windows) == 3
    for window in windows:
        assert not any(len(window[column]) for side in TEACHERS for column in (STUDENT_IDS, *teacher_columns(side)))
        assert len(window[PROMPT])


def test_texts_give_one_prompt_for_each_window_that_has_one(tmp_path: Path) -> None:
    rows = [{"text": TEXTS[0][:300]}, {"text": "Question, é. Answer: 3"}]
    source = TextSource(path=write(tmp_path / "a.jsonl", rows))
    settings = PromptSettings(max_new_tokens=20, end="Answer:|Reply:", only=True)
    with pytest.warns(UserWarning, match=r"\d windows .* left out.*first: .* ends with a match of 'Answer:.Reply:'"):
        (window,) = windows_of(data_of(source, settings))
    prompt = Prompt.from_window(window, list(TEACHERS))
    assert prompt is not None
    assert bytes_of(STUDENT, prompt.ids[""]) == "Question, é. Answer:".encode()


@pytest.mark.parametrize("settings", [MIXED, ONLY], ids=["mixed", "only"])
def test_a_prompt_has_the_teacher_of_its_row_alone_and_none_without_a_teacher(tmp_path: Path, settings: Any) -> None:
    names = ["llama", "plain", None]
    rows = [row | {"expert": names[place % 3]} for place, row in enumerate(TEXT_ROWS)]
    data = data_of(TextSource(path=write(tmp_path / "a.jsonl", rows), teacher_field="expert"), settings)
    seen = set()
    for window in windows_of(data):
        prompt = Prompt.from_window(window, list(TEACHERS))
        sides = None if prompt is None else tuple(prompt.ids)
        assert prompt is None or prompt.domain == window[DOMAIN]
        seen.add((sides, int(window[DOMAIN])))
    without = {(None, 2)} if settings is MIXED else set()
    assert seen == {(("", "llama"), 0), (("", "plain"), 1)} | without


def test_blank_and_empty_windows_are_collated() -> None:
    nothing = {STUDENT_IDS: np.array([], dtype=int), "loss_mask": [], PROMPT: [1, 0], "prompt_ids": [4, 5], "t/ids": []}
    batch = collate([nothing | {"t/spans": [], "t/prompt_ids": [6]}, {STUDENT_IDS: [0], "loss_mask": [0]}], ["t"])
    assert batch.student.input_ids.shape == (2, 1)
    assert batch.student.attention_mask.tolist() == [[0], [1]]
    assert batch.prompts == [Prompt({"": [4, 5], "t": [6]}, is_chat=True), None]
    assert batch.only([]).prompts == batch.prompts
