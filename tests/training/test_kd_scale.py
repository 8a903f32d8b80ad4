"""DynamicLossScaling sets the factor of the distillation loss."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from module_steps import MakeModule, batch_for, step_of

from xtoken_pl import GOLD, MultiTeacherDistillModule, Teacher
from xtoken_pl.callbacks import DynamicLossScaling
from xtoken_pl.data import whole_steps
from xtoken_pl.utilities.errors import UserError


def test_dynamic_scaling_gives_the_gradient_of_a_constant_factor(make: MakeModule) -> None:
    module = make()
    batch = batch_for(module)
    module.kd_scale = DynamicLossScaling.scale
    step = step_of(module, batch)
    step["loss"].backward()
    dynamic = [p.grad.clone() for p in module.student.parameters() if p.grad is not None]
    ratio = (step["ce"] / step["kd"]).item()
    torch.testing.assert_close(step["kd_scale"] * step["kd"], step["ce"])
    torch.testing.assert_close(step["loss"].detach(), 2 * step["ce"])

    fixed = make(kd_weight=ratio)
    step_of(fixed, batch)["loss"].backward()
    constant = [p.grad for p in fixed.student.parameters() if p.grad is not None]
    for ours, theirs in zip(dynamic, constant, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_dynamic_scale_expects_the_rest_of_a_step_to_be_like_the_step_before(make: MakeModule) -> None:
    module = make()
    module.kd_scale = DynamicLossScaling.scale
    before = step_of(module, batch_for(module))
    # A step of two batches: nothing of its second one is known to the first.
    first, second = whole_steps([batch_for(module, 1), batch_for(module, 2, length=20)], [2])
    known = len(first.student.labels) / first.step_counts.num_tokens
    step = step_of(module, first)
    ce, kd = (step[key] + (1 - known) * before[key] for key in ("ce", "kd"))
    torch.testing.assert_close(step["kd_scale"], ce / kd)
    step = step_of(module, second)
    torch.testing.assert_close(step["kd_scale"], step["ce"] / step["kd"])

    new = make()
    new.kd_scale = DynamicLossScaling.scale
    step = step_of(new, first)
    torch.testing.assert_close(step["kd_scale"], step["ce"] / step["kd"])


def test_dynamic_scale_of_no_distillation_loss_is_zero() -> None:
    assert DynamicLossScaling.scale(torch.tensor(2.0), torch.tensor(0.0)) == 0
    assert DynamicLossScaling.scale(torch.tensor(2.0), torch.tensor(0.5)) == 4


def test_dynamic_scaling_of_a_loss_that_can_be_negative_is_refused(make: MakeModule) -> None:
    def module(loss: GOLD) -> MultiTeacherDistillModule:
        return make(ready=False, teachers={"split": Teacher(model="x", loss=loss)})

    with pytest.raises(ValueError, match=r"can be negative \(GOLD: .*uld_weight=0.5\).*uld_weight >= kl_weight"):
        DynamicLossScaling().check_module(module(GOLD(uld_weight=0.5)))
    DynamicLossScaling().check_module(module(GOLD(uld_weight=0.0, divergence="jensen_shannon")))
    DynamicLossScaling().check_module(module(GOLD(kl_weight=0.5)))


def test_dynamic_scaling_beside_fixed_weights_is_refused(make: MakeModule) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        DynamicLossScaling().setup(pl.Trainer(logger=False), make(ready=False, kd_weight=0.5), "fit")


def test_dynamic_scaling_on_another_module_is_refused() -> None:
    with pytest.raises(UserError, match="works with MultiTeacherDistillModule"):
        DynamicLossScaling().setup(pl.Trainer(logger=False), pl.LightningModule(), "fit")


def test_dynamic_scaling_is_taken_back_at_teardown(make: MakeModule) -> None:
    module, callback, trainer = make(ready=False), DynamicLossScaling(), pl.Trainer(logger=False)
    before = module.kd_scale
    callback.setup(trainer, module, "fit")
    assert module.kd_scale is not before
    callback.teardown(trainer, module, "fit")
    assert module.kd_scale == before
