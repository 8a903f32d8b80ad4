"""Rollouts that answer a conversation: a data set's own answer is read as its training window has it."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import real_tokenizers
from chats import LLAMA2, MARKED, SPACED, chatml, conversation, llama3_like, plain, with_tokens
from real_templates import GEMMA3, LLAMA3, QWEN3, SMOLLM2, shipped_template
from tool_conversations import PLAIN

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.batch.prompts import Prompt
from xtoken_pl.data import Windower
from xtoken_pl.data.chats.conversations import LearnedParts
from xtoken_pl.rollouts import Rollout
from xtoken_pl.rollouts.reading import RolloutReader

_TAGS = re.compile(r"<\|\w+\|>|<｜[^｜]+｜>|<\|\w+>|<\w+\|>|<\w+_of_\w+>")
_REAL = {"SMOLLM2": SMOLLM2, "QWEN3": QWEN3, "LLAMA3": LLAMA3, "GEMMA3": GEMMA3}
_OWN = {
    "chatml": chatml,
    "llama3_like": llama3_like,
    "plain": plain,
    "llama2": lambda: with_tokens(real_tokenizers.llama2_style(), LLAMA2),
    "marked": lambda: with_tokens(real_tokenizers.llama2_style(), MARKED, "<|user|>", "<|assistant|>"),
    "spaced": lambda: with_tokens(real_tokenizers.llama2_style(), SPACED, "<|user|>", "<|assistant|>"),
}
OFTEN = ["SMOLLM2", "QWEN3", *_OWN]
# GLM's ends an answer only if a message follows, and gpt-oss's ends the last one differently: no pair has both.
SHIPPED = [
    *("cohere", "deepseekv3", "gemma4_v5", "glm4moe", "lfm2_v2", "llama3_1", "muse_glimmer", "nemotron_3_nano"),
    *("phi3", "gptoss", "qwen2_5", "qwen3_5_think", "qwen3_8"),
]
ANSWERS = [
    *(turn["content"].strip() for turn in PLAIN["messages"] if turn["role"] == "assistant"),
    "42 is the answer.",
    "- `def f(x):`\n\n    return x ** 2  # <|im_end|> </s>\n- naïve café, Привет, 日本語 🙂",
    "x",
    "(1) first,\t2nd",
]


@cache
def vocabulary(name: str) -> CanonicalVocabulary:
    if name in _REAL:
        return _REAL[name].vocabulary
    if name in _OWN:
        return CanonicalVocabulary.from_tokenizer(_OWN[name]())
    text = shipped_template(name)
    return CanonicalVocabulary.from_tokenizer(
        with_tokens(real_tokenizers.smollm2(), text, *sorted({*_TAGS.findall(text)}))
    )


class Both(NamedTuple):
    """An answer in a training window, and the ids that a student who writes it generates."""

    window: dict[str, Any]
    start: int
    ids: list[int]


@cache
def windower(student: str, teacher: str) -> Windower:
    return Windower(vocabulary(student), {"t": vocabulary(teacher)}, 4000)


def trained(student: str, teacher: str, answer: str) -> Both:
    question = {"role": "user", "content": "A question?"}
    messages = [question, {"role": "assistant", "content": "One answer."}]
    messages += [question, {"role": "assistant", "content": answer}]
    own = windower(student, teacher)
    sides = [side.render([conversation(messages)])[0] for side in own.renderers.values()]
    if any(side.turns[3].end is None for side in sides):
        messages.append(question)
    rendered = own.renderers[""].render([conversation(messages)])[0]
    tokens, before = rendered.turns[3], len(rendered.prefix)
    columns = own([conversation(messages)], LearnedParts(turn_ends=tokens.end is not None))
    window = {name: np.asarray(values[0]) for name, values in columns.items()}
    start, end = tokens.content[0] + before, (tokens.content[1] if tokens.end is None else tokens.end + 1) + before
    return Both(window, start, window["student_ids"][start:end].tolist())


def read(student: str, teacher: str, ids: list[int]) -> dict[str, Any]:
    """Window behind prompts of one token each."""
    reader = RolloutReader(vocabulary(student), {"t": vocabulary(teacher)}, 4000)
    prompt = Prompt({"": [0], "t": [0]}, is_chat=True)
    (window,) = reader.read([prompt], [Rollout.from_ids(ids, vocabulary(student), reader.stop_ids(prompt))])
    return window


def last_place(ids: list[int], part: list[int]) -> int:
    """Where a list was found last in another one."""
    return max(place for place in range(len(ids)) if ids[place : place + len(part)] == part)


def spans(window: dict[str, Any], start: int, other_start: int, num_tokens: int) -> list[list[int]]:
    """Spans of an answer of a number of tokens, counted from its start."""
    shifted = window["t/spans"].reshape(-1, 4) - np.repeat((start, other_start), 2)
    return [row for row in shifted.tolist() if 0 <= row[0] < num_tokens]


def check_equal(student: str, teacher: str, answer: str) -> None:
    both = trained(student, teacher, answer)
    found = read(student, teacher, both.ids)
    assert found["student_ids"].tolist() == [0, *both.ids]
    place = last_place(both.window["t/ids"].tolist(), found["t/ids"].tolist()[1:])
    expected = spans(both.window, both.start, place, len(both.ids))
    assert spans(found, 1, 1, len(both.ids)) == expected != []


def slow(*names: str) -> Any:
    """Gemma's tokenizer takes 20 seconds, and Llama's ten."""
    return pytest.param(*names, marks=pytest.mark.slow)


PAIRS = [(student, teacher) for student in OFTEN for teacher in OFTEN]
REAL_PAIRS = [
    slow(student, teacher) for student in _REAL for teacher in _REAL if {student, teacher} & {"LLAMA3", "GEMMA3"}
]


@pytest.mark.parametrize(("student", "teacher"), [*PAIRS, *REAL_PAIRS])
def test_the_answer_of_the_data_has_the_spans_of_its_training_window(student: str, teacher: str) -> None:
    for answer in ANSWERS:
        check_equal(student, teacher, answer)


@pytest.mark.parametrize("student", SHIPPED)
def test_the_answer_of_the_data_has_the_spans_of_its_training_window_under_shipped_templates(student: str) -> None:
    place = SHIPPED.index(student)
    for teacher, answer in zip([*SHIPPED, *SHIPPED][place:], ANSWERS, strict=False):
        check_equal(student, teacher, answer)


# Single cases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["plain", "llama2", "marked", "spaced"])
@pytest.mark.parametrize("teacher", ["chatml", "marked", "spaced"])
def test_the_space_that_a_template_or_tokenizer_puts_before_an_answer_is_not_read_by_teachers(
    student: str, teacher: str
) -> None:
    side, answer = vocabulary(student), "It is 42."
    with side.mid_text_backend() as backend:
        with_space, without = (backend.encode(space + answer, add_special_tokens=False).ids for space in (" ", ""))
    windows = [read(student, teacher, ids) for ids in (with_space, without)]
    assert with_space[0] != without[0]
    assert windows[0]["t/ids"].tolist() == windows[1]["t/ids"].tolist()
    covered = [b"".join(side.token_bytes[token] for token in ids) for ids in (with_space, without)]
    for window, ids, written in zip(windows, (with_space, without), covered, strict=True):
        found = spans(window, 1, 1, len(ids))
        aligned = b"".join(side.token_bytes[token] for a, b, _, _ in found for token in ids[a:b])
        assert aligned.lstrip(b" ") == written.lstrip(b" ")


@pytest.mark.parametrize("student", ["plain", "llama2"])
def test_a_text_has_no_space_of_a_template(student: str) -> None:
    side = vocabulary(student)
    reader = RolloutReader(side, {"t": vocabulary("chatml")}, 4000)
    prompt = Prompt({"": [0], "t": [0]}, is_chat=False)
    with side.mid_text_backend() as backend:
        ids = backend.encode(" It is 42.", add_special_tokens=False).ids
    (window,) = reader.read([prompt], [Rollout.from_ids(ids, side, ())])
    assert window["t/ids"].tolist()[1:] == vocabulary("chatml").encode([" It is 42."])[0]


def test_what_a_template_writes_before_its_turn_end_is_not_read_by_teachers() -> None:
    side, teacher = vocabulary("llama2"), vocabulary("chatml")
    window = read("llama2", "chatml", [*side.encode(["An answer "])[0], side.roles["eos"]])
    turn_end = teacher.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert window["t/ids"].tolist()[1:] == [*teacher.encode(["An answer"])[0], turn_end]
    unfinished = read("llama2", "chatml", side.encode(["An answer "])[0])
    assert unfinished["t/ids"].tolist()[1:] == teacher.encode(["An answer "])[0]


def test_chats_stop_at_the_turn_end_and_at_eos_and_texts_at_eos() -> None:
    reader, side = RolloutReader(vocabulary("chatml"), {}, 4000), vocabulary("chatml")
    turn_end, eos = side.tokenizer.convert_tokens_to_ids("<|im_end|>"), side.roles["eos"]
    assert turn_end != eos
    stops = [reader.stop_ids(Prompt({"": [0]}, is_chat=is_chat)) for is_chat in (True, False)]
    assert stops == [{turn_end, eos}, {eos}]


@pytest.mark.parametrize("is_chat", [True, False])
def test_both_ends_share_a_span_if_their_roles_match(*, is_chat: bool) -> None:
    side, teacher = vocabulary("chatml"), vocabulary("llama3_like")
    ends = [
        tokenizer.convert_tokens_to_ids(end)
        for tokenizer, end in ((side.tokenizer, "<|im_end|>"), (teacher.tokenizer, "<|eot_id|>"))
    ]
    expected = ends if is_chat else [side.roles["eos"], teacher.roles["eos"]]
    reader = RolloutReader(side, {"t": teacher}, 4000)
    prompt = Prompt({"": [0], "t": [0]}, is_chat=is_chat)
    ids = [*side.encode(["An answer"])[0], expected[0]]
    (window,) = reader.read([prompt], [Rollout.from_ids(ids, side, reader.stop_ids(prompt))])
    assert window["t/ids"][-1] == expected[1]
    last = window["t/spans"].reshape(-1, 4)[-1].tolist()
    assert last == [len(ids), len(ids) + 1, len(window["t/ids"]) - 1, len(window["t/ids"])]


def test_a_teacher_that_does_not_teach_a_conversation_needs_no_template() -> None:
    side = vocabulary("chatml")
    bare = CanonicalVocabulary.from_tokenizer(real_tokenizers.llama2_style())
    reader = RolloutReader(side, {"bare": bare}, 4000)
    prompt = Prompt({"": [0]}, is_chat=True)
    (window,) = reader.read([prompt], [Rollout.from_ids(side.encode(["An answer"])[0], side, ())])
    assert "bare/ids" not in window
