"""Teachers that are adapters on one model train a student as they do when each is loaded alone, merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from architecture_steps import write_adapters
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl import (
    BytePrefixKL,
    DistillDataModule,
    MultiTeacherDistillModule,
    ProjectionKL,
    Rollouts,
    SpanLoss,
    Student,
    Teacher,
    TextSource,
)
from xtoken_pl.cli.cache import CacheOptions, build_cache
from xtoken_pl.utilities.errors import UserError

#: Name of the teacher -> its adapter.
TEACHERS = {"first": "first", "plain": None, "second": "second"}
NUM_STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    write_model(root / "student", packing_tokenizer(), seed=1)
    write_model(root / "teacher", splitting_tokenizer(), seed=2)
    write_adapters(root)
    for split, texts in (("train", TEXTS[: 2 * NUM_STEPS]), ("val", TEXTS[20:22])):
        (root / f"{split}.jsonl").write_text("".join(json.dumps({"text": text[:90]}) + "\n" for text in texts))
    return root


def merged(folder: Path, loss: SpanLoss) -> dict[str, Teacher]:
    """The teachers as models of their own."""
    paths = {name: folder / (f"{adapter}_merged" if adapter else "teacher") for name, adapter in TEACHERS.items()}
    return {name: Teacher(model=str(path), loss=loss, alpha=0.4) for name, path in paths.items()}


def shared(folder: Path, loss: SpanLoss, **options: Any) -> dict[str, Teacher]:
    """The teachers as adapters on one model."""
    model = str(folder / "teacher")
    return {
        name: Teacher(model=model, adapter=adapter and str(folder / adapter), loss=loss, alpha=0.4, **options)
        for name, adapter in TEACHERS.items()
    }


def data_of(folder: Path) -> DistillDataModule:
    train, val = (TextSource(path=str(folder / f"{split}.jsonl")) for split in ("train", "val"))
    return DistillDataModule(train, val, sequence_length=48, batch_size=2, num_workers=0)


class Steps(pl.Callback):
    """The losses of every step, and of the validation behind it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        by_teacher = {f"kd/{name}": float(value) for name, value in outputs["teacher_kd"].items()}
        self.seen.append({"total": float(outputs["total"]), **by_teacher})

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append({tag: float(value) for tag, value in trainer.callback_metrics.items() if "val/" in tag})


def train(folder: Path, teachers: dict[str, Teacher], rollouts: Rollouts | None = None) -> list[dict[str, float]]:
    pl.seed_everything(1, verbose=False)
    module = MultiTeacherDistillModule(Student(model=str(folder / "student")), teachers, rollouts=rollouts)
    module.optimizer_recipe = type(module.optimizer_recipe)(learning_rate=1e-3, warmup_fraction=0.0)
    steps = Steps()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=NUM_STEPS,
        val_check_interval=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[steps],
    )
    trainer.fit(module, data_of(folder))
    return steps.seen


def assert_same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(expected) == NUM_STEPS + 2
    first = expected[0]
    assert len({round(first[f"kd/{name}"], 4) for name in TEACHERS}) == 3  # the adapters matter
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


RUNS: dict[str, tuple[Callable[[], SpanLoss], dict[str, Any], Rollouts | None]] = {
    "offloaded": (ProjectionKL, {"cpu_offload": True}, None),
    "on-policy": (ProjectionKL, {}, Rollouts(share=0.5, max_new_tokens=12, prompt_bytes=12)),
    "with lookahead": (lambda: BytePrefixKL(lookahead=0.004), {}, None),
}


@pytest.fixture(scope="module")
def of_their_own(folder: Path) -> list[dict[str, float]]:
    """The losses of teachers that are models of their own."""
    return train(folder, merged(folder, ProjectionKL()))


def test_a_run_has_the_losses_of_teachers_of_their_own(folder: Path, of_their_own: list[dict[str, float]]) -> None:
    assert_same(train(folder, shared(folder, ProjectionKL())), of_their_own)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_other_runs_have_the_losses_of_teachers_of_their_own(folder: Path, run: str) -> None:
    loss, options, rollouts = RUNS[run]
    expected = train(folder, merged(folder, loss()), rollouts)
    assert_same(train(folder, shared(folder, loss(), **options), rollouts), expected)


def test_a_cache_holds_a_teacher_with_its_adapter(
    folder: Path, tmp_path: Path, of_their_own: list[dict[str, float]]
) -> None:
    teachers = shared(folder, ProjectionKL())
    module = MultiTeacherDistillModule(Student(model=str(folder / "student")), teachers)
    options = CacheOptions(teacher="first", output=str(tmp_path / "first"), top_k="all", precision=32)
    build_cache(module, data_of(folder), options)
    cached = replaced(teachers["first"], str(tmp_path / "first"))
    assert_same(train(folder, {**teachers, "first": cached}), of_their_own)  # the others share their model without it
    for name, adapter in (("plain", "without an adapter"), ("second", "with the adapter '.*second'")):
        wrong = {name: replaced(teachers[name], str(tmp_path / "first"))}
        with pytest.raises(UserError, match=f"of teacher '{name}' was built with weights .* that differ .* {adapter}"):
            train(folder, wrong)


def replaced(teacher: Teacher, cache: str) -> Teacher:
    options = {"model": teacher.model, "adapter": teacher.adapter, "loss": teacher.loss, "alpha": teacher.alpha}
    return Teacher(**options, cache=cache)
