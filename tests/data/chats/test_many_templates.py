"""Random conversations under the templates of many models: what is learned, and how it is aligned."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from itertools import count
from typing import Any

import numpy as np
import pytest
from chats import said_behind, symbols, tokenized_prompts, with_tokens
from real_templates import shipped_template
from real_tokenizers import smollm2
from tool_conversations import TOOLS, call

from xtoken_pl import CanonicalVocabulary, TextSource
from xtoken_pl.batch import PROMPT, prompt_column
from xtoken_pl.data import Windower
from xtoken_pl.data.chats.conversations import Conversation, read_documents
from xtoken_pl.data.chats.rendered import UnrenderableError
from xtoken_pl.data.prompts import PromptMaker
from xtoken_pl.specs import PromptSettings

SOURCE = TextSource(path="x", messages_field="m", tools_field="tools")
TEMPLATES = [
    *("deepseekv3", "gemma4_v5", "glm4moe", "gptoss", "lfm2_v2", "llama3_2", "muse_glimmer", "nemotron_3_nano"),
    *("qwen2_5", "qwen3", "qwen3_5_think", "qwen3_8"),
]
#: What models write around turns, calls and reasoning.
_TAGS = re.compile(r"<\|\w+\|>|<｜[^｜]+｜>|<\|\w+>|<\w+\|>")
AROUND = [
    "",
    "",
    "é",
    "👩\u200d👧",
    '"',
    "\\",
    "\n",
    "{{",
    "</tool_call>",
    "<|im_end|>",
    "\ue0c00\ue0c1",
    "'",
    "</parameter>",
]


@cache
def vocabulary(template: str) -> CanonicalVocabulary:
    text = shipped_template(template)
    return CanonicalVocabulary.from_tokenizer(with_tokens(smollm2(), text, *sorted({*_TAGS.findall(text)})))


def random_chat(chance: random.Random) -> tuple[list[dict[str, Any]], dict[bool, list[str]]]:
    """A conversation, and words that occur once each, by whether the assistant writes them."""
    words: dict[bool, list[str]] = {True: [], False: []}
    numbers = count(chance.randrange(26**3))

    def text(said: bool) -> str:
        number = next(numbers)
        words[said].append("Z" + "".join(chr(97 + number // 26**digit % 26) for digit in range(4)) + "Q")
        return chance.choice(AROUND) + words[said][-1] + chance.choice(AROUND)

    def value() -> Any:
        return chance.choice([None, True, 1e5, 1.0, {text(True): [text(True)]}, text(True), text(True)])

    messages: list[dict[str, Any]] = []
    for _ in range(chance.randint(1, 3)):
        messages.append({"role": "user", "content": text(False)})
        for _ in range(chance.randrange(3)):
            arguments = {text(True): value() for _ in range(chance.randrange(4))}
            called: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call("f", **arguments)]}
            result = {"role": "tool", "name": "f", "content": text(False) if chance.random() < 0.9 else ""}
            messages += [called, result]
            if chance.random() < 0.5:
                called["reasoning_content"] = text(True)
        if chance.random() < 0.8:
            messages.append({"role": "assistant", "content": text(True)})
    return [*messages, {"role": "assistant", "content": text(True)}], words


@pytest.mark.parametrize("student", TEMPLATES)
def test_all_that_the_assistant_writes_is_learned_and_spans_hold_the_same_bytes(student: str) -> None:
    chance, num_read = random.Random(student), 0
    for number in range(24):
        teacher = TEMPLATES[(TEMPLATES.index(student) + number) % len(TEMPLATES)]
        windower = Windower(vocabulary(student), {"t": vocabulary(teacher)}, 9000)
        messages, words = random_chat(chance)
        tools = TOOLS if number % 3 == 0 and "deepseekv3" not in (student, teacher) else None
        given = [m | {"tool_calls": json.dumps(m["tool_calls"])} if "tool_calls" in m else m for m in messages]
        (conversation,) = read_documents(SOURCE, [given], [tools])
        assert isinstance(conversation, Conversation)
        try:
            written, _ = (renderer.write(conversation).text for renderer in windower.renderers.values())
        except UnrenderableError:
            continue
        num_read += 1
        row = {name: np.asarray(values[0]) for name, values in windower([conversation]).items()}
        learned = symbols(windower.student, row["student_ids"][row["loss_mask"] == 1]).decode(errors="replace")
        assert not [word for word in words[False] if word in learned]
        assert not [word for word in words[True] if word in written and word not in learned]
        check_spans(windower, row)
    assert num_read > 4


def check_spans(windower: Windower, row: dict[str, Any]) -> None:
    """Checks that spans follow each other on both sides, are learned as a whole or not at all, and hold one text."""
    spans = row["t/spans"].reshape(-1, 4)
    assert (spans[:, [0, 2]] < spans[:, [1, 3]]).all()
    assert (spans[:-1, [1, 3]] <= spans[1:, [0, 2]]).all()
    for start, end, other_start, other_end in spans:
        assert len({*row["loss_mask"][start:end]}) == 1
        ours = symbols(windower.student, row["student_ids"][start:end])
        theirs = symbols(windower.teachers["t"], row["t/ids"][other_start:other_end])
        assert ours.lstrip(b" ") == theirs.lstrip(b" ")


# Prompts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", TEMPLATES)
def test_prompts_are_what_a_template_writes_before_an_answer_and_are_cut_alike(student: str) -> None:
    chance, num_read, num_cut = random.Random(student), 0, 0
    for number in range(12):
        teacher = TEMPLATES[(TEMPLATES.index(student) + number) % len(TEMPLATES)]
        messages, _ = random_chat(chance)
        tools = TOOLS if number % 3 == 0 and "deepseekv3" not in (student, teacher) else None
        (conversation,) = read_documents(SOURCE, [messages], [tools])
        assert isinstance(conversation, Conversation)
        windower = Windower(vocabulary(student), {"t": vocabulary(teacher)}, 9000)
        renderers = {"": windower.renderers[""], "t": windower.renderers["t"]}
        try:
            whole = {name: tokenized_prompts(renderer, [conversation])[0] for name, renderer in renderers.items()}
            answered = renderers[""].write(conversation).text
        except UnrenderableError:
            continue
        num_read += 1
        prompt = renderers[""].write_prompt(conversation).text
        if "reasoning_content" not in str(messages) and "think" not in prompt[-20:]:
            assert answered.startswith(prompt)
        longest = max(len(chat.prefix) + len(chat.ids) for chat in whole.values())
        room = chance.randint(longest // 2, longest)
        made = PromptMaker(windower, PromptSettings(max_new_tokens=9000 - room))
        (found,) = made.of_chats([conversation], [])
        if found is None:
            continue
        sides = {name: found[prompt_column(name)].tolist() for name in renderers}
        assert max(map(len, sides.values())) <= room
        num_cut += found[PROMPT][1]
        ours, theirs = (said_behind(windower.sides[name], whole[name], ids) for name, ids in sides.items())
        turns = zip(conversation.before_answer.turns, ours, theirs, strict=True)
        assert all(
            our == their for turn, our, their in turns if turn.role != "tool"
        )  # some write those as JSON strings
    assert num_read > 2
    assert num_cut > 0
