"""Rollouts that answer a conversation: a data set's own answer is read as its training window has it."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import real_tokenizers
from chats import LLAMA2, chatml, conversation, llama3_like, plain, with_tokens
from real_templates import GEMMA3, LLAMA3, QWEN3, SMOLLM2, shipped_template
from tool_conversations import PLAIN

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.batch.prompts import Prompt
from xtoken_pl.data import Windower
from xtoken_pl.data.chats.conversations import LearnedParts
from xtoken_pl.rollouts import Rollout
from xtoken_pl.rollouts.reading import RolloutReader

#: The assistant's mark is a special token, behind which a SentencePiece tokenizer may put a space.
MARKED = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
_TAGS = re.compile(r"<\|\w+\|>|<｜[^｜]+｜>|<\|\w+>|<\w+\|>|<\w+_of_\w+>")
_REAL = {"SMOLLM2": SMOLLM2, "QWEN3": QWEN3, "LLAMA3": LLAMA3, "GEMMA3": GEMMA3}
_OWN = {
    "chatml": chatml,
    "llama3_like": llama3_like,
    "plain": plain,
    "llama2": lambda: with_tokens(real_tokenizers.llama2_style(), LLAMA2),
    "marked": lambda: with_tokens(real_tokenizers.llama2_style(), MARKED, "<|user|>", "<|assistant|>"),
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
def test_so_it_has_under_the_templates_of_many_models(student: str) -> None:
    place = SHIPPED.index(student)
    for teacher, answer in zip([*SHIPPED, *SHIPPED][place:], ANSWERS, strict=False):
        check_equal(student, teacher, answer)
