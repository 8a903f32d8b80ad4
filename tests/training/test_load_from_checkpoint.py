"""A module is loaded from a checkpoint as any of Lightning: with the arguments of its class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl import DistillDataModule, LoRA, MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TextSource


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loaded")
    write_model(folder / "student", packing_tokenizer(), seed=1)
    write_model(folder / "split", splitting_tokenizer(), seed=2)
    lines = [json.dumps({"text": text[:200]}) + "\n" for text in TEXTS[:3]]
    (folder / "texts.jsonl").write_text("".join(lines))
    return folder


def arguments_of(folder: Path, adapter: LoRA | None) -> dict[str, Any]:
    teacher = Teacher(model=str(folder / "split"), loss=ProjectionKL(), learn_projection=True)
    return {"student": Student(model=str(folder / "student"), adapter=adapter), "teachers": {"split": teacher}}


def trained(folder: Path, path: Path, adapter: LoRA | None) -> tuple[MultiTeacherDistillModule, Any]:
    """A module after two steps, stored at ``path``, and a batch."""
    module = MultiTeacherDistillModule(**arguments_of(folder, adapter))
    data = DistillDataModule(
        TextSource(path=str(folder / "texts.jsonl")), sequence_length=64, batch_size=2, num_workers=0
    )
    options: Any = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(accelerator="cpu", max_steps=2, **options)
    trainer.fit(module, data)
    trainer.save_checkpoint(path)
    return module, next(iter(data.train_dataloader()))


@pytest.mark.parametrize("adapter", [None, LoRA(rank=2)], ids=["all weights", "adapter"])
def test_a_loaded_module_is_the_one_that_was_stored(folder: Path, tmp_path: Path, adapter: LoRA | None) -> None:
    """Its student, its learned W, and what it makes of a batch."""
    stored, batch = trained(folder, tmp_path / "run.ckpt", adapter)
    loaded = MultiTeacherDistillModule.load_from_checkpoint(tmp_path / "run.ckpt", **arguments_of(folder, adapter))
    assert loaded.state_dict().keys() == stored.state_dict().keys()
    for name, tensor in stored.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    fresh = MultiTeacherDistillModule(**arguments_of(folder, adapter))
    fresh.configure_model()
    ours, theirs, before = (module.eval().score(batch).spans["split"].loss for module in (loaded, stored, fresh))
    torch.testing.assert_close(ours, theirs)
    assert (theirs - before).abs().max() > 1e-4  # it has learned something


def test_specifications_are_not_stored_and_must_be_given(folder: Path, tmp_path: Path) -> None:
    trained(folder, tmp_path / "run.ckpt", None)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'student'"):
        MultiTeacherDistillModule.load_from_checkpoint(tmp_path / "run.ckpt")


def test_another_teacher_than_the_stored_one_is_refused(folder: Path, tmp_path: Path) -> None:
    trained(folder, tmp_path / "run.ckpt", None)
    arguments = arguments_of(folder, None)
    arguments["teachers"] = {"other": arguments["teachers"]["split"]}
    with pytest.raises(ValueError, match="learned projection of teacher 'other'"):
        MultiTeacherDistillModule.load_from_checkpoint(tmp_path / "run.ckpt", **arguments)
