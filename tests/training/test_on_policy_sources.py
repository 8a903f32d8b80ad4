"""On-policy steps on conversations and texts of several sources, each with its own teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from chats import CHATS, chatml, llama3_like, plain
from on_policy_runs import Recorder
from small_models import TEXTS, write_model

from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, Rollouts, Student, Teacher, TextSource


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for seed, (name, tokenizer) in enumerate({"student": chatml(), "llama": llama3_like(), "plain": plain()}.items()):
        write_model(folder / name, tokenizer, seed=seed)
    rows: dict[str, list[dict[str, Any]]] = {
        "chats": [{"messages": messages} for messages in CHATS * 6],
        "questions": [{"messages": messages[:-1]} for messages in CHATS * 6],
        "texts": [{"text": text[:90]} for text in TEXTS[:12]],
    }
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    return folder


@pytest.mark.parametrize(("share", "streaming"), [(0.5, False), (1.0, False), (1.0, True)])
def test_teachers_judge_the_rollouts_of_their_own_sources(folder: Path, share: float, streaming: bool) -> None:
    pl.seed_everything(0, verbose=False)
    chats = "questions" if share == 1 else "chats"
    source = {
        "chats": TextSource(
            path=str(folder / f"{chats}.jsonl"), messages_field="messages", teachers=["llama"], weight=1
        ),
        "texts": TextSource(path=str(folder / "texts.jsonl"), teachers=["plain"], weight=1),
    }
    data = DistillDataModule(source, sequence_length=128, batch_size=4, num_workers=0, streaming=streaming)
    teachers = {name: Teacher(model=str(folder / name)) for name in ("llama", "plain")}
    module = MultiTeacherDistillModule(
        Student(model=str(folder / "student")),
        teachers,
        rollouts=Rollouts(share=share, max_new_tokens=8, prompt_bytes=20),
    )
    recorder = Recorder()
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=6,
        callbacks=[recorder],
        **dict.fromkeys(quiet, False),  # type: ignore[arg-type]
    )
    trainer.fit(module, data)

    assert len(recorder.steps) == 6
    assert module.rollouts is not None
    assert [written.step for written in recorder.written] == [
        step for step in range(6) if module.rollouts.is_on_policy(step)
    ]
    assert len(recorder.written) == 6 if share == 1 else 2 <= len(recorder.written) <= 4
    seen = set()
    for written in recorder.written:
        assert len(written.rollouts) == 4
        for prompt, rollout, window in zip(written.prompts, written.rollouts, written.windows, strict=True):
            own = "llama" if prompt.is_chat else "plain"
            assert module.train_domains[prompt.domain].source == ("chats" if prompt.is_chat else "texts")
            assert [name for name in teachers if f"{name}/ids" in window] == [own]
            assert list(window["student_ids"]) == [*prompt.ids[""], *rollout.ids]
            assert list(window[f"{own}/ids"][: len(prompt.ids[own])]) == prompt.ids[own]
            seen.add(own)
    assert seen == set(teachers)
    for step in recorder.steps:
        assert torch.isfinite(step["total"])
        assert float(sum(step["share"].values())) == pytest.approx(1)
