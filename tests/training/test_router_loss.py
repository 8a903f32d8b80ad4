"""A mixture of experts also learns to use its experts equally, by the loss that its own class defines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from architectures import BALANCED, write_architecture
from module_steps import batch_for, step_of
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer
from torch import Tensor

from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, Rollouts, Student, Teacher, TextSource
from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks import TeacherMonitor
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


@pytest.mark.slow
@pytest.mark.parametrize("name", BALANCED)
def test_compiled_layers_have_the_same_loss_and_gradient(tmp_path: Path, name: str) -> None:
    both = []
    for is_compiled in (False, True):
        module = module_of(tmp_path, name, router_aux_loss_coef=COEFFICIENT, compile=is_compiled)
        step = seeded_step(module, batch_for(module))
        step["loss"].backward()
        both.append((step["router_loss"], gradients(module)))
    torch.testing.assert_close(both[1][0], both[0][0])
    largest = max(float(gradient.abs().max()) for gradient in both[0][1].values())
    assert both[1][1].keys() == both[0][1].keys()
    for key, gradient in both[0][1].items():
        assert float((both[1][1][key] - gradient).abs().max()) < 1e-5 * largest, key


def test_routers_that_report_nothing_are_an_error(tmp_path: Path) -> None:
    module = module_of(tmp_path, router_aux_loss_coef=COEFFICIENT)
    assert module.router_loss is not None
    body = module.student.model
    body.register_forward_hook(lambda _, __, output: setattr(output, "router_logits", output.router_logits[:1]))
    body._forward_hooks.move_to_end(next(reversed(body._forward_hooks)), last=False)  # before that of the loss
    with pytest.raises(
        UserError, match=r"must report its logits, but 1 of 2 did; leave out student\.router_aux_loss_coef, or"
    ):
        step_of(module, batch_for(module))


def test_a_step_on_the_students_own_text_is_balanced_too(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "student", "qwen3_moe", packing_tokenizer(), seed=1, scale=1.0)
    teacher = write_architecture(tmp_path / "teacher", "llama", splitting_tokenizer(), seed=2)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text[:60]}) + "\n" for text in TEXTS[:4]))
    student = Student(model=path, router_aux_loss_coef=COEFFICIENT)
    rollouts = Rollouts(share=1.0, max_new_tokens=8, prompt_bytes=16)
    module = MultiTeacherDistillModule(student, {"t": Teacher(model=teacher)}, rollouts=rollouts)
    data = DistillDataModule(TextSource(path=str(tmp_path / "texts.jsonl")), sequence_length=48, batch_size=4)
    seen: list[dict[str, Any]] = []
    watch = pl.Callback()
    watch.on_train_batch_end = lambda trainer, module, outputs, *_: seen.append(outputs)  # type: ignore[method-assign]
    options = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        callbacks=[TeacherMonitor(), watch],
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(module, data)
    [outputs] = seen
    assert outputs["is_rollout"]
    expected = outputs["kd_scale"] * outputs["kd"] + outputs["router_loss"]
    torch.testing.assert_close(outputs["total"], expected)
    assert outputs["router_loss"] > 0.1
    assert float(trainer.callback_metrics["rollouts/router_loss"]) == pytest.approx(float(outputs["router_loss"]))


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
