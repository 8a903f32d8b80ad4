"""Weights by kind of span: a filter at 0, nothing at 1, and one divisor for the whole optimizer step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from domains import batch_of, windows_of, with_domains
from module_steps import step_of
from torch import Tensor
from weighted_teachers import batch_for, gradient, make_module, write_folders

from xtoken_pl import (
    ESCD,
    GOLD,
    ULD,
    BytePrefixKL,
    ConfidenceWeighting,
    HybridKL,
    MultiTeacherDistillModule,
    ProjectionKL,
    StaticWeighting,
    Student,
    Teacher,
)
from xtoken_pl.batch import SPAN_KINDS, DistillBatch
from xtoken_pl.callbacks import DynamicLossScaling
from xtoken_pl.data import whole_steps
from xtoken_pl.losses import SpanBlock, SpanScores
from xtoken_pl.training.binding import bind_loss
from xtoken_pl.utilities.errors import UserError

WEIGHTS = {"one_to_one": 0.7, "many_to_one": 3.0, "many_to_many": 0.0}  # one_to_many: 1

Make = Callable[..., MultiTeacherDistillModule]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture
def make(folders: dict[str, str]) -> Make:
    """Makes a module whose teacher ``other`` weighs kinds of spans."""

    def make(spans: Any = None, weighting: Any = None, loss: Any = None, **options: Any) -> MultiTeacherDistillModule:
        module = make_module(folders, weighting or StaticWeighting(), **options)
        module.teachers["other"].spans = spans or {}
        if loss is not None:
            teacher = replace(module.teachers["other"], loss=loss)
            sides = module.student_vocabulary, module.teacher_vocabularies["other"]
            module.losses["other"] = bind_loss("other", teacher, *sides)
        return module.train()

    return make


def weight_of(spans: Any, batch: DistillBatch) -> Tensor:
    """``[S]`` weight of each span, from its numbers of tokens."""
    found = batch.teachers["other"].spans
    names = {(False, False): "one_to_one", (False, True): "one_to_many"}
    names |= {(True, False): "many_to_one", (True, True): "many_to_many"}
    pairs = zip((found.student_length > 1).tolist(), (found.teacher_length > 1).tolist(), strict=True)
    return torch.tensor([spans.get(names[pair], 1.0) for pair in pairs], dtype=torch.float64)


def test_the_texts_have_spans_of_all_kinds(make: Make) -> None:
    spans = batch_for(make()).teachers["other"].spans
    kinds = [SPAN_KINDS[kind] for kind in spans.kind.tolist()]
    assert set(kinds) == set(SPAN_KINDS)
    assert spans.count_kinds().tolist() == [kinds.count(kind) for kind in SPAN_KINDS]


@pytest.mark.parametrize("weight", [1.0, 0.5, 4.0])
def test_the_same_weight_of_all_kinds_changes_no_bit(make: Make, weight: float) -> None:
    plain, weighted = make(), make(dict.fromkeys(SPAN_KINDS, weight))
    batch = batch_for(plain)
    expected, found = step_of(plain, batch), step_of(weighted, batch)
    assert torch.equal(gradient(weighted, found.pop("loss")), gradient(plain, expected.pop("loss")))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "loss", [None, GOLD(), ULD(), HybridKL(), BytePrefixKL(), ESCD()], ids=lambda loss: type(loss).__name__
)
@pytest.mark.parametrize("spans", [WEIGHTS, {"one_to_one": 0}, {"many_to_many": 0, "many_to_one": 0}], ids=str)
def test_loss_and_gradient_are_the_weighted_mean_over_spans(make: Make, spans: Any, loss: Any) -> None:
    module = make(spans, loss=loss)
    batch = batch_for(module)
    step = step_of(module, batch)
    ours = gradient(module, step["loss"])
    scores, weight = module.score(batch), weight_of(spans, batch)
    keep = weight > 0
    mean = (weight[keep] * scores.spans["other"].loss[keep]).sum() / weight.sum()
    kd = 0.3 * mean + 0.6 * scores.spans["same"].loss.mean()
    torch.testing.assert_close(step["teacher_kd"]["other"], mean.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(step["kd"], kd.detach(), rtol=1e-12, atol=0)
    unmapped = (weight * scores.spans["other"].unmapped_mass).sum() / weight.sum()
    torch.testing.assert_close(step["unmapped_mass"]["other"], unmapped, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, gradient(module, scores.token_nats.mean() + kd), rtol=0, atol=1e-10)


def test_a_step_does_not_depend_on_how_it_is_cut(make: Make) -> None:
    module = with_domains(make(WEIGHTS))
    parts = [windows_of(module, number) for number in range(3)]
    whole = step_of(module, batch_of([window for part in parts for window in part]))
    expected, found = gradient(module, whole["loss"]), 0
    for batch in whole_steps([batch_of(part) for part in (parts[1], parts[0], parts[2])], [3]):
        last = step_of(module, batch)
        found = found + gradient(module, last["loss"])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    for tag in ("alpha", "teacher_kd", "span_coverage", "unmapped_mass"):
        torch.testing.assert_close(last[tag], whole[tag], rtol=1e-10, atol=1e-12)


def test_processes_divide_by_the_weights_of_all_of_them(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    module = with_domains(make(WEIGHTS))
    parts = [windows_of(module, number) for number in range(3)]
    whole = step_of(module, batch_of([window for part in parts for window in part]))
    expected = gradient(module, whole["loss"])
    own = [batch_of(parts[0]), batch_of([*parts[1], *parts[2]])]
    sums: list[Tensor] = []
    monkeypatch.setattr(module, "_sum_over_processes", lambda values: sums.append(values.clone()) or values)
    for batch in own:
        step_of(module, batch)
    monkeypatch.setattr(module, "_sum_over_processes", lambda _: sums[0] + sums[1])
    steps = [step_of(module, batch) for batch in own]
    found = sum((gradient(module, step["loss"]) for step in steps), torch.zeros_like(expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    for step in steps:
        torch.testing.assert_close(step["teacher_kd"], whole["teacher_kd"], rtol=1e-10, atol=0)


@pytest.mark.parametrize("scale", [None, DynamicLossScaling.scale])
def test_a_step_whose_spans_all_weigh_0_has_a_zero_loss_with_a_gradient(make: Make, scale: Any) -> None:
    module = make(dict.fromkeys(SPAN_KINDS, 0.0))  # no specification may say so, but a step may have no other span
    module.kd_scale = scale or module.fixed_kd_scale
    batch = batch_for(module)
    step = step_of(module, batch)
    assert step["teacher_kd"]["other"] == step["unmapped_mass"]["other"] == 0
    torch.testing.assert_close(step["kd"], 0.6 * step["teacher_kd"]["same"])
    assert torch.isfinite(gradient(module, step["loss"])).all()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_span_of_weight_0_adds_nothing_whatever_its_loss_is(make: Make, value: float) -> None:
    class Broken(ProjectionKL):
        def forward(self, block: SpanBlock) -> SpanScores:
            scores = super().forward(block)
            is_broken = (block.student.length > 1) & (block.teacher.length > 1)
            return scores._replace(loss=scores.loss + torch.where(is_broken, value, 0.0))

    spans = {"many_to_many": 0.0, "one_to_many": 0.5}
    module, plain = make(spans, loss=Broken()), make(spans)
    batch = batch_for(plain)
    assert not module.score(batch).spans["other"].loss.isfinite().all()
    found, expected = step_of(module, batch), step_of(plain, batch)
    assert torch.equal(gradient(module, found.pop("loss")), gradient(plain, expected.pop("loss")))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_total_weight_below_1_is_divided_by(make: Make) -> None:
    small, plain = (
        make({"one_to_one": 1e-9, "one_to_many": 0, "many_to_one": 0, "many_to_many": 0}),
        make({"one_to_many": 0, "many_to_one": 0, "many_to_many": 0}),
    )
    batch = batch_for(plain)
    found, expected = step_of(small, batch), step_of(plain, batch)
    assert expected["teacher_kd"]["other"] > 0.1
    torch.testing.assert_close(found["teacher_kd"], expected["teacher_kd"], rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient(small, found["loss"]), gradient(plain, expected["loss"]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("scope", ["batch", "span"])
def test_confidence_and_dynamic_scaling_see_the_loss_as_weighted(make: Make, scope: Any) -> None:
    plain, module = (make(spans, ConfidenceWeighting(scope=scope)) for spans in (None, WEIGHTS))
    module.kd_scale = DynamicLossScaling.scale
    batch = batch_for(module)
    step, before = step_of(module, batch), step_of(plain, batch)
    torch.testing.assert_close(step["alpha"], before["alpha"], rtol=0, atol=0)
    torch.testing.assert_close(step["kd_scale"] * step["kd"], step["ce"])
    assert abs(step["kd"] / before["kd"] - 1) > 0.01


def test_validation_logs_the_loss_as_weighted(make: Make) -> None:
    module = make(WEIGHTS).eval()
    batch = batch_for(module)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values are logged without a trainer
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        module.validation_step(batch, 0)
        loss, weight = module.score(batch).spans["other"].loss, weight_of(WEIGHTS, batch)
    expected = (weight * loss).sum() / weight.sum()
    found = module.validation_metrics["kd/other"].compute()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (
            {"many": 1.0},
            r"spans must name kinds of spans \(one_to_one, .*many_to_many\), got 'many'; correct or remove",
        ),
        (
            {"many_to_one": -1},
            "spans.many_to_one must be a finite number >= 0, got -1; 0 leaves spans of this kind out",
        ),
        ({"many_to_one": float("nan")}, "spans.many_to_one must be a finite number >= 0, got nan"),
        ({"many_to_one": float("inf")}, "spans.many_to_one must be a finite number >= 0, got inf"),
        (dict.fromkeys(SPAN_KINDS, 0), "spans must give at least one kind .* a weight > 0, got .*; raise one, or set"),
    ],
)
def test_weights_that_say_nothing_are_refused(spans: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Teacher(model="teacher", spans=spans)


def test_leaving_out_all_spans_of_a_teacher_with_the_students_tokenizer_is_refused(folders: dict[str, str]) -> None:
    teachers = {"same": Teacher(model=folders["same"], spans={"one_to_one": 0})}
    module = MultiTeacherDistillModule(Student(model=folders["student"]), teachers)
    with pytest.raises(
        UserError, match=r"'same' has the student's tokenizer, .* raise one_to_one, or remove the teacher"
    ):
        module.setup("fit")
