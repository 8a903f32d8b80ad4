"""Training on conversations: only what the assistant says has a gradient, and the documented files work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from chats import CHATML, CHATS, chatml, llama3_like, plain, text_of, vocabulary_of, windows_of, with_tokens
from module_steps import watch_hidden_states
from small_models import packing_tokenizer, write_model
from transformers import PreTrainedTokenizerFast

from xtoken_pl import (
    GOLD,
    ULD,
    BytePrefixKL,
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
from xtoken_pl.data.maker import WindowMaker

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
    """Compares with the mask that transformers derives from the template's ``generation`` block."""
    seen = watch_hidden_states(monkeypatch)
    given = Windower(module.student_vocabulary, module.teacher_vocabularies, 1000)
    batch = collate(windows_of(CHATS, given=given), list(module.teachers), module.planners())
    scores = module.score(batch)
    (states,) = seen
    predicts = torch.zeros(states.shape[:2], dtype=torch.bool)  # [B, T], whether the next token is learned
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


DOCUMENTATION = (Path(__file__).parents[3] / "docs/chat-data.md").read_text()


def documented(name: str) -> str:
    found = re.search(rf'title="{name}"\n(.*?)```', DOCUMENTATION, flags=re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def print_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], dict[str, Any]]:
    """A function that parses a documented configuration, merged into the quickstart's."""

    def parsed(name: str) -> dict[str, Any]:
        (tmp_path / name).write_text(documented(name))
        monkeypatch.chdir(Path(__file__).parents[3])
        with pytest.raises(SystemExit):
            main(["fit", "--config", "configs/quickstart.yaml", "--config", str(tmp_path / name), "--print_config"])
        return cast(dict[str, Any], yaml.safe_load(capsys.readouterr().out))

    return parsed


def test_documented_configuration_and_template_work_as_described(print_config: Callable[[str], dict[str, Any]]) -> None:
    config = print_config("chat.yaml")
    assert config["data"]["init_args"]["train"]["messages_field"] == "messages"
    assert config["data"]["init_args"]["packing"] == "separate"
    assert config["model"]["init_args"]["student"]["chat_template"] == "chatml.jinja"
    rendered = [
        with_tokens(packing_tokenizer(), template).apply_chat_template(CHATS[0], tokenize=False)
        for template in (documented("chatml.jinja"), CHATML)
    ]
    assert rendered[0] == rendered[1]


def test_documented_tools_and_reasoning_work_as_described(print_config: Callable[[str], dict[str, Any]]) -> None:
    config = print_config("tools.yaml")
    assert config["data"]["init_args"]["train"]["tools_field"] == "tools"
    assert config["model"]["init_args"]["teachers"]["smollm2"]["chat_template"] == "tools.jinja"
    row = json.loads(re.findall(r'\n(\{"tools": .*\})\n', DOCUMENTATION)[0])
    tokenizer = with_tokens(packing_tokenizer(), documented("tools.jinja"), "<|im_start|>", "<|im_end|>")
    source = TextSource(path="x", messages_field="messages", tools_field="tools")
    columns = WindowMaker(source, Windower(vocabulary_of(tokenizer), {}, 1000))([row["messages"]], [row["tools"]])
    learned = [i for i, m in zip(columns["student_ids"][0], columns["loss_mask"][0], strict=True) if m]
    assert text_of(vocabulary_of(tokenizer), learned) == (
        '<think>\nI need the weather.\n</think>\n\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": "Oslo"}}\n</tool_call>Yes, it is -4 degrees.'
    )


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
