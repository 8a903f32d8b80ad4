"""The loss of a training step: its parts, teachers, masks and spans."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from module_steps import MakeModule, batch_for, step_of
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl import MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TokenKL, build_projection
from xtoken_pl.callbacks import DynamicLossScaling
from xtoken_pl.data import Windower, collate, whole_steps


def test_loss_is_the_weighted_sum_of_its_parts(make: MakeModule) -> None:
    module = make(ce_weight=0.5, kd_weight=2.0)
    step = step_of(module, batch_for(module))
    torch.testing.assert_close(step["loss"].detach(), 0.5 * step["ce"] + 2.0 * step["kd"])
    torch.testing.assert_close(step["total"], step["loss"].detach())
    assert step["kd_scale"] == 2.0


def test_distillation_loss_is_the_alpha_weighted_sum_over_teachers(make: MakeModule, student: Student) -> None:
    same = Teacher(model=student.model, loss=TokenKL(), alpha=0.25)
    other = Teacher(model=make(ready=False).teachers["split"].model, loss=ProjectionKL(), alpha=0.75)
    module = make(teachers={"same": same, "other": other})
    step = step_of(module, batch_for(module))
    torch.testing.assert_close(step["kd"], 0.25 * step["teacher_kd"]["same"] + 0.75 * step["teacher_kd"]["other"])


def test_student_that_equals_its_teacher_has_no_distillation_loss(make: MakeModule, student: Student) -> None:
    module = make(teachers={"itself": Teacher(model=student.model, loss=TokenKL())})
    assert step_of(module, batch_for(module))["kd"].abs() < 1e-6


def test_logged_scalars_are_detached(make: MakeModule) -> None:
    module = make()
    step = step_of(module, batch_for(module))
    tensors = [value for key, value in step.items() if key != "loss" and isinstance(value, torch.Tensor)]
    tensors += [value for entry in step.values() if isinstance(entry, dict) for value in entry.values()]
    assert len(tensors) == 8
    assert not any(tensor.requires_grad for tensor in tensors)


def test_batch_without_a_span_has_a_zero_distillation_loss_with_a_gradient_and_warns(make: MakeModule) -> None:
    module = make()
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([TEXTS[0][:60]])
    row = {key: column[0] for key, column in columns.items()} | {"split/spans": []}
    for scale in (module.fixed_kd_scale, DynamicLossScaling.scale):
        module.kd_scale = scale
        module.zero_grad()
        with pytest.warns(UserWarning, match="no span in common with teacher 'split'"):
            step = step_of(module, collate([row], ["split"]))
        step["loss"].backward()
        assert step["kd"] == 0
        assert torch.isfinite(step["loss"])
        assert all(torch.isfinite(p.grad).all() for p in module.student.parameters() if p.grad is not None)


def test_batch_without_any_row_has_a_zero_loss_with_a_gradient(make: MakeModule) -> None:
    module = make()
    row = {"student_ids": [0, 5], "loss_mask": [0, 0], "split/ids": [4, 5], "split/spans": []}
    with pytest.warns(UserWarning, match="no span"):
        step = step_of(module, collate([row], ["split"]))
    step["loss"].backward()
    assert step["loss"] == 0
    assert all((p.grad == 0).all() for p in module.student.parameters() if p.grad is not None)


def test_masked_tokens_take_part_in_neither_loss(make: MakeModule) -> None:
    module = make()
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([TEXTS[0][:200]])
    row = {key: column[0] for key, column in columns.items()}
    num_masked = 8
    masked = row | {"loss_mask": [0] * num_masked + list(row["loss_mask"])[num_masked:]}
    batch = collate([masked], ["split"])
    assert batch.student.labels.tolist() == row["student_ids"][num_masked:]
    kept = [span for span in row["split/spans"].reshape(-1, 4) if span[0] >= num_masked]
    spans = batch.teachers["split"].spans
    assert 0 < len(kept) < len(row["split/spans"]) // 4
    assert spans.student_first.tolist() == [span[0] - num_masked for span in kept]


def test_a_step_without_its_first_batch_is_not_learned(make: MakeModule) -> None:
    module = make()
    _, second = whole_steps([batch_for(module, 1), batch_for(module, 2)], [2])
    with pytest.raises(AssertionError, match="batch 2 of a step came without the first one"):
        step_of(module, second)


def test_equal_processes_have_the_means_of_one_though_a_reduction_overwrites_its_input(make: MakeModule) -> None:
    one, two = make(), make()
    two._sum_over_processes = lambda values: values.mul_(2)  # type: ignore[method-assign]
    for batch in whole_steps([batch_for(one, 1), batch_for(one, 2, length=20), batch_for(one, 1)], [3]):
        expected, found = step_of(one, batch), step_of(two, batch)
        del expected["loss"], found["loss"]
        torch.testing.assert_close(found, expected)


def test_padded_head_rows_have_no_influence(tmp_path: Path, make: MakeModule, student: Student) -> None:
    plain = make()
    padded_student = Student(
        model=write_model(tmp_path, packing_tokenizer(), seed=1, num_head_rows=len(packing_tokenizer()) + 20)
    )
    padded = make(student=padded_student)
    size = len(packing_tokenizer())
    state = padded.student.state_dict()
    for name, tensor in plain.student.state_dict().items():
        state[name][: len(tensor)].copy_(tensor) if tensor.ndim == 2 else state[name].copy_(tensor)
    state["lm_head.weight"][size:] = 1e3
    batch = batch_for(plain)
    torch.testing.assert_close(step_of(padded, batch)["loss"], step_of(plain, batch)["loss"])


def test_stored_projection_gives_the_same_loss(tmp_path: Path, make: MakeModule, teacher_folder: str) -> None:
    path = tmp_path / "w.safetensors"
    build_projection(packing_tokenizer(), splitting_tokenizer()).save(path)
    stored = make(teachers={"split": Teacher(model=teacher_folder, loss=ProjectionKL(), projection=str(path))})
    built = make()
    batch = batch_for(built)
    torch.testing.assert_close(step_of(stored, batch)["loss"], step_of(built, batch)["loss"], rtol=0, atol=0)


def test_alphas_of_zero_are_no_matter_on_cross_entropy_alone(make: MakeModule) -> None:
    off = {"split": Teacher(model=make(ready=False).teachers["split"].model, alpha=0.0)}
    module = make(teachers=off, kd_weight=0.0)
    step = step_of(module, batch_for(module))
    assert step["total"] == step["ce"]


# Teachers that nothing is learned from ------------------------------------------------------------------------------


def passes_of(module: MultiTeacherDistillModule, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the teachers that run from now on."""
    ran: list[str] = []
    rows = module.teacher_rows
    monkeypatch.setattr(module, "teacher_rows", lambda name, view: ran.append(name) or rows(name, view))
    return ran


