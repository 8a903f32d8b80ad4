"""NaN or infinite losses, gradients and weights stop a run before a checkpoint is written."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from module_steps import MakeModule, batch_for, step_of
from small_models import splitting_tokenizer, write_model
from transformers import AutoModelForCausalLM

from xtoken_pl import MultiTeacherDistillModule, ProjectionKL, Teacher
from xtoken_pl.utilities.errors import UserError


def spoil(module: MultiTeacherDistillModule, token: int) -> None:
    """Makes a teacher's logits no numbers wherever it has read a token."""
    with torch.no_grad():
        module.loaded_teachers["split"].model.get_input_embeddings().weight[token] = torch.nan


def test_a_teacher_whose_logits_are_no_numbers_stops_the_run_by_name(make: MakeModule) -> None:
    module = make()
    batch = batch_for(module)
    step_of(module, batch)
    step_of(module, batch)  # the step before was finite
    spoil(module, int(batch.teachers["split"].tokens.labels[0]))
    step_of(module, batch)
    with pytest.raises(UserError, match=r"teacher 'split''s loss was not at step 0.*--ckpt_path last"):
        step_of(module, batch)


def test_losses_that_are_no_numbers_are_stored_in_no_checkpoint(make: MakeModule) -> None:
    module = make()
    batch = batch_for(module)
    spoil(module, int(batch.teachers["split"].tokens.labels[0]))
    step_of(module, batch)
    for _ in range(2):  # whoever asks, and as often as they ask
        with pytest.raises(UserError, match="teacher 'split'"):
            module.on_save_checkpoint({"state_dict": {}})


def test_a_student_that_diverged_is_told_from_a_teacher(make: MakeModule) -> None:
    module = make()
    batch = batch_for(module)
    with torch.no_grad():
        module.student.lm_head.weight[0] = torch.inf
    step_of(module, batch)
    with pytest.raises(UserError, match="the student's cross-entropy was not"):
        step_of(module, batch)


def test_a_gradient_that_is_no_number_stops_the_run_before_it_is_stored(tmp_path: Path, make: MakeModule) -> None:
    """Its step had a finite loss, and its weights are none from then on."""
    module = make()
    batch = batch_for(module)

    class Spoil(pl.Callback):
        def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.global_step == 2:
                module.student.lm_head.weight.grad[0, 0] = torch.inf  # type: ignore[index]

    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=5,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Spoil(), ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")],
    )
    with pytest.raises(UserError, match="the student's gradient was not at step 2"):
        trainer.fit(module, torch.utils.data.DataLoader([batch] * 5, batch_size=None))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt"]


def test_weights_that_are_no_numbers_are_refused_when_they_are_loaded(tmp_path: Path, make: MakeModule) -> None:
    folder = write_model(tmp_path / "broken", splitting_tokenizer(), seed=2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"the teacher 'split' must be numbers, .*: model\.norm\.weight"):
        make(teachers={"split": Teacher(model=folder, loss=ProjectionKL())})
