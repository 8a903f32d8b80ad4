"""The on-policy recipe with two teachers trains as it is, with small models in place of the hub's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from chats import CHATS, with_tokens
from configurations import ROOT, SMALL_TRAINER, command_of
from logged import scalars
from small_models import packing_tokenizer, reversing_tokenizer, splitting_tokenizer, write_model
from transformers import PreTrainedTokenizerFast

from xtoken_pl.cli import main

RECIPE = ROOT / "configs/paper/llama1b_on_policy_from_qwen4b_phi4mini.yaml"
TEACHERS = ("qwen", "phi")


def stand_in(tokenizer: PreTrainedTokenizerFast, before: str, after: str, end: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose template writes a role between two marks, and a mark at the end of a turn."""
    template = (
        f"{{% for m in messages %}}{{{{ '{before}' + m['role'] + '{after}' + m['content'] + '{end}' }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{before}assistant{after}' }}}}{{% endif %}}"
    )
    return with_tokens(
        tokenizer, template, *dict.fromkeys(mark.strip() for mark in (before, after, end) if mark.strip())
    )


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with stand-ins at the hub's names, conversations, and the configurations."""
    monkeypatch.chdir(tmp_path)
    stand_ins = {
        "meta-llama/Llama-3.2-1B-Instruct": stand_in(packing_tokenizer(), "<|header|>", "<|/header|>", "<|eot_id|>"),
        "Qwen/Qwen3-4B-Instruct-2507": stand_in(splitting_tokenizer(), "<|im_start|>", "\\n", "<|im_end|>"),
        "microsoft/Phi-4-mini-instruct": stand_in(reversing_tokenizer(), "<|role|>", "<|text|>", "<|end|>"),
    }
    for seed, (name, tokenizer) in enumerate(stand_ins.items()):
        write_model(tmp_path / name, tokenizer, seed=seed, scale=1.0)
    rows = [{"messages": messages} for messages in CHATS * 4]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def train(small: dict[str, Any]) -> dict[str, list[float]]:
    Path("small.yaml").write_text(yaml.safe_dump(small))
    main([*command_of(RECIPE), "--config", "small.yaml"])
    return scalars(next(Path("runs").rglob("version_0")))


def test_recipe_writes_and_learns_from_both_teachers_in_every_step(inside: Path) -> None:
    source = {"path": "chats.jsonl", "split": "train"}
    small = {
        "model": {"rollouts": {"init_args": {"max_new_tokens": 24}}},
        "data": {"train": source, "val": source, "sequence_length": 160, "num_workers": 0},
        "trainer": {**SMALL_TRAINER, "accumulate_grad_batches": 2, "val_check_interval": 4},
    }
    tags = train(small)
    assert not any(tag.startswith("train/") for tag in tags)  # no step learns the data
    expected = ["rollouts/loss", "rollouts/kd", "rollouts/length", "rollouts/ended", "rollouts/student_nats_per_byte"]
    of_teachers = ("kd", "alpha", "span_coverage", "teacher_nats_per_byte")
    expected += [f"rollouts/{tag}/{name}" for name in TEACHERS for tag in of_teachers]
    for tag in expected:
        assert len(tags[tag]) == 2, tag
        assert all(math.isfinite(value) for value in tags[tag]), tag
    assert all(0 < length <= 24 for length in tags["rollouts/length"])
    assert all(tags[f"rollouts/alpha/{name}"] == pytest.approx([0.5, 0.5]) for name in TEACHERS)
    # Texts of random tokens end within characters, which the teachers cannot read.
    assert all(coverage > 0.5 for name in TEACHERS for coverage in tags[f"rollouts/span_coverage/{name}"])
    half = [sum(tags[f"rollouts/kd/{name}"][step] for name in TEACHERS) / 2 for step in range(2)]
    assert tags["rollouts/loss"] == pytest.approx(half, rel=1e-5)  # neither scaled nor with a cross-entropy
    assert {"val/bits_per_byte", *(f"val/kd/{name}" for name in TEACHERS)} <= tags.keys()
