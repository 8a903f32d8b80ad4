"""Teachers, losses, weights and models that the module refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
from module_steps import MakeModule
from small_models import packing_tokenizer, splitting_tokenizer, write_model
from transformers import LlamaForCausalLM

from xtoken_pl import (
    MultiTeacherDistillModule,
    ProjectionKL,
    StaticWeighting,
    Student,
    Teacher,
    TokenKL,
    build_projection,
)
from xtoken_pl.utilities.errors import UserError


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


def test_loss_that_is_none_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="loss must be a SpanLoss, 'auto' or 'auto_paper', got 'P-KL'"):
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


def test_model_with_an_unknown_transformation_of_its_logits_is_refused(
    make: MakeModule, teacher_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the difference to the nearest known one."""
    forward = LlamaForCausalLM.forward

    def squared(self: LlamaForCausalLM, *arguments: Any, **options: Any) -> Any:
        output: Any = forward(self, *arguments, **options)
        if self.name_or_path == teacher_folder:
            output.logits = output.logits * output.logits.abs()
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", squared)
    message = (
        r"a model's logits must be its head .* times a factor or with a soft cap that its config.json names, but for "
        r"the teacher 'odd' \(LlamaForCausalLM\) the log-probabilities differ by (\S+) of the largest logit"
    )
    with pytest.raises(ValueError, match=message) as refused:
        make(teachers={"odd": Teacher(model=teacher_folder, loss=ProjectionKL())})
    found = re.search(message, str(refused.value))
    assert found is not None
    assert 0.05 < float(found[1]) < 2


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
