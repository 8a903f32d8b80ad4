"""Set-up of the module: teachers, weights, and what checkpoints and exports hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import torch
from module_steps import MakeModule, batch_for, step_of
from small_models import packing_tokenizer, write_model
from transformers import AutoModelForCausalLM

from xtoken_pl import MultiTeacherDistillModule, ProjectionKL, Student, Teacher
from xtoken_pl.callbacks.hf_export import export_student
from xtoken_pl.specs import DType


def test_teachers_are_in_no_checkpoint_and_no_optimizer(make: MakeModule) -> None:
    module = make()
    assert all(name.startswith("student.") for name in module.state_dict())
    assert len(module.state_dict()) == len(module.student.state_dict())
    assert {id(p) for p in module.parameters()} == {id(p) for p in module.student.parameters()}
    assert not any(p.requires_grad for p in module.loaded_teachers["split"].model.parameters())


def test_one_specification_serves_two_modules(make: MakeModule) -> None:
    teachers = make(ready=False).teachers
    first, second = make(teachers=teachers), make(teachers=teachers)
    assert first.losses["split"] is not second.losses["split"]
    assert not list(teachers["split"].loss.buffers())


def test_set_up_twice_changes_nothing(make: MakeModule) -> None:
    module = make()
    model, loss = module.student, module.losses["split"]
    module.setup("validate")
    module.configure_model()
    assert module.student is model
    assert module.losses["split"] is loss


def test_random_weights_follow_the_seed(make: MakeModule, student: Student) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return make(student=Student(model=student.model, weights="random")).student.lm_head.weight.detach()

    torch.testing.assert_close(weights(1), weights(1), rtol=0, atol=0)
    assert not torch.equal(weights(1), weights(2))


def test_subclass_fixes_its_teachers_in_code(student: Student, teacher_folder: str) -> None:
    class OneTeacher(MultiTeacherDistillModule):
        def configure_teachers(self) -> dict[str, Teacher]:
            return {"fixed": Teacher(model=teacher_folder, loss=ProjectionKL(), alpha=0.5)}

    module = OneTeacher(student)
    module.setup("fit")
    module.configure_model()
    assert list(step_of(module, batch_for(module))["teacher_kd"]) == ["fixed"]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_export_keeps_tied_embeddings_tied_and_has_the_dtype_asked_for(
    tmp_path: Path, make: MakeModule, dtype: DType
) -> None:
    folder = write_model(tmp_path / "tied", packing_tokenizer(), tied=True)
    module = make(student=Student(model=folder))
    export_student(module, tmp_path / "export", dtype=dtype)
    with safetensors.safe_open(tmp_path / "export/model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (no mapping)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype="auto")
    assert loaded.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    assert module.student.dtype == torch.float32
    torch.testing.assert_close(loaded.lm_head.weight, module.student.lm_head.weight.to(loaded.dtype), rtol=0, atol=0)