def test_without_a_distillation_weight_teachers_run_for_validation_alone(
    make: MakeModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, distilling = make(kd_weight=0.0), make()
    ran, batch = passes_of(module, monkeypatch), batch_for(module)
    step = step_of(module.train(), batch)
    assert ran == []
    assert step["teacher_kd"] == step["alpha"] == {}
    torch.testing.assert_close(step["total"], step_of(distilling, batch)["ce"])
    assert module.eval().score(batch).spans.keys() == {"split"}
    assert ran == ["split"]


def test_the_gradient_without_a_distillation_weight_is_that_of_the_cross_entropy(make: MakeModule) -> None:
    module, without = make(kd_weight=0.0), make(kd_weight=0.0, teachers={})
    batch = batch_for(module)
    step_of(module.train(), batch)["loss"].backward()
    step_of(without.train(), batch.only([]))["loss"].backward()
    for ours, theirs in zip(module.student.parameters(), without.student.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_scale_of_a_callback_needs_the_teachers_even_without_a_fixed_weight(
    make: MakeModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(kd_weight=0.0)
    ran = passes_of(module, monkeypatch)
    module.kd_scale = lambda ce, kd: torch.full_like(kd, 0.5)
    step_of(module.train(), batch_for(module))
    assert ran == ["split"]


def test_a_learned_projection_that_is_not_used_has_a_gradient_of_zero(make: MakeModule, teacher_folder: str) -> None:
    """DDP waits for the gradient of every parameter."""
    teacher = Teacher(model=teacher_folder, loss=ProjectionKL(), learn_projection=True)
    module = make(kd_weight=0.0, teachers={"split": teacher})
    step_of(module.train(), batch_for(module))["loss"].backward()
    gradients = [parameter.grad for parameter in module.losses.parameters()]
    assert gradients
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
