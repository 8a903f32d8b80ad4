"""SpanKindMonitor logs the gradients of the kinds of spans, and training does not notice."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from adapted_students import student_of
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from small_models import packing_tokenizer, write_model
from span_kind_runs import Recorder, fit, write_models_and_texts
from started_helpers import run_helper

from xtoken_pl import MultiTeacherDistillModule, SpanLoss, Student, Teacher
from xtoken_pl.batch import SPAN_KINDS, DistillBatch
from xtoken_pl.callbacks import DynamicLossScaling, SpanKindMonitor
from xtoken_pl.losses import RowContent, SpanBlock, SpanScores
from xtoken_pl.rollouts import Rollouts
from xtoken_pl.training.refused_callbacks import check_callbacks
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models_and_texts(folder)
    return folder


class KeepsBatches(pl.Callback):
    """Keeps the batches of a run."""

    def __init__(self) -> None:
        self.batches: list[DistillBatch] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: DistillBatch, index: int) -> None:
        self.batches.append(batch)


def by_hand(module: MultiTeacherDistillModule, batch: DistillBatch) -> dict[str, float]:
    """The logged values, from the module's own losses and one gradient of each mean."""
    trained = [parameter for parameter in module.student.parameters() if parameter.requires_grad]
    values: dict[str, float] = {}
    for name, scores in module.train().score(batch).spans.items():
        spans, means = batch.teachers[name].spans, {}
        kinds = [
            ("one" if student == 1 else "many") + "_to_" + ("one" if teacher == 1 else "many")
            for student, teacher in zip(spans.student_length.tolist(), spans.teacher_length.tolist(), strict=True)
        ]
        for kind in SPAN_KINDS:
            wanted = torch.tensor([own == kind for own in kinds])
            values[f"span_kinds/{name}/{kind}/share"] = wanted.double().mean().item()
            if wanted.any():
                parts = torch.autograd.grad(
                    scores.loss[wanted].mean(), trained, retain_graph=True, materialize_grads=True
                )
                means[kind] = torch.cat([part.flatten() for part in parts])
                values[f"span_kinds/{name}/{kind}/norm"] = means[kind].norm().item()
        for kind, gradient in means.items():
            if kind != "one_to_one":
                cosine = torch.cosine_similarity(gradient, means["one_to_one"], dim=0)
                values[f"span_kinds/{name}/{kind}/cosine"] = cosine.item()
    return values


def test_values_are_those_of_a_hand_computation(folder: Path) -> None:
    kept = KeepsBatches()
    module, recorder = fit(folder, SpanKindMonitor(every_n_steps=2), kept, dtype="float64")
    assert recorder.values[0] == {}
    expected = by_hand(module, kept.batches[-1])
    assert len([tag for tag in expected if tag.endswith("cosine")]) == 6  # all kinds of two teachers
    assert "span_kinds/same/one_to_one/norm" in expected
    assert recorder.values[1] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    cosines = [value for tag, value in expected.items() if tag.endswith("cosine")]
    assert max(cosines) - min(cosines) > 0.05


def test_the_last_batch_of_a_step_is_measured_under_accumulation(folder: Path) -> None:
    kept = KeepsBatches()
    options: dict[str, Any] = {"dtype": "float64", "batch_size": 2, "accumulate_grad_batches": 2, "max_steps": 1}
    module, recorder = fit(folder, SpanKindMonitor(every_n_steps=1), kept, **options)
    assert recorder.values[0] == {}
    assert recorder.values[1] == pytest.approx(by_hand(module, kept.batches[1]), rel=1e-5, abs=1e-6)


class FirstLogProb(SpanLoss):
    """Log-probability of one token at the first row of a span, whatever the teacher says."""

    def forward(self, block: SpanBlock) -> SpanScores:
        loss = block.student.first_rows()[:, 5]
        return SpanScores(loss, torch.zeros_like(loss.detach()), None)

    @property
    def row_needs(self) -> RowContent:
        return RowContent("span_starts")


