"""A student leaves a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.callbacks import ModelCheckpoint
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TextSource
from xtoken_pl.callbacks.hf_export import export_student
from xtoken_pl.cli import main
from xtoken_pl.cli.export import export
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MultiTeacherDistillModule]:
    """The folder of a run with its checkpoint, and the module as training left it."""
    folder = tmp_path_factory.mktemp("run")
    write_model(folder / "student", packing_tokenizer(), tied=True)
    GenerationConfig(max_new_tokens=7, repetition_penalty=1.5).save_pretrained(folder / "student")
    teacher = Teacher(model=write_model(folder / "split", splitting_tokenizer(), seed=1), loss=ProjectionKL())
    (folder / "chat.jinja").write_text("{% for m in messages %}{{ m['content'] }}<|end_of_text|>{% endfor %}")
    student = Student(model=str(folder / "student"), chat_template=str(folder / "chat.jinja"))
    module = MultiTeacherDistillModule(student, {"split": teacher})
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text[:80]}) + "\n" for text in TEXTS[:2]))
    data = DistillDataModule(TextSource(path=str(folder / "texts.jsonl")), sequence_length=64, num_workers=0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="whole")],
    )
    trainer.fit(module, data)
    return folder, module


def assert_is_the_student(folder: Path, module: MultiTeacherDistillModule, dtype: torch.dtype) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert loaded.dtype == dtype
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.generation_config.repetition_penalty == 1.5
    expected = module.student.state_dict()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name].to(dtype), rtol=0, atol=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("12 apples")["input_ids"] == packing_tokenizer()("12 apples")["input_ids"]


def test_one_command_makes_a_folder_of_a_checkpoint(
    run: tuple[Path, MultiTeacherDistillModule], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = run
    main(["export", "--checkpoint", str(folder / "whole.ckpt"), "--output", str(tmp_path / "student")])
    assert "written to" in capsys.readouterr().out
    assert_is_the_student(tmp_path / "student", module, torch.bfloat16)


def test_a_distributed_checkpoint_gives_the_same_folder(
    run: tuple[Path, MultiTeacherDistillModule], tmp_path: Path
) -> None:
    folder, module = run
    state: dict[str, Any] = torch.load(folder / "whole.ckpt", weights_only=True)
    dcp.save({"state_dict": state.pop("state_dict")}, checkpoint_id=tmp_path / "sharded.ckpt")
    torch.save(state, tmp_path / "sharded.ckpt/meta.pt")
    export(str(tmp_path / "sharded.ckpt"), str(tmp_path / "student"), dtype="auto")
    assert_is_the_student(tmp_path / "student", module, torch.float32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sharded.ckpt", "student"]


def test_command_and_callback_write_the_same_files(run: tuple[Path, MultiTeacherDistillModule], tmp_path: Path) -> None:
    folder, module = run
    export_student(module, tmp_path / "callback", dtype="bfloat16")
    export(str(folder / "whole.ckpt"), str(tmp_path / "command"))
    names = sorted(path.name for path in (tmp_path / "callback").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "command").iterdir())
    assert "chat_template.jinja" in names
    for name in names:
        assert (tmp_path / "callback" / name).read_bytes() == (tmp_path / "command" / name).read_bytes(), name


def test_another_tokenizer_than_the_runs_is_refused(
    run: tuple[Path, MultiTeacherDistillModule], tmp_path: Path
) -> None:
    folder, _ = run
    with pytest.raises(ValueError, match=r"has another tokenizer than .*/split.*--student\.model"):
        export(str(folder / "whole.ckpt"), str(tmp_path / "x"), student=Student(model=str(folder / "split")))
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_that_does_not_say_its_student_asks_for_it(
    run: tuple[Path, MultiTeacherDistillModule], tmp_path: Path
) -> None:
    folder, module = run
    state: dict[str, Any] = torch.load(folder / "whole.ckpt", weights_only=True)
    torch.save({"state_dict": state["state_dict"]}, tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match=r"--student\.model"):
        export(str(tmp_path / "bare.ckpt"), str(tmp_path / "x"))
    export(str(tmp_path / "bare.ckpt"), str(tmp_path / "x"), student=Student(model=str(folder / "student")))
    assert_is_the_student(tmp_path / "x", module, torch.bfloat16)


def test_missing_damaged_and_existing_paths_are_refused_before_any_work(
    run: tuple[Path, MultiTeacherDistillModule], tmp_path: Path
) -> None:
    folder, _ = run
    with pytest.raises(UserError, match="there is none at 'nowhere'"):
        export("nowhere", str(tmp_path / "x"))
    (tmp_path / "cut.ckpt").write_bytes((folder / "whole.ckpt").read_bytes()[:-100])
    with pytest.raises(ValueError, match="must be whole"):
        export(str(tmp_path / "cut.ckpt"), str(tmp_path / "x"))
    with pytest.raises(UserError):
        export(str(folder / "whole.ckpt"), str(folder / "student"))
