"""Teachers by domain: a teacher is run, counted and weighted on the windows that it teaches alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
from domains import DOMAINS, NAMES, batch_of, windows_of, with_domains
from small_models import packing_tokenizer, reversing_tokenizer, write_model
from weighted_teachers import MakeModule, gradient, make_module, weights_of, write_folders

from xtoken_pl import (
    BytePrefixKL,
    ConfidenceWeighting,
    MostConfidentTeacher,
    MultiTeacherDistillModule,
    ProjectionKL,
    StaticWeighting,
    Student,
    Teacher,
)
from xtoken_pl.batch import DistillBatch, as_steps
from xtoken_pl.callbacks import NumeralMonitor
from xtoken_pl.inspection import Inspection, first_sequence, predict
from xtoken_pl.weighting.confidence import Scope

ALPHAS = {"math": {"other": 0.3}, "code": {"same": 0.6}, "web": {"other": 0.5, "same": 2.0}}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> MakeModule:
    return partial(make_module, write_folders(tmp_path_factory.mktemp("models")))


def test_a_teacher_reads_the_windows_that_it_teaches_alone(make: MakeModule) -> None:
    module = with_domains(make(StaticWeighting()))
    parts = [windows_of(module, number) for number in range(3)]
    batch = batch_of([window for part in parts for window in part])
    for name, numbers in {"other": (0, 2), "same": (1, 2)}.items():
        own = [window for number in numbers for window in parts[number]]
        alone = batch_of(own).teachers[name]
        torch.testing.assert_close(batch.teachers[name].tokens.input_ids, alone.tokens.input_ids)
        torch.testing.assert_close(batch.teachers[name].tokens.labels, alone.tokens.labels)
        assert len(batch.teachers[name].spans) == len(alone.spans) > 0


@pytest.mark.parametrize("column", ["loss_mask", "same/spans"])
def test_a_window_of_its_source_without_a_span_to_score_is_not_read(make: MakeModule, column: str) -> None:
    first, *others = windows_of(with_domains(make(StaticWeighting())), 1)
    nothing = {**first, column: [0] * len(first[column]) if column == "loss_mask" else []}
    found, expected = (batch_of(windows).teachers["same"] for windows in ([nothing, *others], others))
    torch.testing.assert_close(found.tokens.input_ids, expected.tokens.input_ids)
    torch.testing.assert_close(found.tokens.rows, expected.tokens.rows)
    assert len(expected.spans) > 0


def test_loss_and_gradient_are_those_of_each_teachers_own_spans(make: MakeModule) -> None:
    module = with_domains(make(StaticWeighting()))
    parts = [windows_of(module, number) for number in range(3)]
    step: Any = module.training_step(batch_of([window for part in parts for window in part]), 0)
    ours = gradient(module, step["loss"])

    nats, counts = [], dict.fromkeys(NAMES, 0)
    weighted = {name: torch.zeros((), dtype=torch.float64) for name in NAMES}
    for part, domain in zip(parts, DOMAINS, strict=True):
        scores = module.score(batch_of(part))
        nats.append(scores.token_nats)
        for name, alpha in ALPHAS[domain.source].items():
            weighted[name] = weighted[name] + alpha * scores.spans[name].loss.sum()
            counts[name] += len(scores.spans[name].loss)
    kd = sum((weighted[name] / counts[name] for name in NAMES), torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(step["kd"], kd.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(ours, gradient(module, torch.cat(nats).mean() + kd), rtol=0, atol=1e-10)


def test_a_step_does_not_depend_on_how_its_domains_are_cut_into_batches(make: MakeModule) -> None:
    module = with_domains(make(StaticWeighting()))
    parts = [windows_of(module, number) for number in range(3)]
    whole: Any = module.training_step(batch_of([window for part in parts for window in part]), 0)
    expected = gradient(module, whole["loss"])
    batches = [batch_of(part) for part in (parts[1], parts[0], parts[2])]  # the first has no span of "other"
    found = torch.zeros_like(expected)
    for batch, counts in zip(batches, as_steps(batches), strict=True):
        batch.step = counts
        last: Any = module.training_step(batch, 0)
        found += gradient(module, last["loss"])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    for tag in ("alpha", "teacher_kd", "span_coverage", "unmapped_mass", "share", "source_ce"):
        torch.testing.assert_close(last[tag], whole[tag], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_teacher_without_a_window_is_not_run(
    make: MakeModule, is_training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = with_domains(make(ConfidenceWeighting())).train(is_training)
    runs: list[str] = []
    for name, teacher in module.loaded_teachers.items():
        monkeypatch.setattr(teacher, "run", lambda *a, name=name, run=teacher.run: (runs.append(name), run(*a))[1])
    scores = module.score(batch_of(windows_of(module, 1)))
    assert runs == ["same"]
    assert list(scores.spans) == NAMES
    assert len(scores.spans["other"].loss) == 0 < len(scores.spans["same"].loss)


def test_shares_and_losses_of_sources_are_those_of_their_tokens(make: MakeModule) -> None:
    module = with_domains(make(StaticWeighting()))
    parts = [windows_of(module, number) for number in (0, 1)]
    step: Any = module.training_step(batch_of([window for part in parts for window in part]), 0)
    alone = [module.score(batch_of(part)).token_nats for part in parts]
    total = sum(map(len, alone))
    assert float(step["share"]["math"]) == pytest.approx(len(alone[0]) / total)
    assert float(step["share"]["code"]) == pytest.approx(len(alone[1]) / total)
    assert step["share"]["web"] == 0
    torch.testing.assert_close(step["source_ce"]["math"], alone[0].mean().detach())
    torch.testing.assert_close(step["source_ce"]["code"], alone[1].mean().detach())
    assert torch.isnan(step["source_ce"]["web"])


def test_coverage_and_alpha_of_a_teacher_count_its_own_domains_alone(make: MakeModule) -> None:
    module = with_domains(make(StaticWeighting()))
    parts = [windows_of(module, number) for number in (0, 1)]
    both: Any = module.training_step(batch_of([window for part in parts for window in part]), 0)
    alone: Any = module.training_step(batch_of(parts[0]), 0)
    torch.testing.assert_close(both["span_coverage"]["other"], alone["span_coverage"]["other"])
    assert float(both["alpha"]["other"]) == pytest.approx(0.3)
    assert float(both["alpha"]["same"]) == pytest.approx(0.6)


@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize("kind", [ConfidenceWeighting, MostConfidentTeacher])
def test_adaptive_weights_of_a_domain_are_those_of_the_domain_alone(make: MakeModule, kind: Any, scope: Scope) -> None:
    module = with_domains(make(kind("entropy", scope=scope)))
    parts = [windows_of(module, number) for number in range(3)]
    found = weights_of(module, batch_of([window for part in parts for window in part]))
    batches = [batch_of(part) for part in parts]
    lengths = [len(batch.student.labels) for batch in batches]
    for name in NAMES:
        expected = [weights_of(module, batch)[name].expand(n) for batch, n in zip(batches, lengths, strict=True)]
        torch.testing.assert_close(found[name], torch.cat(expected), rtol=0, atol=1e-12)
    of_math = torch.stack([found[name][: lengths[0]] for name in NAMES])
    assert (of_math[1] == 0).all()
    assert set(of_math[0].unique().tolist()) <= {0.0, 1.0}  # the only teacher of the domain; 0 in no span


def test_priors_of_adaptive_weights_are_those_of_the_source(make: MakeModule) -> None:
    module = with_domains(make(ConfidenceWeighting(sharpness=0.0)))
    weights = weights_of(module, batch_of(windows_of(module, 2)))
    assert {name: float(weight[0]) for name, weight in weights.items()} == pytest.approx({"other": 0.2, "same": 0.8})


def test_a_sequence_is_shown_with_the_teachers_that_teach_on_it(make: MakeModule) -> None:
    module = with_domains(make(StaticWeighting()))
    math, code = windows_of(module, 0), windows_of(module, 1)
    for windows, teachers in (([*code, *math], ["same"]), ([*math, *code], ["other"])):
        sample = first_sequence(batch_of(windows))
        predictions = predict(module, sample, num_spans=3, top_k=2)
        assert list(predictions) == teachers
        inspected = Inspection.from_batch("", sample.only(predictions), *module.vocabularies())
        alone = Inspection.from_batch("", first_sequence(batch_of(windows[:1])).only(teachers), *module.vocabularies())
        assert inspected.teachers[teachers[0]].cells == alone.teachers[teachers[0]].cells
        of_window = Inspection.from_window("", windows[0], *module.vocabularies())
        assert list(of_window.teachers) == teachers


def test_numerals_are_measured_without_a_teacher_that_has_no_span(make: MakeModule) -> None:
    module = with_domains(make(StaticWeighting())).eval()
    monitor = NumeralMonitor()
    monitor.check_module(module)
    values = monitor._measure(module, batch_of(windows_of(module, 1, "10 + 20 = 30, 1990 and 2000")))
    assert len(values["count"]) > 0
    assert (values["kd_gradient/other"] == 0).all()
    assert (values["kd_gradient/same"] != 0).any()


def measured(module: MultiTeacherDistillModule, batches: list[DistillBatch]) -> dict[str, float]:
    module.eval()
    metrics = module.validation_metrics
    with torch.no_grad():
        for batch in batches:
            metrics.add(module.score(batch), module.student_num_bytes[batch.student.labels], batch)
    return {tag: float(cast(Any, metric).compute()) for tag, metric in metrics.items()}


def test_metrics_of_a_source_are_those_of_its_texts_alone(make: MakeModule) -> None:
    module = with_domains(make(StaticWeighting()))
    parts = [windows_of(module, number) for number in range(3)]
    mixed = [batch_of([*parts[0], *parts[1]]), batch_of(parts[2])]
    found = measured(module, mixed)
    for part, domain in zip(parts, DOMAINS, strict=True):
        alone = measured(with_domains(module, [domain] * 3), [batch_of(part)])
        own = {tag: value for tag, value in found.items() if tag.startswith(f"{domain.source}/")}
        assert own == pytest.approx({tag: alone[tag] for tag in own})
        assert {tag.split("/")[-1] for tag in own} == {"bits_per_byte", "ce", *domain.alphas}
    with_domains(module)
    total = measured(module, [batch_of(part) for part in parts])
    assert total == pytest.approx(found)


def test_a_teacher_that_teaches_on_no_validation_text_has_no_metric(make: MakeModule) -> None:
    metrics = with_domains(make(StaticWeighting()), DOMAINS[:1]).validation_metrics
    assert {tag for tag, _ in metrics.items() if "kd" in tag} == {"kd/other", "math/kd/other"}


@pytest.mark.parametrize("loss", [ProjectionKL(), BytePrefixKL()])
def test_parameters_of_a_loss_without_a_span_have_a_gradient_of_zero(tmp_path: Path, loss: Any) -> None:
    """DDP waits for the gradient of every parameter."""
    learn = isinstance(loss, ProjectionKL)
    model: Any = {"dtype": "float64", "model": write_model(tmp_path / "m", packing_tokenizer(), seed=1)}
    other: Any = {"dtype": "float64", "model": write_model(tmp_path / "o", reversing_tokenizer(), seed=2)}
    teachers = {"other": Teacher(**other, loss=loss, learn_projection=learn), "same": Teacher(**model)}
    module = MultiTeacherDistillModule(Student(**model), teachers)
    module.setup("fit")
    module.configure_model()
    with_domains(module)
    step: Any = module.training_step(batch_of(windows_of(module, 1)), 0)
    step["loss"].backward()
    assert all((weight.grad == 0).all() for weight in module.losses.parameters())
    assert len(list(module.losses.parameters())) == learn
    assert step["teacher_kd"]["other"] == 0
