"""A mixture of experts also learns to use its experts equally, by the loss that its own class defines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import BALANCED, write_architecture
from module_steps import batch_for, step_of
from small_models import packing_tokenizer, splitting_tokenizer
from torch import Tensor

from xtoken_pl import MultiTeacherDistillModule, Student, Teacher
from xtoken_pl.batch import DistillBatch
from xtoken_pl.utilities.errors import UserError

COEFFICIENT = 0.3


def module_of(folder: Path, name: str = "qwen3_moe", **student: Any) -> MultiTeacherDistillModule:
    path = write_architecture(folder / "student", name, packing_tokenizer(), seed=1, scale=1.0)
    teacher = write_architecture(folder / "teacher", "llama", splitting_tokenizer(), seed=2)
    module = MultiTeacherDistillModule(Student(model=path, **student), {"t": Teacher(model=teacher)})
    module.setup("fit")
    module.configure_model()
    return module


def gradients(module: MultiTeacherDistillModule) -> dict[str, Tensor]:
    found = {name: weight.grad.clone() for name, weight in module.student.named_parameters() if weight.grad is not None}
    module.zero_grad()
    return found


def seeded_step(module: MultiTeacherDistillModule, batch: DistillBatch) -> dict[str, Any]:
    torch.manual_seed(0)  # Phi's routers are random while they learn
    return step_of(module, batch)


def own_loss(module: MultiTeacherDistillModule, batch: DistillBatch) -> Tensor:
    tokens, model = batch.student, module.student
    torch.manual_seed(0)
    output: Any = model(tokens.input_ids, attention_mask=tokens.attention_mask, output_router_logits=True)
    return output.aux_loss


@pytest.mark.parametrize("name", BALANCED)
def test_a_step_adds_the_models_own_loss_and_its_gradient(tmp_path: Path, name: str) -> None:
    plain = module_of(tmp_path, name)
    batch = batch_for(plain)
    without = seeded_step(plain, batch)
    (without["loss"] + COEFFICIENT * own_loss(plain, batch)).backward()
    expected = gradients(plain)
    module = module_of(tmp_path, name, router_aux_loss_coef=COEFFICIENT)
    step = seeded_step(module, batch)
    step["loss"].backward()
    found = gradients(module)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)
    assert step["router_loss"] > 0.1
    torch.testing.assert_close(step["router_loss"], COEFFICIENT * own_loss(plain, batch).detach())
    torch.testing.assert_close(step["total"], without["total"] + step["router_loss"])
    torch.testing.assert_close(step["loss"].detach(), step["total"])


def test_layers_that_run_again_in_the_backward_pass_have_the_same_gradient(tmp_path: Path) -> None:
    both = []
    for again in (False, True):
        module = module_of(tmp_path, router_aux_loss_coef=COEFFICIENT, activation_checkpointing=again)
        step_of(module, batch_for(module))["loss"].backward()
        both.append(gradients(module))
    for key, gradient in both[0].items():
        torch.testing.assert_close(both[1][key], gradient)


def test_passes_without_gradients_keep_no_logits(tmp_path: Path) -> None:
    module = module_of(tmp_path, router_aux_loss_coef=COEFFICIENT)
    batch = batch_for(module)
    with torch.no_grad():
        module.score(batch)
    module.eval()
    module.score(batch)
    assert module.router_loss is not None
    assert module.router_loss._logits == ()


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "doge"])
def test_a_model_without_such_a_loss_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"has a load balancing loss, but the student's .*For.* has none; leave out"):
        module_of(tmp_path, name, router_aux_loss_coef=COEFFICIENT)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_coefficient_is_a_number_from_0(value: float) -> None:
    with pytest.raises(UserError, match="router_aux_loss_coef must be a finite number >= 0"):
        Student(model="m", router_aux_loss_coef=value)
