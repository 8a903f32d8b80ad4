"""Checks before a run know the sources of a mixture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from small_models import packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TextSource
from xtoken_pl.batch import Domain
from xtoken_pl.cli.idle_options import warn_of_idle_options
from xtoken_pl.cli.preflight import check_fit
from xtoken_pl.cli.run_summary import _alpha
from xtoken_pl.utilities.errors import UserError


def source(path: str = "a.jsonl", **options: Any) -> TextSource:
    return TextSource(path=path, **options)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> MultiTeacherDistillModule:
    root = tmp_path_factory.mktemp("models")
    student = Student(model=write_model(root / "student", packing_tokenizer()))
    path = write_model(root / "split", splitting_tokenizer())
    return MultiTeacherDistillModule(
        student,
        {
            "split": Teacher(model=path, loss=ProjectionKL(), alpha=0.0, learn_projection=True),
            "other": Teacher(model=path, loss=ProjectionKL()),
        },
    )


def test_a_source_that_is_learned_and_measured_is_named() -> None:
    data = DistillDataModule(
        {"math": source("m.jsonl", weight=2, alphas={"a": 1}), "code": source("c.jsonl", weight=1)},
        {"new": source("n.jsonl"), "old": source("m.jsonl")},
    )
    with pytest.warns(UserWarning, match=r"data\.val\.old names the texts of data\.train\.math: validation"):
        warn_of_idle_options(pl.LightningModule(), data)


def test_a_projection_is_learned_where_a_source_gives_its_teacher_an_alpha(
    module: MultiTeacherDistillModule, recwarn: pytest.WarningsRecorder
) -> None:
    warn_of_idle_options(module, DistillDataModule({"a": source(alphas={"split": 0.5}), "b": source("b.jsonl")}))
    assert not [warning for warning in recwarn if "learn_projection" in str(warning.message)]
    with pytest.warns(UserWarning, match=r"split\.learn_projection has no effect: at alpha: 0"):
        warn_of_idle_options(module, DistillDataModule({"a": source(alphas={"other": 0.5})}))


def test_a_projection_is_learned_where_a_source_leaves_its_teacher_the_alpha_of_its_specification(
    module: MultiTeacherDistillModule, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.teachers, "split", replace(module.teachers["split"], alpha=1.0))
    sources = {"a": source(teachers=["split"]), "b": source("b.jsonl", alphas={"split": 0})}
    warn_of_idle_options(module, DistillDataModule(sources))
    assert not [warning for warning in recwarn if "learn_projection" in str(warning.message)]
    with pytest.warns(UserWarning, match=r"split\.learn_projection has no effect: at alpha: 0"):
        warn_of_idle_options(module, DistillDataModule({"a": source(teachers=["other"]), "b": sources["b"]}))


def test_a_source_whose_teachers_have_no_alpha_is_named(
    module: MultiTeacherDistillModule, recwarn: pytest.WarningsRecorder
) -> None:
    given = {"a": source(teachers=["split"]), "b": source(teachers=["split", "other"]), "c": source()}
    with pytest.warns(UserWarning, match=r"data\.train\.a is learned by cross-entropy alone, .* alpha 0: split; give"):
        warn_of_idle_options(module, DistillDataModule(given))
    recwarn.clear()
    warn_of_idle_options(module, DistillDataModule(given | {"a": source(alphas={"split": 1})}))
    assert not [warning for warning in recwarn if "cross-entropy" in str(warning.message)]


def check(module: MultiTeacherDistillModule, tmp_path: Path, callback: Callback, val: Any = None) -> None:
    val = val or {"math": source("m.jsonl"), "code": source("c.jsonl")}
    data = DistillDataModule(source(), val, sequence_length=64)
    trainer = pl.Trainer(max_steps=1, callbacks=[callback], logger=False, default_root_dir=tmp_path)
    check_fit(trainer, module, data)


def test_values_of_a_source_can_be_monitored(module: MultiTeacherDistillModule, tmp_path: Path) -> None:
    check(module, tmp_path, ModelCheckpoint(monitor="val/math/bits_per_byte"))
    with pytest.raises(
        UserError, match=r"must be a tag .* got 'val/math/bits_per_bite'; did you mean val/math/bits_per_"
    ):
        check(module, tmp_path, ModelCheckpoint(monitor="val/math/bits_per_bite"))
    with pytest.raises(UserError, match=r"mode must be max for 'val/code/top1_agreement/split'"):
        check(module, tmp_path, EarlyStopping(monitor="val/code/top1_agreement/split"))


def test_a_value_of_a_teacher_is_not_monitored_where_it_does_not_teach(
    module: MultiTeacherDistillModule, tmp_path: Path
) -> None:
    val = {"math": source("m.jsonl", teachers=["other"]), "code": source("c.jsonl", alphas={"split": 1})}
    check(module, tmp_path, ModelCheckpoint(monitor="val/code/kd/split"), val)
    with pytest.raises(UserError, match=r"got 'val/math/kd/split'; did you mean val/"):
        check(module, tmp_path, ModelCheckpoint(monitor="val/math/kd/split"), val)
    with pytest.raises(UserError, match=r"got 'val/kd/split'; did you mean val/"):
        check(module, tmp_path, ModelCheckpoint(monitor="val/kd/split"), {"math": val["math"]})


def test_the_summary_gives_alphas_by_source() -> None:
    domains = [Domain("math", {"a": None, "b": 0.5}), Domain("code", {"a": None}), Domain("web", {"a": None, "b": 2})]
    assert _alpha("a", 1.0, domains) == "alpha 1"
    assert _alpha("b", 1.0, domains) == "alpha 0.5 on math, alpha 2 on web"
    assert _alpha("a", 0.3, [Domain("", {"a": None})]) == "alpha 0.3"
