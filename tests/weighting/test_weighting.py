"""Weights between teachers: what the loss makes of them, their limits, and at the edges."""

from __future__ import annotations

import math
import warnings
from typing import Any, cast, get_args

import pytest
import torch
from small_models import TEXTS
from torch import Tensor
from weighted_teachers import NAMES, MakeModule, batch_for, gradient, views_of, weights_of

from xtoken_pl import (
    ConfidenceWeighting,
    MostConfidentTeacher,
    MultiTeacherDistillModule,
    ProjectionKL,
    StaticWeighting,
    Student,
    Teacher,
    TokenKL,
    Weighting,
)
from xtoken_pl.data import Windower, collate
from xtoken_pl.weighting.confidence import Scope


@pytest.mark.parametrize("scope", get_args(Scope))
def test_distillation_loss_and_gradient_are_those_of_weighted_spans(make: MakeModule, scope: Scope) -> None:
    module = make(ConfidenceWeighting(scope=scope, sharpness=3.0))
    batch = batch_for(module)
    step: Any = module.training_step(batch, 0)
    ours = gradient(module, step["loss"])
    scores, alpha = module.score(batch), weights_of(module, batch)
    kd = torch.zeros((), dtype=torch.float64)
    for name in NAMES:
        spans, losses = batch.teachers[name].spans, scores.spans[name].loss
        for k, (first, length) in enumerate(zip(spans.student_first, spans.student_length, strict=True)):
            weight = alpha[name] if scope == "batch" else alpha[name][first : first + length].mean()
            kd = kd + weight * losses[k] / len(spans)
    torch.testing.assert_close(step["kd"], kd.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(ours, gradient(module, scores.token_nats.mean() + kd), rtol=0, atol=1e-10)


@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize("kind", [ConfidenceWeighting, MostConfidentTeacher])
def test_logged_weights_are_normalized(make: MakeModule, kind: Any, scope: Scope) -> None:
    module = make(kind("entropy", scope=scope))
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([text[:250] for text in TEXTS[:3]])
    rows = [{key: column[index] for key, column in columns.items()} for index in (0, 2)]
    # The first tokens lie in no span of "other", and the very first ones in no span at all.
    rows[0]["other/spans"], rows[0]["same/spans"] = rows[0]["other/spans"][4 * 6 :], rows[0]["same/spans"][4 * 2 :]
    batch = collate(rows, NAMES)
    step: Any = module.training_step(batch, 0)
    assert step["span_coverage"]["other"] < step["span_coverage"]["same"] < 1
    assert float(sum(step["alpha"].values())) == pytest.approx(1.0, abs=1e-9)
    assert not any(value.requires_grad for value in step["alpha"].values())
    alpha = weights_of(module, batch)
    expected = alpha["other"]
    if scope != "batch":
        has_any = (alpha["other"] > 0) | (alpha["same"] > 0)
        expected = alpha["other"][has_any].mean()
    assert float(step["alpha"]["other"]) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("scope", get_args(Scope))
def test_weights_depend_neither_on_the_temperature_nor_on_the_blocks(make: MakeModule, scope: Scope) -> None:
    """A teacher is as sure as it is, whatever temperature its loss is taken at."""
    batch = batch_for(make(ConfidenceWeighting(scope=scope)))
    plain = weights_of(make(ConfidenceWeighting(scope=scope)), batch)
    other = weights_of(make(ConfidenceWeighting(scope=scope), temperature=3.0, logits_memory=1.0), batch)
    for name in NAMES:
        torch.testing.assert_close(plain[name], other[name], rtol=0, atol=1e-9)


def test_zero_sharpness_gives_the_normalized_alphas(make: MakeModule) -> None:
    module = make(ConfidenceWeighting(sharpness=0.0))
    weights = weights_of(module, batch_for(module))
    assert [float(weights[name]) for name in NAMES] == pytest.approx([1 / 3, 2 / 3])


def test_great_sharpness_keeps_the_most_confident_teacher(make: MakeModule) -> None:
    batch = batch_for(make(MostConfidentTeacher()))
    soft = weights_of(make(ConfidenceWeighting(sharpness=1e4)), batch)
    hard = weights_of(make(MostConfidentTeacher()), batch)
    assert {name: float(weight) for name, weight in soft.items()} == {name: float(w) for name, w in hard.items()}
    assert sorted(float(weight) for weight in hard.values()) == [0.0, 1.0]


@pytest.mark.parametrize("weighting", [ConfidenceWeighting(), MostConfidentTeacher()])
def test_alpha_of_zero_switches_a_teacher_off(make: MakeModule, weighting: Weighting) -> None:
    module = make(weighting)
    batch = batch_for(module)
    for off, on in (NAMES, NAMES[::-1]):
        module.teachers[off].alpha, module.teachers[on].alpha = 0.0, 1.0
        weights = weights_of(module, batch)
        assert (float(weights[off]), float(weights[on])) == (0.0, 1.0)


@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize("kind", [ConfidenceWeighting, MostConfidentTeacher])
def test_teacher_without_a_span_has_no_say(make: MakeModule, kind: Any, scope: Scope) -> None:
    module = make(kind(scope=scope))
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([TEXTS[0][:60]])
    row = {key: column[0] for key, column in columns.items()}
    without = collate([row | {"other/spans": []}], NAMES)
    weights = weights_of(module, without)
    assert (weights["same"] == 1).all()
    assert (weights["other"] == 0).all()
    nothing = collate([row | {"other/spans": [], "same/spans": []}], NAMES)
    with pytest.warns(UserWarning, match="no span in common"):
        step: Any = module.training_step(nothing, 0)
    step["loss"].backward()
    assert step["kd"] == 0
    assert torch.isfinite(step["loss"])


def test_batch_weights_are_those_of_all_processes(make: MakeModule) -> None:
    module = make(ConfidenceWeighting(sharpness=3.0))
    batch = batch_for(module)
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([text[:250] for text in TEXTS[:3]])
    rows = [{key: column[index] for key, column in columns.items()} for index in (0, 2, -1)]
    shares = [views_of(module, collate(part, NAMES)) for part in (rows[:1], rows[1:])]
    sums: list[Tensor] = []

    def record(values: Tensor) -> Tensor:
        sums.append(values)
        return values

    for share in shares:
        module.weighting(share, record)
    together = module.weighting(shares[0], lambda _: sums[0] + sums[1])
    expected = weights_of(module, batch)
    for name in NAMES:
        torch.testing.assert_close(together[name], expected[name], rtol=0, atol=1e-9)


def test_confidence_is_computed_only_where_it_is_used(make: MakeModule) -> None:
    static, adaptive = make(StaticWeighting()), make(ConfidenceWeighting())
    batch = batch_for(static)
    assert static.score(batch).confidence == {}
    assert adaptive.score(batch).confidence.keys() == set(NAMES)
    assert adaptive.eval().score(batch).confidence == {}


def test_entropy_of_a_vocabulary_with_holes_is_finite() -> None:
    log_probs = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64).log()
    entropy = ConfidenceWeighting("entropy").row_confidence(log_probs, torch.tensor([0]))
    assert entropy.tolist() == pytest.approx([0.25 * math.log(0.25) + 0.75 * math.log(0.75)])


