"""Predictions and monitors of a cached or served teacher are those of the live teacher with the same rows."""

from __future__ import annotations

from typing import Any, get_args

import lightning.pytorch as pl
import pytest
from inspected import make_module, windows_of, write_models
from known_teachers import served_module, with_known_rows
from numeral_runs import SUMS

from xtoken_pl import BytePrefixKL, MultiTeacherDistillModule, ProjectionKL
from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks import NumeralMonitor, SpanKindMonitor
from xtoken_pl.data import collate
from xtoken_pl.inspection import first_sequence, predict
from xtoken_pl.losses import RowKind

TEACHERS = {"same": ("same", {"loss": ProjectionKL()}), "split": ("split", {"loss": ProjectionKL()})}
BYTES = {"split": ("split", {"loss": BytePrefixKL()})}
CASES = [*((TEACHERS, kind) for kind in get_args(RowKind)), (BYTES, "all")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_models(tmp_path_factory.mktemp("models"))


def batch_of(module: MultiTeacherDistillModule, *texts: str) -> DistillBatch:
    return collate(windows_of(*module.vocabularies(), *texts), list(module.teachers))


@pytest.mark.parametrize(("teachers", "kind"), CASES)
def test_predictions_are_those_of_the_live_teacher(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, teachers: dict[str, Any], kind: RowKind
) -> None:
    live = make_module(folders, **teachers)
    module, texts = served_module(live, monkeypatch), ("Numbers 12345 and 678.\n", "another text behind it")
    batch = with_known_rows(live, batch_of(live, *texts), kind)
    options = {"num_spans": 4, "top_k": 3}
    expected = predict(live, batch_of(live, texts[0]), **options)
    found = predict(module, first_sequence(batch), **options)
    assert found.keys() == expected.keys() == teachers.keys()
    for name, ours in found.items():
        theirs = expected[name]
        assert ours.is_projected == theirs.is_projected
        assert ours.losses == pytest.approx(theirs.losses, abs=1e-5)
        for span, other in zip(ours.spans, theirs.spans, strict=True):
            assert [c.token for c in span.teacher] == [c.token for c in other.teacher]
            assert [c.probability for c in span.teacher] == pytest.approx(
                [c.probability for c in other.teacher], abs=1e-5
            )


@pytest.mark.parametrize(("teachers", "kind"), CASES)
def test_gradients_on_numerals_are_those_of_the_live_teacher(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, teachers: dict[str, Any], kind: RowKind
) -> None:
    live = make_module(folders, **teachers)
    batch = batch_of(live, *SUMS)
    found = _measured(served_module(live, monkeypatch), with_known_rows(live, batch, kind))
    expected = _measured(live, batch)
    assert found["count"] > 0
    assert any(value for tag, value in expected.items() if tag.startswith("kd_gradient/"))
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("teachers", "kind"), CASES)
def test_gradients_of_kinds_of_spans_are_those_of_the_live_teacher(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, teachers: dict[str, Any], kind: RowKind
) -> None:
    live = make_module(folders, **teachers)
    batch = batch_of(live, *SUMS)
    found = _gradients_of_kinds(served_module(live, monkeypatch), with_known_rows(live, batch, kind))
    expected = _gradients_of_kinds(live, batch)
    assert any(tag.endswith("cosine") for tag in expected)
    assert found == pytest.approx(expected, abs=1e-3)


def _gradients_of_kinds(module: MultiTeacherDistillModule, batch: DistillBatch) -> dict[str, float]:
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    values = SpanKindMonitor()._measure(trainer, module.train(), batch)
    return {tag: value.item() for tag, value in values.items()}


def _measured(module: MultiTeacherDistillModule, batch: DistillBatch) -> dict[str, float]:
    monitor = NumeralMonitor()
    monitor.check_module(module)
    return {tag: float(values.sum()) for tag, values in monitor._measure(module, batch).items()}
