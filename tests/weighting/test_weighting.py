"""Weights between teachers: against slow references from the models' own logits, and at the edges."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, cast, get_args

import pytest
import reference_losses as reference
import torch
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, write_model
from torch import Tensor

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
from xtoken_pl.batch import DistillBatch
from xtoken_pl.data import Windower, collate
from xtoken_pl.weighting import TeacherScores, span_alphas, teacher_scores
from xtoken_pl.weighting.confidence import Measure, Scope, Unit

NAMES = ["other", "same"]
ALPHAS = {"other": 0.3, "same": 0.6}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "student": write_model(root / "student", packing_tokenizer(), seed=1),
        "other": write_model(root / "other", reversing_tokenizer(), seed=2),
        "same": write_model(root / "same", packing_tokenizer(), seed=3, scale=12.0),
    }


MakeModule = Callable[..., MultiTeacherDistillModule]


@pytest.fixture
def make(folders: dict[str, str]) -> MakeModule:
    def make(
        weighting: Weighting, *, temperature: float = 1.0, logits_memory: float = 2e-4
    ) -> MultiTeacherDistillModule:
        options: Any = {"dtype": "float64", "temperature": temperature}
        teachers = {
            "other": Teacher(model=folders["other"], loss=ProjectionKL(), alpha=ALPHAS["other"], **options),
            "same": Teacher(model=folders["same"], loss=TokenKL(), alpha=ALPHAS["same"], **options),
        }
        student = Student(model=folders["student"], dtype="float64")
        module = MultiTeacherDistillModule(student, teachers, weighting, logits_memory=logits_memory)
        module.setup("fit")
        module.configure_model()
        return module

    return make


def batch_for(module: MultiTeacherDistillModule) -> DistillBatch:
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([text[:250] for text in TEXTS[:3]])
    # The last window ends with eos, which has no bytes.
    rows = [{key: column[index] for key, column in columns.items()} for index in (0, 2, -1)]
    return collate(rows, NAMES)


def test_batch_has_spans_of_all_kinds(make: MakeModule) -> None:
    module = make(ConfidenceWeighting())
    batch = batch_for(module)
    spans = batch.teachers["other"].spans
    assert (spans.student_length > 1).sum() > 5
    assert (spans.teacher_length > 1).sum() > 5
    assert (module.student_num_bytes[batch.student.labels] == 0).sum() == 1


def views_of(module: MultiTeacherDistillModule, batch: DistillBatch) -> dict[str, TeacherScores]:
    return teacher_scores(module.score(batch), batch, module.alphas, module.student_num_bytes)


def weights_of(module: MultiTeacherDistillModule, batch: DistillBatch) -> dict[str, Tensor]:
    return cast(dict[str, Tensor], module.weighting(views_of(module, batch), lambda values: values))


def slow_sums(
    module: MultiTeacherDistillModule, batch: DistillBatch, name: str, measure: Measure, unit: Unit
) -> tuple[list[float], list[float]]:
    """The confidence of every span and its units, from the teacher's own logits, token by token."""
    view, model = batch.teachers[name], module._loaded_teachers[name].model
    with torch.no_grad():
        logits = model(view.tokens.input_ids, attention_mask=view.tokens.attention_mask).logits
    rows = logits.flatten(0, 1)[view.tokens.rows][:, : len(module.teacher_vocabularies[name])].softmax(-1)
    token_bytes = module.student_vocabulary.token_bytes
    sums: list[float] = []
    units: list[float] = []
    for span in range(len(view.spans)):
        first, length = int(view.spans.teacher_first[span]), int(view.spans.teacher_length[span])
        total = 0.0
        for row in range(first, first + length):
            p = rows[row]
            if measure == "cross_entropy":
                total += float(p[view.tokens.labels[row]].log())
            elif measure == "entropy":
                total += float((p * p.log()).sum())
            else:
                total += float(p.max().log() if unit == "byte" else p.max())
        first, num = int(view.spans.student_first[span]), int(view.spans.student_length[span])
        num_bytes = sum(len(token_bytes[token]) for token in batch.student.labels[first : first + num].tolist())
        sums.append(total)
        units.append(max(1, num_bytes) if unit == "byte" else length)
    return sums, units


