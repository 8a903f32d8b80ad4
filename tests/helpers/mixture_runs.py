"""Runs on a mixture of texts, conversations and tool calls, with a teacher for each domain."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from chats import with_tokens
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from tool_conversations import call
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl import DistillDataModule, TextSource
from xtoken_pl.cli import main
from xtoken_pl.utilities.lightning_internals import is_accumulating

#: Writes tools, reasoning and calls as Qwen's template does, but every message's reasoning.
CHATML_TOOLS = """
{%- if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.reasoning_content %}{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
{{- m.content or '' }}
{%- for c in m.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' }}{{ c.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
"""  # noqa: E501
#: Another form for the same: no special tokens, other marks, no reasoning.
MARKED_TOOLS = """
{%- for tool in tools or [] %}{{ 'Tool: ' }}{{ tool | tojson }}{{ '\\n' }}{% endfor %}
{%- for m in messages %}
{{- '### ' + m.role + '\\n' }}{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}{{ '\\ncall ' + c.function.name + ' with ' }}{{ c.function.arguments | tojson }}{% endfor %}
{{- '\\n' }}
{%- endfor %}
"""  # noqa: E501

LENGTH = 300
#: Teachers of each source.
TEACHING = {"texts": {"split"}, "chats": {"same"}, "tools": {"same"}}


@cache
def student_tokenizer() -> PreTrainedTokenizerFast:
    return with_tokens(packing_tokenizer(), CHATML_TOOLS.strip(), "<|im_start|>", "<|im_end|>")


# Files ----------------------------------------------------------------------------------------------------------------


def write_models(root: Path) -> None:
    """``student``; ``dropping``, the same with dropout; ``split``, of another tokenizer; ``same``, of the student's."""
    write_model(root / "student", student_tokenizer(), seed=1, hidden_size=64)
    shutil.copytree(root / "student", root / "dropping")
    config = json.loads((root / "student/config.json").read_text())
    (root / "dropping/config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
    write_model(root / "split", with_tokens(splitting_tokenizer(), MARKED_TOOLS.strip()), seed=2)
    write_model(root / "same", student_tokenizer(), seed=3)


def write_sources(root: Path, num: int) -> None:
    """``texts.jsonl`` of twice ``num`` texts, and ``chats.jsonl`` and ``tools.jsonl`` of ``num`` conversations.

    Every one of them is a window.
    """
    chance = random.Random(0)
    add = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}
    texts = [{"text": TEXTS[index % 40][: chance.randint(40, 160)]} for index in range(2 * num)]
    chats, tools = [], []
    for index in range(num):
        a, b = chance.randint(10, 999), chance.randint(10, 999)
        question = {"role": "user", "content": f"What is {a} + {b}?"}
        said = {"role": "assistant", "content": f"{a} + {b} is {a + b}. {TEXTS[index % 40][:60]}"}
        called = {"role": "assistant", "content": "", "tool_calls": [call("add", a=a, b=b)]}
        returned = {"role": "tool", "content": f"the sum is {a + b}"}
        thought = {"role": "assistant", "reasoning_content": f"It says {a + b}.", "content": f"{a + b}, says the tool"}
        chats.append({"messages": [question, said]})
        tools.append(
            {"messages": [question, called, returned, thought], "tools": [{"type": "function", "function": add}]}
        )
    for name, rows in {"texts": texts, "chats": chats, "tools": tools}.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


SOURCES: dict[str, dict[str, Any]] = {
    "texts": {"path": "texts.jsonl", "teachers": ["split"]},
    "chats": {"path": "chats.jsonl", "messages_field": "messages", "learn_turn_end": True, "teachers": ["same"]},
    "tools": {
        "path": "tools.jsonl",
        "messages_field": "messages",
        "tools_field": "tools",
        "alphas": {"same": 0.5, "split": 0.0},
    },
}
#: One teacher has half of the windows.
WEIGHTS = {"texts": 2.0, "chats": 1.0, "tools": 1.0}


def train_sources() -> dict[str, dict[str, Any]]:
    return {name: {**deepcopy(source), "weight": WEIGHTS[name]} for name, source in SOURCES.items()}


CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "model": {
        "student": {"model": "student"},
        "teachers": {
            "split": {"model": "split", "loss": "xtoken_pl.ProjectionKL", "learn_projection": True},
            "same": {"model": "same", "loss": "xtoken_pl.TokenKL"},
        },
        "optimizer": {"learning_rate": 1e-3, "warmup_fraction": 0.0},
    },
    "data": {
        "train": train_sources(),
        "val": deepcopy(SOURCES),
        "sequence_length": LENGTH,
        "batch_size": 4,
        "num_workers": 0,
    },
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 2,
        "val_check_interval": 3,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": "runs", "name": "whole"},
        },
        "callbacks": [
            {"class_path": "xtoken_pl.callbacks.DynamicLossScaling"},
            {"class_path": "xtoken_pl.callbacks.TeacherMonitor"},
            {"class_path": "xtoken_pl.callbacks.AlignmentMonitor"},
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"every_n_train_steps": 2, "save_top_k": -1},
            },
        ],
    },
}


