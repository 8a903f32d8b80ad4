"""Prompts of conversations: what a template writes before an answer, cut on all sides alike if it is too long."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from chats import (
    CHATML,
    CHATS,
    LLAMA2,
    bytes_of,
    chatml,
    conversation,
    llama3_like,
    plain,
    said_behind,
    tokenized_prompts,
    vocabulary_of,
    with_tokens,
)
from hypothesis import given
from hypothesis import strategies as st
from real_templates import GEMMA3, LLAMA3, QWEN3, SMOLLM2, RealTemplate
from real_tokenizers import llama2_style
from small_models import packing_tokenizer
from tool_conversations import CALL, PLAIN, RESULT

from xtoken_pl import CanonicalVocabulary, TextSource
from xtoken_pl.batch import PROMPT, prompt_column
from xtoken_pl.data import Windower
from xtoken_pl.data.chats.conversations import Conversation, read_documents
from xtoken_pl.data.chats.rendered import UnrenderableError
from xtoken_pl.data.chats.renderer import ChatRenderer
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.prompts import PromptMaker
from xtoken_pl.specs import PromptSettings


def slow(*values: Any) -> Any:
    """Gemma's tokenizer takes 20 seconds, and Llama's ten."""
    return pytest.param(*values, marks=pytest.mark.slow)


DATE = {"date_string": "26 Jul 2024"}


def chat_of(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> Conversation:
    source = TextSource(path="x", messages_field="messages", tools_field="tools")
    (read,) = read_documents(source, [messages], [tools])
    assert isinstance(read, Conversation)
    return read


# What a side reads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "given"),
    [(SMOLLM2, PLAIN), (SMOLLM2, RESULT), (QWEN3, PLAIN), (QWEN3, RESULT), slow(LLAMA3, PLAIN), slow(GEMMA3, PLAIN)],
    ids=str,
)
def test_a_prompt_is_what_the_template_writes_with_its_generation_prompt(
    template: RealTemplate, given: dict[str, Any]
) -> None:
    (prompt,) = tokenized_prompts(ChatRenderer(template.vocabulary, "student"), [chat_of(given["messages"])])
    expected = template.tokenizer.apply_chat_template(given["messages"][:-1], add_generation_prompt=True, **DATE)
    assert [*prompt.prefix, *prompt.ids.tolist()] == expected["input_ids"]
    said = [bytes_of(template.vocabulary, prompt.ids[slice(*turn.content)]).decode() for turn in prompt.turns]
    assert said == [message["content"] for message in given["messages"][:-1]]


def test_calls_and_tools_are_a_part_of_a_prompt() -> None:
    (prompt,) = tokenized_prompts(ChatRenderer(QWEN3.vocabulary, "student"), [chat_of(CALL["messages"], CALL["tools"])])
    expected = QWEN3.tokenizer.apply_chat_template(
        CALL["messages"][:-1], tools=CALL["tools"], add_generation_prompt=True, tokenize=False
    )
    assert QWEN3.tokenizer.decode(prompt.ids) == expected
    assert prompt.turns[2].calls is not None


def test_a_prompt_begins_as_the_conversation_with_its_answer_does() -> None:
    space_before_texts = copy.deepcopy(llama2_style())
    space_before_texts.chat_template = LLAMA2
    for tokenizer in (chatml(), llama3_like(), plain(), space_before_texts):
        renderer = ChatRenderer(vocabulary_of(tokenizer), "student")
        chats = [conversation(messages) for messages in CHATS]
        pairs = zip(tokenized_prompts(renderer, chats), renderer.render(chats), strict=True)
        for prompt, whole in pairs:
            start, _ = whole.turns[-1].content
            assert prompt.prefix == whole.prefix
            # These templates have no generation prompt: what they write before an answer takes its place.
            before = whole.ids[:start].tolist()
            is_space = bytes_of(renderer.vocabulary, before[-1:]) == b" "  # which belongs to the answer
            assert prompt.ids.tolist() == before[: len(before) - is_space]


@pytest.mark.parametrize("header", ["", "{% if add_generation_prompt %}{{ ' ' }}{% endif %}"])
def test_a_space_at_the_end_belongs_to_the_answer(header: str) -> None:
    tokenizer = with_tokens(packing_tokenizer(), LLAMA2 + header)
    renderer = ChatRenderer(vocabulary_of(tokenizer), "student")
    chat = conversation(CHATS[0][:2])
    (prompt,), (whole,) = tokenized_prompts(renderer, [chat]), renderer.render([chat])
    start, _ = whole.turns[-1].content
    assert prompt.ids.tolist() == whole.ids[:start].tolist()
    assert not bytes_of(renderer.vocabulary, prompt.ids).endswith(b" ")
    assert bytes_of(renderer.vocabulary, whole.ids[start:]).startswith(b" ")


def test_a_template_that_changes_the_question_is_refused() -> None:
    shouting = with_tokens(packing_tokenizer(), CHATML.replace("m['content'] }}", "m['content'].upper() }}"))
    with pytest.raises(UnrenderableError, match="drops, moves or changes a message"):
        tokenized_prompts(ChatRenderer(vocabulary_of(shouting), "student"), [conversation(CHATS[0][:1])])


# The common cut -------------------------------------------------------------------------------------------------------

LONG = [
    {"role": "system", "content": "Be brief, and use 数字."},
    {"role": "user", "content": "What is 12 + 345? " * 6},
    {"role": "assistant", "content": "It is 357 (naïve 👩‍👧). " * 5},
    {"role": "user", "content": "And why? Let me have it in 12 or 13 words."},
]


def maker(
    student: CanonicalVocabulary, teachers: dict[str, CanonicalVocabulary], length: int, **settings: Any
) -> PromptMaker:
    settings = {"max_new_tokens": 20, **settings}
    return PromptMaker(Windower(student, teachers, length), PromptSettings(**settings))


def said(made: PromptMaker, chat: Conversation, prompt: Window) -> dict[str, bytes]:
    """Contents of the messages in a prompt, by side."""
    found: dict[str, bytes] = {}
    for name, renderer in made.windower.renderers.items():
        (whole,) = tokenized_prompts(renderer, [chat])
        found[name] = b"".join(said_behind(renderer.vocabulary, whole, prompt[prompt_column(name)].tolist()))
    return found


SMALL = {"llama": vocabulary_of(llama3_like()), "plain": vocabulary_of(plain())}


@given(room=st.integers(10, 400))
def test_a_cut_prompt_ends_as_the_whole_does_and_all_sides_are_told_the_same(room: int) -> None:
    made = maker(vocabulary_of(chatml()), SMALL, room + 20)
    chat, reasons = conversation(LONG), list[str]()
    (prompt,) = made.of_chats([chat], reasons)
    if prompt is None:
        assert "must leave room for max_new_tokens=20" in reasons[0]
        return
    sides = {name: prompt[prompt_column(name)].tolist() for name in made.windower.sides}
    read = said(made, chat, prompt)
    assert len({*read.values()}) == 1
    whole = "".join(message["content"].strip() for message in LONG).encode()
    assert whole.endswith(read[""])
    read[""].decode()  # no character is cut
    assert read[""], "something is said"
    (uncut,) = maker(vocabulary_of(chatml()), SMALL, 10_000).of_chats([chat], [])
    assert uncut is not None
    assert uncut[PROMPT].tolist() == [1, 0]
    is_whole = all(ids == uncut[prompt_column(name)].tolist() for name, ids in sides.items())
    assert prompt[PROMPT].tolist() == [1, not is_whole]
    assert max(map(len, sides.values())) <= room


def test_a_prompt_is_cut_no_more_than_it_must_be() -> None:
    student, chat = vocabulary_of(chatml()), conversation(LONG)
    lengths = []
    for room in range(60, 200):
        (prompt,) = maker(student, SMALL, room + 20).of_chats([chat], [])
        assert prompt is not None
        lengths.append(max(len(prompt[column]) for column in prompt if column != PROMPT))
    slack = np.arange(60, 200) - lengths
    assert slack.min() == 0
    assert slack.max() < 12  # the longest stretch without a common token end


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(SMOLLM2, QWEN3), (QWEN3, SMOLLM2), slow(LLAMA3, QWEN3), slow(GEMMA3, LLAMA3)],
    ids=str,
)
def test_prompts_under_real_templates_are_cut_alike(student: RealTemplate, teacher: RealTemplate) -> None:
    chat, num_cut = chat_of(LONG), 0
    for length in range(60, 260, 20):
        made = maker(student.vocabulary, {"t": teacher.vocabulary}, length)
        (prompt,) = made.of_chats([chat], [])
        assert prompt is not None
        assert len({*said(made, chat, prompt).values()}) == 1
        num_cut += prompt[PROMPT][1]
    assert num_cut > 0


# Conversations without a prompt ---------------------------------------------------------------------------------------


def test_conversations_without_a_prompt_are_given_with_a_reason() -> None:
    made, reasons = maker(vocabulary_of(chatml()), SMALL, 400), list[str]()
    answer = [{"role": "assistant", "content": "unasked"}]
    found = made.of_chats([conversation(answer), conversation(LONG), conversation(answer)], reasons)
    assert [prompt is not None for prompt in found] == [False, True, False]
    assert len(reasons) == 2
    assert "ends with a message that is not the assistant's, and the conversation that begins with 'una" in reasons[0]


def test_only_the_answers_behind_the_last_question_are_no_part_of_a_prompt() -> None:
    chat = conversation(CHATS[0])
    longer = copy.deepcopy(CHATS[0][:3]) + [
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    renderer = ChatRenderer(vocabulary_of(chatml()), "student")
    first, second, third = tokenized_prompts(renderer, [chat, conversation(longer), conversation(CHATS[0][:3])])
    assert first.ids.tolist() == second.ids.tolist() == third.ids.tolist()