@pytest.mark.parametrize("unit", get_args(Unit))
@pytest.mark.parametrize("measure", get_args(Measure))
@pytest.mark.parametrize("hard", [False, True])
def test_batch_weights_agree_with_the_slow_reference(
    make: MakeModule, measure: Measure, unit: Unit, *, hard: bool
) -> None:
    weighting = (
        MostConfidentTeacher(measure, unit=unit) if hard else ConfidenceWeighting(measure, unit=unit, sharpness=1.5)
    )
    module = make(weighting)
    batch = batch_for(module)
    ours = weights_of(module, batch)
    sums = [slow_sums(module, batch, name, measure, unit) for name in NAMES]
    if measure == "max_probability" and unit == "byte":
        scores = [[float(torch.tensor(sum(s) / sum(u)).exp())] for s, u in sums]
        theirs = reference.confidence_weights(scores, [[1.0], [1.0]], list(ALPHAS.values()), 1.5, hard)
    else:
        theirs = reference.confidence_weights([s for s, _ in sums], [u for _, u in sums], [0.3, 0.6], 1.5, hard)
    assert [float(ours[name]) for name in NAMES] == pytest.approx(theirs, abs=1e-6)
    assert sum(theirs) == pytest.approx(1.0)


@pytest.mark.parametrize("measure", get_args(Measure))
def test_sequence_weights_agree_with_the_slow_reference(make: MakeModule, measure: Measure) -> None:
    module = make(ConfidenceWeighting(measure, scope="sequence", unit="token", sharpness=2.0))
    batch = batch_for(module)
    ours, views = weights_of(module, batch), views_of(module, batch)
    sums = [slow_sums(module, batch, name, measure, "token") for name in NAMES]
    sequence_of_row = views["same"].sequence
    seen = set()
    for sequence in range(3):
        chosen = [
            (sequence_of_row[batch.teachers[name].spans.student_first] == sequence).nonzero().squeeze(1).tolist()
            for name in NAMES
        ]
        theirs = reference.confidence_weights(
            [[s[k] for k in spans] for (s, _), spans in zip(sums, chosen, strict=True)],
            [[u[k] for k in spans] for (_, u), spans in zip(sums, chosen, strict=True)],
            list(ALPHAS.values()),
            2.0,
        )
        assert all(len(spans) > 3 for spans in chosen)
        rows = (sequence_of_row == sequence).nonzero().squeeze(1)
        for name, weight in zip(NAMES, theirs, strict=True):
            assert ours[name][rows].tolist() == pytest.approx([weight] * len(rows), abs=1e-6)
            seen.add(round(weight, 4))
    assert len(seen) == 6


@pytest.mark.parametrize("hard", [False, True])
def test_span_weights_agree_with_the_slow_reference(make: MakeModule, *, hard: bool) -> None:
    weighting = MostConfidentTeacher(scope="span") if hard else ConfidenceWeighting(scope="span", sharpness=0.7)
    module = make(weighting)
    batch = batch_for(module)
    ours = weights_of(module, batch)
    num_rows = len(batch.student.rows)
    row_scores: list[list[float | None]] = []
    for name in NAMES:
        sums, units = slow_sums(module, batch, name, "cross_entropy", "byte")
        spans = batch.teachers[name].spans
        row_scores.append(
            [
                sums[k] / units[k] if (k := int(spans.student_span[row])) < len(spans) else None
                for row in range(num_rows)
            ]
        )
    theirs = reference.confidence_weights_per_row(row_scores, list(ALPHAS.values()), 0.7, hard)
    by_span = span_alphas(ours, batch)
    for m, name in enumerate(NAMES):
        assert ours[name].tolist() == pytest.approx(theirs[m], abs=1e-6)
        assert len(set(theirs[m])) > (1 if hard else 20)
        spans = batch.teachers[name].spans
        expected = []
        for first, length in zip(spans.student_first.tolist(), spans.student_length.tolist(), strict=True):
            expected.append(sum(theirs[m][first : first + length]) / length)
        assert by_span[name].tolist() == pytest.approx(expected, abs=1e-6)


def gradient(module: MultiTeacherDistillModule, loss: Tensor) -> Tensor:
    module.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in module.student.parameters() if p.grad is not None])


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
