"""The module's step, its set-up checks, and what it keeps out of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import safetensors
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from xtoken_pl import (
    GOLD,
    MultiTeacherDistillModule,
    OptimizerRecipe,
    ProjectionKL,
    StaticWeighting,
    Student,
    Teacher,
    TokenKL,
    build_projection,
)
from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks import DynamicLossScaling
from xtoken_pl.callbacks.hf_export import export_student
from xtoken_pl.data import Windower, collate
from xtoken_pl.specs import DType
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return Student(model=write_model(tmp_path_factory.mktemp("student"), packing_tokenizer(), seed=1))


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("teacher"), splitting_tokenizer(), seed=2)


MakeModule = Callable[..., MultiTeacherDistillModule]


@pytest.fixture
def make(student: Student, teacher_folder: str) -> MakeModule:
    def make(*, ready: bool = True, **options: Any) -> MultiTeacherDistillModule:
        options.setdefault("teachers", {"split": Teacher(model=teacher_folder, loss=ProjectionKL())})
        module = MultiTeacherDistillModule(options.pop("student", student), **options)
        if ready:
            module.setup("fit")
            module.configure_model()
        return module

    return make


def batch_for(module: MultiTeacherDistillModule, num: int = 3, length: int = 40) -> DistillBatch:
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, length)([TEXTS[0][:400]])
    rows = [{key: column[index] for key, column in columns.items()} for index in range(num)]
    return collate(rows, list(module.teachers))


def step_of(module: MultiTeacherDistillModule, batch: DistillBatch) -> dict[str, Any]:
    return cast(dict[str, Any], module.training_step(batch, 0))


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


def test_dynamic_scale_of_no_distillation_loss_is_zero() -> None:
    assert DynamicLossScaling.scale(torch.tensor(2.0), torch.tensor(0.0)) == 0
    assert DynamicLossScaling.scale(torch.tensor(2.0), torch.tensor(0.5)) == 4


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


def test_stored_projection_gives_the_same_loss(tmp_path: Path, make: MakeModule, teacher_folder: str) -> None:
    path = tmp_path / "w.safetensors"
    build_projection(packing_tokenizer(), splitting_tokenizer()).save(path)
    stored = make(teachers={"split": Teacher(model=teacher_folder, loss=ProjectionKL(), projection=str(path))})
    built = make()
    batch = batch_for(built)
    torch.testing.assert_close(step_of(stored, batch)["loss"], step_of(built, batch)["loss"], rtol=0, atol=0)


def test_bfloat16_teacher_is_close_to_the_full_one(make: MakeModule, teacher_folder: str) -> None:
    half = make(teachers={"split": Teacher(model=teacher_folder, loss=ProjectionKL(), dtype="bfloat16")})
    full = make()
    batch = batch_for(full)
    assert half.loaded_teachers["split"].model.dtype == torch.bfloat16
    torch.testing.assert_close(step_of(half, batch)["kd"], step_of(full, batch)["kd"], rtol=0.05, atol=0)


def test_subclass_fixes_its_teachers_in_code(student: Student, teacher_folder: str) -> None:
    class OneTeacher(MultiTeacherDistillModule):
        def configure_teachers(self) -> dict[str, Teacher]:
            return {"fixed": Teacher(model=teacher_folder, loss=ProjectionKL(), alpha=0.5)}

    module = OneTeacher(student)
    module.setup("fit")
    module.configure_model()
    assert list(step_of(module, batch_for(module))["teacher_kd"]) == ["fixed"]


def test_optimizer_warms_up_then_follows_a_cosine_and_decays_matrices_only(make: MakeModule) -> None:
    module = make()
    recipe = OptimizerRecipe(learning_rate=1e-2, warmup_fraction=0.1, weight_decay=0.3)
    optimizer, scheduler = recipe.build(module.parameters(), 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 0
    assert rates[10] == pytest.approx(1e-2)
    assert rates[55] == pytest.approx(0.5e-2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    decays = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {2: 0.3, 1: 0.0}


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


def test_half_precision_keeps_w_and_the_sums_of_metrics_exact(make: MakeModule) -> None:
    module = make().to(torch.bfloat16)
    loss, metric = cast(Any, module.losses["split"]), cast(Any, module.validation_metrics["bits_per_byte"])
    assert module.student.dtype == torch.bfloat16
    for plan in (loss.product.forward_plan, loss.product.backward_plan):
        assert plan.first_weights.dtype == plan.rest_weights.dtype == torch.float32
    assert metric.total.dtype == torch.float64
    assert torch.isfinite(step_of(module, batch_for(module))["loss"])


def test_double_precision_teacher_serves_a_single_precision_student(make: MakeModule, teacher_folder: str) -> None:
    double = make(teachers={"split": Teacher(model=teacher_folder, loss=ProjectionKL(), dtype="float64")})
    single = make()
    batch = batch_for(single)
    torch.testing.assert_close(
        step_of(double, batch)["kd"], step_of(single, batch)["kd"], rtol=1e-4, atol=0, check_dtype=False
    )


# Bad input -----------------------------------------------------------------------------------------------------------


def test_no_teacher_is_refused(student: Student) -> None:
    with pytest.raises(ValueError, match="at least one teacher is needed, got none"):
        MultiTeacherDistillModule(student).setup("fit")


def test_subclass_that_returns_no_teacher_is_refused(student: Student) -> None:
    class Nobody(MultiTeacherDistillModule):
        def configure_teachers(self) -> dict[str, Teacher]:
            return {}

    with pytest.raises(ValueError, match="return one from configure_teachers, or train on cross-entropy alone"):
        Nobody(student).setup("fit")


@pytest.mark.parametrize(
    ("result", "shown"), [([1], r"got \[1\]"), (None, "got None"), ({"q": "a/folder"}, r"got \{'q': 'str'\}")]
)
def test_what_is_no_dict_of_teachers_is_refused(student: Student, result: Any, shown: str) -> None:
    class Wrong(MultiTeacherDistillModule):
        def configure_teachers(self) -> dict[str, Teacher]:
            return cast(dict[str, Teacher], result)

    with pytest.raises(UserError, match=f"configure_teachers must return a dict such as .*{shown}"):
        Wrong(student, kd_weight=0.0).setup("fit")


def test_a_mistake_in_configure_teachers_is_shown(student: Student) -> None:
    class Mistaken(MultiTeacherDistillModule):
        def configure_teachers(self) -> dict[str, Teacher]:
            return {"q": Teacher(model=self.no_such_option, loss=ProjectionKL())}

    with pytest.raises(UserError, match=r"Mistaken\.configure_teachers failed: .*'no_such_option'"):
        Mistaken(student).setup("fit")


def test_teachers_that_a_subclass_would_ignore_are_refused(student: Student) -> None:
    class Fixed(MultiTeacherDistillModule):
        def configure_teachers(self) -> dict[str, Teacher]:
            return {"fixed": Teacher(model="x", loss=ProjectionKL())}

    with pytest.raises(ValueError, match="the teachers mine were given, but configure_teachers returns only fixed"):
        Fixed(student, {"mine": Teacher(model="y")}).setup("fit")


def test_dynamic_scaling_of_a_loss_that_can_be_negative_is_refused(make: MakeModule) -> None:
    def module(loss: GOLD) -> MultiTeacherDistillModule:
        return make(ready=False, teachers={"split": Teacher(model="x", loss=loss)})

    with pytest.raises(ValueError, match=r"can be negative \(GOLD: .*uld_weight=0.5\).*uld_weight >= kl_weight"):
        DynamicLossScaling().check_module(module(GOLD(uld_weight=0.5)))
    DynamicLossScaling().check_module(module(GOLD(uld_weight=0.0, divergence="jensen_shannon")))
    DynamicLossScaling().check_module(module(GOLD(kl_weight=0.5)))


def test_alphas_of_zero_are_no_matter_on_cross_entropy_alone(make: MakeModule) -> None:
    off = {"split": Teacher(model=make(ready=False).teachers["split"].model, alpha=0.0)}
    module = make(teachers=off, kd_weight=0.0)
    step = step_of(module, batch_for(module))
    assert step["total"] == step["ce"]


def test_head_gives_single_precision_whatever_the_weights(make: MakeModule, student: Student) -> None:
    half = make(student=Student(model=student.model, dtype="bfloat16"))
    weight = half.student_head.layer.weight
    assert weight.dtype == torch.bfloat16
    hidden = torch.randn(5, weight.shape[1], dtype=torch.bfloat16)
    log_probs = half.student_head.log_probs(hidden)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(5), rtol=0, atol=1e-5)


def test_loss_that_is_none_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="loss must be a SpanLoss or 'auto', got 'P-KL'"):
        Teacher(model="x", loss=cast(Any, "P-KL"))


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_alpha_must_be_a_finite_number_that_is_not_negative(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be a finite number >= 0, got"):
        Teacher(model="x", loss=ProjectionKL(), alpha=alpha)


def test_alphas_that_are_all_zero_are_refused(make: MakeModule) -> None:
    with pytest.raises(ValueError, match="at least one teacher's alpha must be > 0"):
        make(teachers={"a": Teacher(model="x", loss=ProjectionKL(), alpha=0.0)}, weighting=StaticWeighting())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be > 0, got"):
        Teacher(model="x", loss=ProjectionKL(), temperature=temperature)


def test_projection_beside_a_loss_without_one_is_refused() -> None:
    with pytest.raises(ValueError, match="TokenKL uses none"):
        Teacher(model="x", loss=TokenKL(), projection="w.safetensors")


def test_token_kl_across_tokenizers_is_refused(make: MakeModule, teacher_folder: str) -> None:
    with pytest.raises(ValueError, match="use ProjectionKL"):
        make(teachers={"split": Teacher(model=teacher_folder, loss=TokenKL())})


def test_projection_of_other_tokenizers_is_refused(tmp_path: Path, make: MakeModule, teacher_folder: str) -> None:
    path = tmp_path / "w.safetensors"
    build_projection(splitting_tokenizer(), packing_tokenizer()).save(path)
    with pytest.raises(ValueError, match="its student tokenizer has 500 tokens"):
        make(teachers={"split": Teacher(model=teacher_folder, loss=ProjectionKL(), projection=str(path))})


def test_head_smaller_than_the_tokenizer_is_refused(tmp_path: Path, make: MakeModule) -> None:
    small = write_model(tmp_path, packing_tokenizer(), num_head_rows=600)
    with pytest.raises(ValueError, match=r"600 rows, its tokenizer .* 700 tokens"):
        make(student=Student(model=small))


def test_model_that_transforms_its_logits_is_refused(tmp_path: Path, make: MakeModule) -> None:
    config = Gemma2Config(
        vocab_size=len(splitting_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        final_logit_softcapping=30.0,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    splitting_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"teacher 'capped' .*log-probabilities differ by \d+"):
        make(teachers={"capped": Teacher(model=str(tmp_path), loss=ProjectionKL())})


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_missing_model_is_named_with_the_way_out(make: MakeModule, role: str) -> None:
    missing = "no/such/model"
    options = (
        {"student": Student(model=missing)}
        if role == "student"
        else {"teachers": {"t": Teacher(model=missing, loss=ProjectionKL())}}
    )
    with pytest.raises(ValueError, match=f"{missing}.*could not be loaded. Check the path"):
        make(**options)


@pytest.mark.parametrize("name", ["a.b", "keys", ""])
def test_name_that_cannot_be_a_tag_is_refused(make: MakeModule, name: str) -> None:
    with pytest.raises(ValueError, match=f"a teacher's name must be letters, digits, _ or -, .* got '{name}'"):
        make(teachers={name: Teacher(model="x", loss=ProjectionKL())})


def test_weights_that_leave_nothing_to_learn_are_refused(make: MakeModule) -> None:
    with pytest.raises(ValueError, match="there would be nothing to learn"):
        make(ce_weight=0.0, kd_weight=0.0)


@pytest.mark.parametrize("option", ["ce_weight", "kd_weight"])
def test_negative_fixed_weight_is_refused(make: MakeModule, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be a finite number >= 0, got -1"):
        make(**{option: -1.0})


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


def test_schedule_without_an_end_is_refused(make: MakeModule) -> None:
    with pytest.raises(ValueError, match=r"set trainer\.max_steps or trainer\.max_epochs"):
        OptimizerRecipe().build(make().parameters(), float("inf"))


@pytest.mark.parametrize(
    ("option", "value"), [("learning_rate", 0.0), ("weight_decay", -0.1), ("warmup_fraction", 1.0)]
)
def test_optimizer_values_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} must be .*, got {value}"):
        OptimizerRecipe(**{option: value})


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
    with pytest.raises(ValueError, match=r"those of the teacher 'split' .* are; check its weights"):
        make(teachers={"split": Teacher(model=folder, loss=ProjectionKL())})
