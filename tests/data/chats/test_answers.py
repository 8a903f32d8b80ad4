"""How chat templates surround an answer, read from the templates themselves."""

from __future__ import annotations

import json
from typing import Any

import pytest
import real_tokenizers
from chats import LLAMA2, MARKED, SPACED, chatml, llama3_like, plain, with_tokens
from real_templates import GEMMA3, LLAMA3, QWEN3, SMOLLM2, RealTemplate, shipped_template
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.data.chats.answers import AnswerFormat
from xtoken_pl.data.chats.rendered import UnrenderableError
from xtoken_pl.data.chats.renderer import ChatRenderer


def format_of(tokenizer: PreTrainedTokenizerFast) -> AnswerFormat:
    return ChatRenderer(CanonicalVocabulary.from_tokenizer(tokenizer), "student").answer_format


def small(template: str) -> PreTrainedTokenizerFast:
    """A SentencePiece tokenizer that puts a space before every stretch of text."""
    return with_tokens(real_tokenizers.llama2_style(), template, "<|system|>", "<|user|>", "<|assistant|>")


def first_only(template: str) -> PreTrainedTokenizerFast:
    """The same, but with a space before the first stretch alone."""
    tokenizer = small(template)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["normalizer"] = None
    state["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    changed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>", eos_token="</s>"
    )
    changed.chat_template = template
    return changed


def slow(template: RealTemplate) -> Any:
    """Gemma's tokenizer takes 20 seconds, and Llama's ten."""
    return pytest.param(template, marks=pytest.mark.slow)


@pytest.mark.parametrize("template", [SMOLLM2, QWEN3, slow(LLAMA3), slow(GEMMA3)], ids=str)
def test_real_templates_end_an_answer_with_one_token_and_put_no_space_before_it(template: RealTemplate) -> None:
    end = template.tokenizer.convert_tokens_to_ids(template.end)
    assert format_of(template.tokenizer) == AnswerFormat("", False, (end,))
    assert format_of(template.tokenizer).stop_id == end


@pytest.mark.parametrize(
    ("make", "lead", "is_first", "end"),
    [
        (chatml, "", False, ["<|im_end|>"]),
        (llama3_like, "", False, ["<|eot_id|>"]),
        (plain, " ", False, []),
        (lambda: small(LLAMA2), " ", False, ["▁", "</s>"]),
        (lambda: small(MARKED), "", True, ["</s>"]),
        (lambda: small(SPACED), " ", True, ["</s>"]),
        (lambda: first_only(MARKED), "", False, ["</s>"]),
    ],
    ids=["chatml", "llama3_like", "plain", "llama2", "space added", "two spaces", "space added at the start alone"],
)
def test_spaces_before_an_answer_and_tokens_behind_it(make: Any, lead: str, is_first: bool, end: list[str]) -> None:
    found, tokenizer = format_of(make()), make()
    assert (found.lead, found.is_first) == (lead, is_first)
    assert tokenizer.convert_ids_to_tokens(found.end_ids) == end
    assert found.stop_id == (found.end_ids[-1] if end else None)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("cohere", "<|END_OF_TURN_TOKEN|>"),
        ("gemma", "<end_of_turn>"),  # strips contents
        ("glm4moe", "<|user|>"),  # ends an answer only where a message follows
        ("gptoss", "<|return|>"),
        ("llama3_1", "<|eot_id|>"),  # writes a message of the system by itself
        ("phi3", "<|end|>"),
        ("qwen3_5_think", "<|im_end|>"),  # begins the reasoning in its prompt
    ],
)
def test_shipped_templates_end_an_answer_with_one_token_and_put_no_space_before_it(name: str, end: str) -> None:
    special = ["<|im_start|>", "<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<start_of_turn>", "<|start|>", end]
    special += ["<|assistant|>", "<|message|>", "<|channel|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer = with_tokens(real_tokenizers.smollm2(), shipped_template(name), *dict.fromkeys(special))
    end_id = tokenizer.convert_tokens_to_ids(end)
    assert format_of(tokenizer) == AnswerFormat("", False, (end_id,))
    assert format_of(tokenizer).stop_id == end_id


NEEDS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}" + MARKED


def test_a_template_may_need_a_message_of_the_system() -> None:
    assert format_of(small(NEEDS_SYSTEM)) == format_of(small(MARKED))


def test_a_template_that_rejects_the_example_is_refused_with_its_reason() -> None:
    with pytest.raises(UnrenderableError, match=r"template of the student rejects the messages \(never\)"):
        format_of(small("{{ raise_exception('never') }}"))


def test_a_text_is_ended_by_eos_if_there_is_one() -> None:
    side = CanonicalVocabulary.from_tokenizer(real_tokenizers.llama2_style())
    assert AnswerFormat.for_text(side) == AnswerFormat("", False, (2,))
    assert AnswerFormat.for_text(side).stop_id == 2
    without = with_tokens(real_tokenizers.llama2_style(), None)
    without.eos_token = None
    assert AnswerFormat.for_text(CanonicalVocabulary.from_tokenizer(without)) == AnswerFormat()
    assert AnswerFormat().stop_id is None