def test_alphas_that_the_most_confident_teacher_does_not_use_are_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    MostConfidentTeacher().check({"a": 0.5, "b": 0.5, "c": 0.0})
    ConfidenceWeighting().check({"a": 0.5, "b": 2.0})
    assert not recwarn.list
    with pytest.warns(UserWarning, match="the weight 1 whatever its alpha, got {'a': 0.5, 'b': 2.0}"):
        MostConfidentTeacher().check({"a": 0.5, "b": 2.0})


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ConfidenceWeighting, MostConfidentTeacher])
def test_one_teacher_is_warned_of(folders: dict[str, str], kind: Any) -> None:
    teachers = {"other": Teacher(model=folders["other"], loss=ProjectionKL(), alpha=0.5)}
    module = MultiTeacherDistillModule(Student(model=folders["student"]), teachers, kind())
    with pytest.warns(UserWarning, match=f"{kind.__name__} with one teacher .* has nothing to compare: its alpha is 1"):
        module.setup("fit")
    module.configure_model()
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([TEXTS[0][:60]])
    batch = collate([{key: column[0] for key, column in columns.items()}], ["other"])
    step: Any = module.training_step(batch, 0)
    assert step["alpha"]["other"] == 1


def test_one_teacher_beside_one_that_is_switched_off_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="nothing to compare"):
        ConfidenceWeighting().check({"on": 0.5, "off": 0.0})


def test_two_teachers_are_not_warned_of(make: MakeModule) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make(ConfidenceWeighting())


@pytest.mark.parametrize(("option", "value"), [("measure", "confidence"), ("scope", "token"), ("unit", "word")])
def test_unknown_choice_is_refused_with_the_choices(option: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be one of .*, got '{value}'"):
        ConfidenceWeighting(**cast(Any, {option: value}))


@pytest.mark.parametrize("sharpness", [-1.0, float("nan"), float("inf")])
def test_sharpness_must_not_be_negative(sharpness: float) -> None:
    with pytest.raises(ValueError, match=f"sharpness must be a finite number >= 0, got {sharpness}"):
        ConfidenceWeighting(sharpness=sharpness)


def test_alphas_that_are_all_zero_are_refused(folders: dict[str, str]) -> None:
    teachers = {
        name: Teacher(model=folders[name], loss=loss, alpha=0.0)
        for name, loss in (("other", ProjectionKL()), ("same", TokenKL()))
    }
    module = MultiTeacherDistillModule(Student(model=folders["student"]), teachers, ConfidenceWeighting())
    with pytest.raises(ValueError, match="at least one teacher's alpha must be > 0"):
        module.setup("fit")