def write_workspace(root: Path) -> Path:
    """Models, sources and ``config.yaml``: epochs of 24 windows, which are six batches."""
    write_models(root)
    write_sources(root, num=6)
    (root / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return root


# Runs -----------------------------------------------------------------------------------------------------------------


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def train(workspace: Path, name: str, *arguments: str, config: str = "config.yaml") -> Path:
    """Trains in this process; returns the folder of the logs."""
    with inside(workspace):
        main(["fit", "--config", config, "--trainer.logger.init_args.name", name, *arguments])
    return workspace / f"runs/{name}/version_0"


def assert_same_scalars(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert found.keys() == expected.keys()
    for tag, values in expected.items():
        assert found[tag] == pytest.approx(values, rel=1e-5, abs=1e-6, nan_ok=True), tag


def sources_of(root: Path) -> dict[str, TextSource]:
    return {
        name: TextSource(**{**source, "path": str(root / source["path"])}) for name, source in train_sources().items()
    }


def data_of(root: Path, batch_size: int, *, sources: Any = None, **options: Any) -> DistillDataModule:
    given = sources or sources_of(root)
    return DistillDataModule(
        given, sequence_length=LENGTH, batch_size=batch_size, num_workers=0, **{"seed": 3, **options}
    )


@dataclass(eq=False)
class Recorder(pl.Callback):
    """Losses and gradients of every optimizer step, windows by source, and what every teacher read."""

    steps: list[dict[str, Tensor]] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    windows: list[Counter[str]] = field(default_factory=list)  # of every batch, by source
    num_runs: Counter[str] = field(default_factory=Counter)
    num_read: Counter[str] = field(default_factory=Counter)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        for name, teacher in pl_module.loaded_teachers.items():
            teacher.run = self._counting(name, teacher.run)

    def _counting(self, name: str, run: Any) -> Any:
        def counted(input_ids: Tensor, *arguments: Any) -> Any:
            self.num_runs[name] += 1
            self.num_read[name] += len(input_ids)
            return run(input_ids, *arguments)

        return counted

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        data: DistillDataModule = trainer.datamodule
        self.windows.append(Counter(data.domains["train"][index].source for index in batch.domain.tolist()))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.gradients.append({name: p.grad.detach().clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if not is_accumulating(trainer):
            self.steps.append({tag: value.clone() for tag, value in trainer.callback_metrics.items()})


def total(counts: list[Counter[str]]) -> Counter[str]:
    return sum(counts, Counter())


def expected_runs(batches: list[Counter[str]], teaching: Mapping[str, set[str]]) -> Counter[str]:
    """How many batches have a window of every teacher."""
    return Counter(
        teacher
        for windows in batches
        for teacher in set().union(*(teaching[source] for source in windows if windows[source]))
    )


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, equal_nan=True)
