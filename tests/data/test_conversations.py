"""Conversations: every side's own template, contents aligned, and a gradient from what the assistant says alone."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl import (
    GOLD,
    ULD,
    BytePrefixKL,
    CanonicalVocabulary,
    DistillDataModule,
    HybridKL,
    MultiTeacherDistillModule,
    ProjectionKL,
    SpanLoss,
    Student,
    Teacher,
    TextSource,
    TokenKL,
)
from xtoken_pl.cli import main
from xtoken_pl.data import Windower, collate
from xtoken_pl.data.chat_template import ChatRenderer
from xtoken_pl.data.conversations import Conversation, Turn, read_documents
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.models import hidden_states
from xtoken_pl.specs import load_vocabulary
from xtoken_pl.utilities.errors import UserError

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
    """A copy with a chat template and further special tokens."""
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"additional_special_tokens": [AddedToken(token, special=True) for token in special]})
    changed.chat_template = template
    return changed


@cache
def chatml() -> PreTrainedTokenizerFast:
    """Of the student: bos before texts, none before conversations."""
    return with_tokens(packing_tokenizer(), CHATML, "<|im_start|>", "<|im_end|>")


@cache
def llama3_like() -> PreTrainedTokenizerFast:
    """Of a teacher: bos before conversations, other marks, trimmed contents, a text that the student does not have."""
    template = LLAMA3.replace("{{ bos_token }}", "{{ bos_token }}Cutting knowledge: 2023\n")
    tokenizer = packing_tokenizer(600)
    return with_tokens(tokenizer, template, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@cache
def plain() -> PreTrainedTokenizerFast:
    """Of a teacher without special tokens for chats, and without bos."""
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


def text_of(vocabulary: CanonicalVocabulary, ids: Any) -> str:
    return bytes_of(vocabulary, ids).decode()


def learned_text(row: dict[str, Any]) -> str:
    return text_of(windower().student, [i for i, m in zip(row["student_ids"], row["loss_mask"], strict=True) if m])


# Templates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "template", "prefix"),
    [
        ("qwen3", CHATML, 0),
        pytest.param("llama3", LLAMA3, 1, marks=pytest.mark.slow),  # 10 seconds for its tokenizer
        ("llama2_style", LLAMA2, 1),
    ],
)
def test_tokens_are_those_of_the_chat_template(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str, template: str, prefix: int
) -> None:
    tokenizer = request.getfixturevalue(name)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    renderer = ChatRenderer(vocabulary_of(tokenizer), name)
    for messages, chat in zip(CHATS, renderer.render([conversation(messages) for messages in CHATS]), strict=True):
        expected = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
        assert [*chat.prefix, *chat.ids.tolist()] == expected
        assert len(chat.prefix) == prefix
        said = [text_of(renderer.vocabulary, chat.ids[low:high]).removeprefix(" ") for low, high in chat.contents]
        assert said == [message["content"].strip() for message in messages]
        last = tokenizer.eos_token_id if name != "llama3" else tokenizer.convert_tokens_to_ids("<|eot_id|>")
        assert [chat.ids[end] for end in chat.turn_ends if end is not None][-1] == last


def test_a_space_before_the_first_text_alone_is_written_there_alone(llama2_style: PreTrainedTokenizerFast) -> None:
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


def test_white_space_that_a_special_token_takes_along_is_left_out_as_the_tokenizer_does() -> None:
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
def test_a_template_that_does_not_write_what_is_said_is_refused(template: str) -> None:
    renderer = ChatRenderer(vocabulary_of(with_tokens(packing_tokenizer(), template)), "teacher 'x'")
    with pytest.raises(ValueError, match=r"of the teacher 'x' drops, moves or changes .*begins with 'What is 12"):
        renderer.render([conversation(CHATS[0])])


def test_a_conversation_that_a_template_refuses_is_named() -> None:
    template = "{{ raise_exception('System role not supported') }}"
    renderer = ChatRenderer(vocabulary_of(with_tokens(packing_tokenizer(), template)), "student")
    with pytest.raises(
        ValueError, match=r"template of the student refuses .*roles \['user'.*System role not supported"
    ):
        renderer.render([conversation(CHATS[0])])


def test_a_template_that_writes_the_date_writes_the_same_one_every_day() -> None:
    dated = "{{ strftime_now('%d %b %Y') }} {{ strftime_now(\"%Y\") }}\n" + CHATML
    tokenizer = with_tokens(packing_tokenizer(), dated, "<|im_start|>", "<|im_end|>")
    (rendered,) = ChatRenderer(vocabulary_of(tokenizer), "student").render([conversation(CHATS[0])])
    assert text_of(vocabulary_of(tokenizer), rendered.ids).startswith("26 Jul 2024 2024\nuser")
    tokenizer.chat_template = "{{ strftime_now(format) }}" + CHATML
    with pytest.raises(ValueError, match="the student asks for the date in a format that is not a literal"):
        ChatRenderer(vocabulary_of(tokenizer), "student").render([conversation(CHATS[0])])


def test_a_template_that_is_none_is_named_with_its_line() -> None:
    renderer = ChatRenderer(vocabulary_of(with_tokens(packing_tokenizer(), "\n{{ messages[0")), "teacher 'x'")
    with pytest.raises(
        ValueError, match=r"of the teacher 'x' is no Jinja template: unexpected end .*, in line 2; mend it"
    ):
        renderer.render([conversation(CHATS[0])])


def test_a_side_without_a_template_is_named_before_a_row_is_read() -> None:
    bare = Windower(vocabulary_of(chatml()), {"t": vocabulary_of(splitting_tokenizer())}, 50)
    with pytest.raises(ValueError, match=r"tokenizer of the teacher 't' .* has none; name a Jinja file"):
        WindowMaker(SOURCE, bare)
    assert WindowMaker(TextSource(path="x"), bare)


def test_a_template_of_a_file_takes_the_place_of_the_tokenizers_own(tmp_path: Path) -> None:
    write_model(tmp_path / "model", with_tokens(packing_tokenizer(), PLAIN))
    (tmp_path / "chat.jinja").write_text(CHATML)
    for template, expected in ((None, PLAIN), (str(tmp_path / "chat.jinja"), CHATML)):
        source = Student(model=str(tmp_path / "model"), chat_template=template)
        assert load_vocabulary(source).tokenizer.chat_template == expected
    with pytest.raises(UserError, match=r"there is none at 'no.jinja'"):
        load_vocabulary(Student(model=str(tmp_path / "model"), chat_template="no.jinja"))


# Windows ------------------------------------------------------------------------------------------------------------


def test_only_what_the_assistant_says_is_learned_and_only_contents_are_aligned() -> None:
    for row, messages in zip(windows_of(CHATS), CHATS, strict=True):
        contents = [m["content"].strip() for m in messages]
        assert learned_text(row) == "".join(contents[1::2])
        for name, teacher in windower().teachers.items():
            spans = np.asarray(row[f"{name}/spans"]).reshape(-1, 4)
            aligned = [bytes_of(windower().student, row["student_ids"][a:b]) for a, b, _, _ in spans]
            assert b"".join(aligned).decode() == "".join(contents)
            for text, (_, _, c, d) in zip(aligned, spans, strict=True):
                assert bytes_of(teacher, row[f"{name}/ids"][c:d]) in (text, b" " + text)  # the template's space


def test_a_side_has_one_bos_where_its_template_writes_it_and_none_else() -> None:
    rows = windows_of(CHATS, length=80)
    assert len(rows) > 2
    for row in rows:
        bos = chatml().bos_token_id
        assert bos not in row["student_ids"]
        assert [token for token in row["llama/ids"] if token == llama3_like().bos_token_id] == [row["llama/ids"][0]]


def test_long_conversations_are_cut_where_all_sides_end_a_token(caplog: pytest.LogCaptureFixture) -> None:
    long = [{"role": "user", "content": TEXTS[2][:600]}, {"role": "assistant", "content": TEXTS[1][:600]}]
    with caplog.at_level(logging.WARNING):
        rows = windows_of([long], length=64)
    assert "".join(map(learned_text, rows)) == TEXTS[1][:600].strip()
    assert "windows of conversations that are longer than sequence_length=64 hold nothing to learn" in caplog.text
    assert all(any(row["loss_mask"]) for row in rows)
    assert max(len(row[column]) for row in rows for column in ("student_ids", "llama/ids", "plain/ids")) <= 64


def test_the_end_of_a_turn_is_learned_where_it_is_asked_for() -> None:
    end, other_end = chatml().convert_tokens_to_ids("<|im_end|>"), llama3_like().convert_tokens_to_ids("<|eot_id|>")
    source = TextSource(path="x", messages_field="messages", learn_turn_end=True)
    for row, plain_row in zip(windows_of(CHATS, source=source), windows_of(CHATS), strict=True):
        more = np.flatnonzero(np.asarray(row["loss_mask"]) != np.asarray(plain_row["loss_mask"]))
        assert {row["student_ids"][place] for place in more} == {end}
        assert all(plain_row["loss_mask"][place - 1] for place in more)
        spans = np.asarray(row["llama/spans"]).reshape(-1, 4)
        ends = [[row["llama/ids"][c], d - c] for a, b, c, d in spans if a in more and b - a == 1]
        assert ends == [[other_end, 1]] * len(more)
        assert row["plain/spans"].tolist() == plain_row["plain/spans"].tolist()  # no such token there


def test_a_turn_end_that_the_students_template_does_not_write_is_refused() -> None:
    source = TextSource(path="x", messages_field="messages", learn_turn_end=True)
    given = Windower(vocabulary_of(plain()), {}, 1000)
    with pytest.raises(ValueError, match="template of the student writes none in the conversation that begins with"):
        windows_of(CHATS, source=source, given=given)


def test_conversations_in_which_the_assistant_says_nothing_are_left_out_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    silent = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": " \n"}]
    with caplog.at_level(logging.WARNING):
        rows = windows_of([silent, CHATS[0], silent])
    assert len(rows) == 1
    assert "2 conversations in which the assistant says nothing are left out" in caplog.text


def test_prompts_and_completions_are_the_turns_of_a_user_and_the_assistant() -> None:
    source = TextSource(path="x", prompt_field="p", completion_field="c")
    user, assistant = CHATS[1]
    expected = windows_of([CHATS[1]])
    for prompt, completion in ((user["content"], assistant["content"]), ([user], [assistant])):
        columns = WindowMaker(source, windower())([prompt], [completion])
        for name, values in columns.items():
            assert np.array_equal(values[0], expected[0][name])
    # What an assistant says in a prompt is not learned.
    columns = WindowMaker(source, windower())([CHATS[0][:3]], [CHATS[0][3:]])
    row = {name: values[0] for name, values in columns.items()}
    assert learned_text(row) == CHATS[0][3]["content"]


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt_field": "p"}, "set completion_field, too, or leave prompt_field out"),
        ({"completion_field": "c"}, "set prompt_field, too, or leave completion_field out"),
        (
            {"messages_field": "m", "prompt_field": "p", "completion_field": "c"},
            "leave messages_field out, or prompt_field and completion_field",
        ),
        ({"messages_field": "m", "text_field": "body"}, "leave text_field out, or the fields of conversations"),
        ({"learn_turn_end": True}, "learn_turn_end needs conversations"),
    ],
)
def test_fields_of_several_kinds_are_refused(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        TextSource(path="x", **fields)


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (None, "messages must hold a list of at least one message {role, content}, got None"),
        ([], r"at least one message {role, content}, got \[\]"),
        ("hello", "got str"),
        (["hello"], "must have a role and a content, got str"),
        ([{"from": "human", "value": "a"}], r"got the keys \['from', 'value'\]"),
        ([USER], r"role 'assistant' to learn from, got the roles \['user'\]"),
        ([USER, {"role": "assistant", "content": None}], "must be strings, got str and NoneType"),
        ([{"role": "user", "content": [{"type": "image"}]}, ASSISTANT], "must be a string, got a list of 1 parts"),
        ([USER, ASSISTANT | {"tool_calls": [{"name": "f"}]}], "one of messages has tool_calls, too"),
    ],
)
def test_rows_that_hold_no_conversation_are_refused_with_their_place(row: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected + ".* at place 1 of 2"):
        read_documents(SOURCE, [[USER, ASSISTANT | {"tool_calls": None}], row])


def test_a_missing_field_is_named_with_the_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": CHATS[0]}) + "\n")
    source = TextSource(path=str(tmp_path / "a.jsonl"), prompt_field="messages", completion_field="answer")
    data = DistillDataModule(source)
    data.connect(vocabulary_of(chatml()), {})
    with pytest.raises(ValueError, match=r"completion_field must be a column of the data, got 'answer'; .*messages"):
        data.setup("fit")


# What stays ---------------------------------------------------------------------------------------------------------


def test_what_was_stored_of_texts_stays_valid() -> None:
    ours = windower()
    teachers = {name: teacher.fingerprint for name, teacher in ours.teachers.items()}
    described = json.dumps([1, ours.student.fingerprint, teachers, ours.sequence_length])
    expected = hashlib.sha256(described.encode()).hexdigest()[:32]
    texts = TextSource(path="x")
    assert ours.fingerprint == WindowMaker(texts, ours).fingerprint == expected
    others = [WindowMaker(texts, ours, "joined"), WindowMaker(texts, ours, "separate"), WindowMaker(SOURCE, ours)]
    others += [WindowMaker(TextSource(path="x", messages_field="m", learn_turn_end=True), ours)]
    others += [WindowMaker(TextSource(path="x", prompt_field="p", completion_field="c"), ours)]
    assert len({expected, *(maker.fingerprint for maker in others)}) == 6
    # The identity of a stream holds this.
    shown = "TextSource(path='x', name=None, data_files=None, split='train', text_field='text', revision=None"
    assert str(texts) == shown + ")"
    assert str(SOURCE) == shown + ", messages_field='messages')"


def test_another_template_gives_other_windows() -> None:
    other = with_tokens(chatml(), CHATML.replace("{% for", "Hello.{% for"))
    changed = Windower(vocabulary_of(other), windower().teachers, 1000)
    assert changed.fingerprint == windower().fingerprint
    assert changed.chat_fingerprint != windower().chat_fingerprint


# The gradient -------------------------------------------------------------------------------------------------------

LOSSES: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], SpanLoss]] = {
    "projection": (plain, ProjectionKL()),
    "hybrid": (llama3_like, HybridKL()),
    "gold": (plain, GOLD()),
    "uld": (llama3_like, ULD()),
    "byte_prefix": (plain, BytePrefixKL()),
    "token": (chatml, TokenKL()),
}


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> MultiTeacherDistillModule:
    root = tmp_path_factory.mktemp("models")
    student = Student(model=write_model(root / "student", chatml(), seed=1))
    teachers = {
        name: Teacher(model=write_model(root / name, make(), seed=2), loss=loss)
        for name, (make, loss) in LOSSES.items()
    }
    made = MultiTeacherDistillModule(student, teachers)
    made.setup("fit")
    made.configure_model()
    return made


def test_prompt_and_template_tokens_receive_no_gradient(
    module: MultiTeacherDistillModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the mask that transformers makes of the template's own ``generation`` block."""
    seen: list[Tensor] = []

    def watched(*arguments: Any) -> Tensor:
        states = hidden_states(*arguments)
        states.retain_grad()
        seen.append(states)
        return states

    monkeypatch.setattr("xtoken_pl.training.module.hidden_states", watched)
    given = Windower(module.student_vocabulary, module.teacher_vocabularies, 1000)
    batch = collate(windows_of(CHATS, given=given), list(module.teachers), module.planners())
    scores = module.score(batch)
    (states,) = seen
    predicts = torch.zeros(states.shape[:2], dtype=torch.bool)  # [B, T] whether the next token is to be learned
    for index, messages in enumerate(CHATS):
        chat = chatml().apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert batch.student.input_ids[index, : len(chat["input_ids"])].tolist() == chat["input_ids"]
        mask = torch.tensor(chat["assistant_masks"], dtype=torch.bool)
        predicts[index, : len(mask) - 1] = mask[1:]
    assert 0 < predicts.sum() < 0.7 * batch.student.attention_mask.sum()
    for name, loss in {"ce": scores.token_nats, **{name: spans.loss for name, spans in scores.spans.items()}}.items():
        states.grad = None
        loss.sum().backward(retain_graph=True)
        assert states.grad is not None
        largest = states.grad.abs().amax(-1)  # [B, T]
        assert not largest[~predicts].any(), name
        # The rank distance of one row may be flat: it does not change where all ranks but one lie on the same side.
        of_learned = largest[predicts].max() if name == "uld" else largest[predicts].min()
        assert of_learned > 1e-3, name


