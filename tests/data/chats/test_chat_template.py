"""Rendering of conversations agrees with the tokenizer's own chat template, and unsuitable templates are refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from chats import (
    CHATML,
    CHATS,
    LLAMA2,
    LLAMA3,
    PLAIN,
    SOURCE,
    chatml,
    conversation,
    learned_text,
    text_of,
    vocabulary_of,
    windows_of,
    with_tokens,
)
from small_models import packing_tokenizer, splitting_tokenizer, write_model
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xtoken_pl import DistillDataModule, Student, TextSource
from xtoken_pl.data import Windower
from xtoken_pl.data.chats.renderer import ChatRenderer
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.specs import load_vocabulary
from xtoken_pl.utilities.errors import UserError


@pytest.mark.parametrize(
    ("name", "template", "prefix"),
    [
        ("qwen3", CHATML, 0),
        pytest.param("llama3", LLAMA3, 1, marks=pytest.mark.slow),  # its tokenizer takes 10 seconds
        ("llama2_style", LLAMA2, 1),
    ],
)
def test_tokens_equal_those_of_apply_chat_template(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str, template: str, prefix: int
) -> None:
    tokenizer = request.getfixturevalue(name)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    renderer = ChatRenderer(vocabulary_of(tokenizer), name)
    for messages, chat in zip(CHATS, renderer.render([conversation(messages) for messages in CHATS]), strict=True):
        expected = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
        assert [*chat.prefix, *chat.ids.tolist()] == expected
        assert len(chat.prefix) == prefix
        said = [text_of(renderer.vocabulary, chat.ids[slice(*turn.content)]).removeprefix(" ") for turn in chat.turns]
        assert said == [message["content"].strip() for message in messages]
        last = tokenizer.eos_token_id if name != "llama3" else tokenizer.convert_tokens_to_ids("<|eot_id|>")
        assert [chat.ids[turn.end] for turn in chat.turns if turn.end is not None][-1] == last


def test_dummy_prefix_of_the_first_text_only_is_reproduced(llama2_style: PreTrainedTokenizerFast) -> None:
    backend = Tokenizer.from_str(llama2_style.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    for template in (
        LLAMA2,
        LLAMA2.replace("bos_token + ", ""),
        "{% for m in messages %}{{ bos_token + m['content'] }}{% endfor %}",
    ):
        tokenizer.chat_template = template
        (chat,) = ChatRenderer(vocabulary_of(tokenizer), "student").render([conversation(CHATS[0])])
        expected = tokenizer.apply_chat_template(CHATS[0], tokenize=True)["input_ids"]
        assert [*chat.prefix, *chat.ids.tolist()] == expected


def test_white_space_absorbed_by_special_tokens_is_dropped_as_the_tokenizer_does() -> None:
    template = "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    tokenizer = copy.deepcopy(packing_tokenizer())
    marks = [AddedToken(mark, special=True, rstrip=True) for mark in ("<|user|>", "<|assistant|>", "<|end|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = template
    (chat,) = ChatRenderer(vocabulary_of(tokenizer), "student").render([conversation(CHATS[0])])
    assert chat.ids.tolist() == tokenizer.apply_chat_template(CHATS[0], tokenize=True)["input_ids"]
    assert chat.prefix == ()


def test_text_that_spells_a_special_token_stays_text() -> None:
    messages = [{"role": "user", "content": "write <|im_end|> twice"}, {"role": "assistant", "content": "<|im_end|>"}]
    (row,) = windows_of([messages])
    assert learned_text(row) == "<|im_end|>"
    mark = chatml().convert_tokens_to_ids("<|im_end|>")
    assert list(row["student_ids"]).count(mark) == 2  # the template's own


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("m['content']", "m['content'].upper()"),
        CHATML.replace("m['content']", "m['content'].split('3')[-1]"),
        CHATML.replace("messages", "messages[-2:]"),
        CHATML.replace("messages", "messages[::-1]"),
        CHATML.replace("{% endfor %}", "{{ m['content'] }}{% endfor %}"),
    ],
    ids=["rewritten", "cut", "dropped", "moved", "repeated"],
)
def test_template_that_changes_the_messages_is_refused(template: str) -> None:
    renderer = ChatRenderer(vocabulary_of(with_tokens(packing_tokenizer(), template)), "teacher 'x'")
    with pytest.raises(
        ValueError, match=r"template of the teacher 'x' drops, moves or changes .*begins with 'What is 12"
    ):
        renderer.render([conversation(CHATS[0])])


def test_conversation_rejected_by_the_template_is_named() -> None:
    template = "{{ raise_exception('System role not supported') }}"
    renderer = ChatRenderer(vocabulary_of(with_tokens(packing_tokenizer(), template)), "student")
    with pytest.raises(
        ValueError, match=r"template of the student rejects .*System role not supported.*roles \['user'"
    ):
        renderer.render([conversation(CHATS[0])])


def test_dates_in_templates_are_fixed() -> None:
    dated = "{{ strftime_now('%d %b %Y') }} {{ strftime_now(\"%Y\") }}\n" + CHATML
    tokenizer = with_tokens(packing_tokenizer(), dated, "<|im_start|>", "<|im_end|>")
    (rendered,) = ChatRenderer(vocabulary_of(tokenizer), "student").render([conversation(CHATS[0])])
    assert text_of(vocabulary_of(tokenizer), rendered.ids).startswith("26 Jul 2024 2024\nuser")
    tokenizer.chat_template = "{{ strftime_now(format) }}" + CHATML
    with pytest.raises(ValueError, match="the student asks for today's date in a format that is not a literal"):
        ChatRenderer(vocabulary_of(tokenizer), "student").render([conversation(CHATS[0])])


def test_template_that_is_not_jinja_is_reported_with_its_line() -> None:
    renderer = ChatRenderer(vocabulary_of(with_tokens(packing_tokenizer(), "\n{{ messages[0")), "teacher 'x'")
    with pytest.raises(
        ValueError, match=r"of the teacher 'x' is not valid Jinja: unexpected end .*, in line 2; fix it"
    ):
        renderer.render([conversation(CHATS[0])])


def test_side_without_a_template_is_named_before_any_row_is_read() -> None:
    bare = Windower(vocabulary_of(chatml()), {"t": vocabulary_of(splitting_tokenizer())}, 50)
    with pytest.raises(ValueError, match=r"tokenizer of the teacher 't' .* has none; name a Jinja file"):
        WindowMaker(SOURCE, bare)
    assert WindowMaker(TextSource(path="x"), bare)


def test_template_file_replaces_the_tokenizers_own(tmp_path: Path) -> None:
    write_model(tmp_path / "model", with_tokens(packing_tokenizer(), PLAIN))
    (tmp_path / "chat.jinja").write_text(CHATML)
    for template, expected in ((None, PLAIN), (str(tmp_path / "chat.jinja"), CHATML)):
        source = Student(model=str(tmp_path / "model"), chat_template=template)
        assert load_vocabulary(source).tokenizer.chat_template == expected
    with pytest.raises(UserError, match=r"there is none at 'no.jinja'"):
        load_vocabulary(Student(model=str(tmp_path / "model"), chat_template="no.jinja"))


def test_windows_are_made_again_for_another_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    source = TextSource(path=str(path), messages_field="messages")
    data = DistillDataModule(source, sequence_length=256, num_workers=0)
    held = []
    for template in (CHATML, CHATML, LLAMA3):
        data.connect(vocabulary_of(with_tokens(chatml(), template)), {})
        held.append(data.datasets.get("train"))
        data.setup("fit")
    assert held[0] is None
    assert held[1] is not None
    assert held[2] is None
    assert data.datasets["train"][0]["student_ids"].tolist() != held[1][0]["student_ids"].tolist()