def test_kinds_whose_gradients_agree_have_a_cosine_of_1(folder: Path) -> None:
    """A student that reads the same from all tokens is in the same state everywhere, and so is its gradient."""
    options: dict[str, Any] = {"dtype": "float64", "max_steps": 1}

    class AllTokensAlike(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            embedding = pl_module.student.get_input_embeddings().weight.requires_grad_(False)
            embedding.copy_(embedding[:1].expand_as(embedding))
            pl_module.losses["prefix"] = FirstLogProb()

    _, recorder = fit(folder, AllTokensAlike(), SpanKindMonitor(every_n_steps=1, teachers=["prefix"]), **options)
    values = recorder.values[-1]
    norm = values["span_kinds/prefix/one_to_one/norm"]
    assert norm > 0
    for kind in SPAN_KINDS[1:]:
        assert values[f"span_kinds/prefix/{kind}/cosine"] == pytest.approx(1, abs=1e-6)
        assert values[f"span_kinds/prefix/{kind}/norm"] == pytest.approx(norm, rel=1e-6)
    assert {tag.split("/")[1] for tag in values} == {"prefix"}


CUTS = {"whole": {}, "accumulated": {"batch_size": 1, "accumulate_grad_batches": 4}}


# With accumulation, gradients of earlier batches are there; how a step is cut and its precision have nothing in common.
@pytest.mark.parametrize(
    ("precision", "cut"), [("32-true", "whole"), ("bf16-mixed", "accumulated"), ("bf16-true", "accumulated")]
)
def test_training_is_unchanged_by_the_monitor(folder: Path, precision: Any, cut: str) -> None:
    options: dict[str, Any] = {"student": "with_dropout", "precision": precision, **CUTS[cut]}
    plain, expected = fit(folder, DynamicLossScaling(), **options)
    watched, found = fit(folder, DynamicLossScaling(), SpanKindMonitor(every_n_steps=1), **options)
    assert any(found.values)
    assert_same(plain, expected, watched, found)


def assert_same(plain: Any, expected: Recorder, watched: Any, found: Recorder) -> None:
    torch.testing.assert_close(found.steps, expected.steps, rtol=0, atol=0)
    for mine, theirs in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_adapter_is_measured_in_its_own_parameters(folder: Path, precision: Any) -> None:
    runs = []
    for callbacks in ([], [SpanKindMonitor(every_n_steps=1)]):
        pl.seed_everything(0, verbose=False)
        options: dict[str, Any] = {"student": student_of(folder), "precision": precision}
        runs.append(fit(folder, *callbacks, **options))
    assert_same(*runs[0], *runs[1])
    norms = [value for tag, value in runs[1][1].values[-1].items() if tag.endswith("norm")]
    assert len(norms) == 9
    assert all(value > 0 for value in norms)


def test_recomputed_activations_have_the_same_gradients(folder: Path) -> None:
    _, expected = fit(folder, SpanKindMonitor(every_n_steps=1))
    checkpointed = Student(model=str(folder / "student"), activation_checkpointing=True)
    _, found = fit(folder, SpanKindMonitor(every_n_steps=1), student=checkpointed)
    assert found.values[-1] == pytest.approx(expected.values[-1], rel=1e-4, abs=1e-5)


def test_what_the_student_has_written_is_measured_in_an_on_policy_step(folder: Path) -> None:
    rollouts = {"rollouts": Rollouts(share=1.0, max_new_tokens=12, prompt_bytes=12)}
    options: dict[str, Any] = {"dtype": "float64", "module_options": rollouts}
    plain, expected = fit(folder, **options)
    module, recorder = fit(folder, SpanKindMonitor(every_n_steps=2), **options)
    assert_same(plain, expected, module, recorder)
    batch = module.last_written_batch
    assert batch.is_rollout
    assert recorder.values[1] == pytest.approx(by_hand(module, batch), rel=1e-5, abs=1e-6)


def test_a_value_is_written_once_at_the_step_that_was_measured(folder: Path, tmp_path: Path) -> None:
    fit(folder, SpanKindMonitor(every_n_steps=2), Loss(), logger=CSVLogger(tmp_path, "", ""), max_steps=5)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    written = [(row["step"], bool(row["span_kinds/prefix/many_to_one/cosine"])) for row in rows]
    assert written == [("0", False), ("1", True), ("2", False), ("3", True), ("4", False)]


class Loss(pl.Callback):
    """Logs something in every step."""

    def on_train_batch_end(self, trainer: Any, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        pl_module.log("total", outputs["total"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_log_what_one_does_and_train_as_without(folder: Path, strategy: str) -> None:
    run_helper("span_kind_runs", strategy, folder)
    found = torch.load(folder / f"{strategy}.pt")
    _, expected = fit(folder, DynamicLossScaling(), SpanKindMonitor(every_n_steps=1))
    for name, weights in found["plain"].items():
        assert torch.equal(found["watched"][name], weights), name
    for mine, once, again in zip(expected.values, found["values"], found["checkpointed"], strict=True):
        assert once == pytest.approx(mine, rel=1e-3, abs=1e-4)
        assert again == pytest.approx(mine, rel=1e-3, abs=1e-4)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_options_that_measure_nothing_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every_n_steps must be >= 1, got 0; remove the callback"):
        SpanKindMonitor(every_n_steps=0)
    model = write_model(tmp_path, packing_tokenizer())
    module = MultiTeacherDistillModule(Student(model=model), {"phi": Teacher(model=model)})
    with pytest.raises(UserError, match=r"must be teachers of the run, got 'phy'; did you mean phi\?"):
        SpanKindMonitor(teachers=["phy"]).check_module(module)


def test_strategies_whose_gradients_it_cannot_add_up_are_refused_before_texts_are_read() -> None:
    with pytest.raises(UserError, match="of one device, DDP, or FSDP2, and the strategy is object; remove"):
        SpanKindMonitor().check_trainer(cast(Any, SimpleNamespace(strategy=object())))
    # By the module's first hook of a run, when the processes are not connected yet.
    split = cast(Any, SimpleNamespace(strategy=ModelParallelStrategy(1, 2), callbacks=[SpanKindMonitor()]))
    split.state = SimpleNamespace(fn="validate")
    check_callbacks(split)
    split.state.fn = "fit"
    with pytest.raises(UserError, match=r"split over processes \(tensor_parallel_size > 1\); remove"):
        check_callbacks(split)


def test_charts_name_the_tags_that_are_logged(folder: Path) -> None:
    monitor = SpanKindMonitor(every_n_steps=1)
    module, recorder = fit(folder, monitor, max_steps=1)
    drawn = {tag for chart in monitor.charts(module)["Span kinds"].values() for tag in chart}
    assert recorder.values[-1].keys() <= drawn