# The documentation and the command line -------------------------------------------------------------------------------


def documented(name: str) -> str:
    page = (Path(__file__).parents[2] / "docs/chat-data.md").read_text()
    found = re.search(rf'title="{name}"\n(.*?)```', page, flags=re.DOTALL)
    assert found
    return found[1]


def test_the_documented_files_do_what_is_said_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chat.yaml").write_text(documented("chat.yaml"))
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(SystemExit):
        main(["fit", "--config", "configs/quickstart.yaml", "--config", str(tmp_path / "chat.yaml"), "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["init_args"]["train"]["messages_field"] == "messages"
    assert config["data"]["init_args"]["packing"] == "separate"
    assert config["model"]["init_args"]["student"]["chat_template"] == "chatml.jinja"
    rendered = [
        with_tokens(packing_tokenizer(), template).apply_chat_template(CHATS[0], tokenize=False)
        for template in (documented("chatml.jinja"), CHATML)
    ]
    assert rendered[0] == rendered[1]


@pytest.mark.parametrize("packing", ["none", "separate"])
def test_fit_learns_from_conversations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "student", with_tokens(packing_tokenizer(), None, "<|im_start|>", "<|im_end|>"), seed=1)
    write_model(tmp_path / "teacher", plain(), seed=2)
    (tmp_path / "chatml.jinja").write_text(CHATML)
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in CHATS * 2))
    chats = {"path": "chats.jsonl", "messages_field": "messages", "learn_turn_end": True}
    config = {
        "model": {
            "student": {"model": "student", "chat_template": "chatml.jinja"},
            "teachers": {"plain": {"model": "teacher", "loss": {"class_path": "xtoken_pl.ProjectionKL"}}},
        },
        "data": {"train": chats, "val": chats, "sequence_length": 300, "batch_size": 1, "num_workers": 0},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "xtoken_pl.callbacks.HFExport", "init_args": {"dirpath": "exported"}}],
        },
    }
    (tmp_path / "chats.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "chats.yaml", "--data.packing", packing])
    exported = PreTrainedTokenizerFast.from_pretrained(tmp_path / "exported")
    assert exported.chat_template == CHATML
