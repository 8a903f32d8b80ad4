"""Conversations, chat templates and tokenizers with chat templates for tests."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

from small_models import TEXTS, packing_tokenizer, splitting_tokenizer
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary, TextSource
from xtoken_pl.data import Windower
from xtoken_pl.data.chats.conversations import Conversation, Turn
from xtoken_pl.data.chats.renderer import ChatRenderer, RenderedChat
from xtoken_pl.data.maker import WindowMaker

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
#: Ends its prompt with a special token, behind which a SentencePiece tokenizer may put a space; and with a space there.
MARKED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPACED = MARKED.replace("'|>' +", "'|> ' +").replace("<|assistant|>", "<|assistant|> ")
PLAIN = "A chat.\n{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"

CHATS = [
    [
        {"role": "user", "content": "What is 12 + 345?"},
        {"role": "assistant", "content": "It is 357.\n\n- 'three', then 57"},
        {"role": "user", "content": "(why?)"},
        {"role": "assistant", "content": "`+` adds é 数字 👩‍👧!"},
    ],
    [{"role": "user", "content": TEXTS[0][:90]}, {"role": "assistant", "content": TEXTS[1][:120]}],
]


def with_tokens(tokenizer: PreTrainedTokenizerFast, template: str | None, *special: str) -> PreTrainedTokenizerFast:
    """Returns a copy with a chat template and additional special tokens."""
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"additional_special_tokens": [AddedToken(token, special=True) for token in special]})
    changed.chat_template = template
    return changed


@cache
def chatml() -> PreTrainedTokenizerFast:
    """Student's tokenizer: bos before texts, none before conversations."""
    return with_tokens(packing_tokenizer(), CHATML, "<|im_start|>", "<|im_end|>")


@cache
def llama3_like() -> PreTrainedTokenizerFast:
    """Teacher's tokenizer: bos before conversations, other marks, trimmed contents, an extra line of text."""
    template = LLAMA3.replace("{{ bos_token }}", "{{ bos_token }}Cutting knowledge: 2023\n")
    tokenizer = packing_tokenizer(600)
    return with_tokens(tokenizer, template, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@cache
def plain() -> PreTrainedTokenizerFast:
    """Tokenizer of a teacher without bos and without special tokens for chats."""
    return with_tokens(splitting_tokenizer(), PLAIN)


def vocabulary_of(tokenizer: PreTrainedTokenizerFast) -> CanonicalVocabulary:
    return CanonicalVocabulary.from_tokenizer(tokenizer)


def conversation(messages: list[dict[str, str]]) -> Conversation:
    return Conversation(tuple(Turn(m["role"], m["content"].strip(), m["role"] == "assistant") for m in messages))


@cache
def windower(length: int = 1000) -> Windower:
    teachers = {"llama": vocabulary_of(llama3_like()), "plain": vocabulary_of(plain())}
    return Windower(vocabulary_of(chatml()), teachers, length)


SOURCE = TextSource(path="x", messages_field="messages")
Rows = list[dict[str, Any]]


def windows_of(
    chats: list[Any], *, source: TextSource = SOURCE, length: int = 1000, given: Windower | None = None
) -> Rows:
    columns = WindowMaker(source, given or windower(length))(chats)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def bytes_of(vocabulary: CanonicalVocabulary, ids: Any) -> bytes:
    return b"".join(vocabulary.token_bytes[token] for token in ids)


def symbols(vocabulary: CanonicalVocabulary, ids: Any) -> bytes:
    """Bytes of tokens, with one byte that no text has for each special token."""
    return b"".join(b"\xff" if vocabulary.is_special[token] else vocabulary.token_bytes[token] for token in ids)


def text_of(vocabulary: CanonicalVocabulary, ids: Any) -> str:
    return bytes_of(vocabulary, ids).decode()


def learned_text(row: dict[str, Any]) -> str:
    return text_of(windower().student, [i for i, m in zip(row["student_ids"], row["loss_mask"], strict=True) if m])


def tokenized_prompts(renderer: ChatRenderer, chats: Sequence[Conversation]) -> list[RenderedChat]:
    return renderer.tokenize([renderer.write_prompt(chat) for chat in chats])


def said_behind(vocabulary: CanonicalVocabulary, whole: RenderedChat, ids: list[int]) -> list[bytes]:
    """Content of each message in a prompt that is cut at its beginning; it must be the end of the whole prompt."""
    first = len(whole.prefix) + len(whole.ids) - len(ids)
    assert tuple(ids[: len(whole.prefix)]) == whole.prefix
    assert ids[len(whole.prefix) :] == whole.ids[first:].tolist()
    contents = (whole.ids[max(first, turn.content[0]) : turn.content[1]] for turn in whole.turns)
    return [symbols(vocabulary, content).removeprefix(b" ") for content in contents]
