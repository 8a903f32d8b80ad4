"""A mixture of texts, conversations and tool calls with a teacher for each domain, from YAML alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import pytest
import torch
import yaml
from accumulated_runs import parameters
from logged import scalars
from mixture_runs import (
    CONFIG,
    SOURCES,
    TEACHING,
    Recorder,
    assert_close,
    assert_same_scalars,
    data_of,
    expected_runs,
    inside,
    sources_of,
    student_tokenizer,
    total,
    train,
    write_models,
    write_sources,
    write_workspace,
)
from small_models import write_neox

from xtoken_pl import (
    BytePrefixKL,
    ConfidenceWeighting,
    MultiTeacherDistillModule,
    OptimizerRecipe,
    ProjectionKL,
    Student,
    Teacher,
)
from xtoken_pl.callbacks import AlignmentMonitor, TeacherMonitor
from xtoken_pl.cli import main
from xtoken_pl.weighting.confidence import Scope


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def whole(workspace: Path) -> Path:
    """The logs of a run of one process."""
    return train(workspace, "whole")


@pytest.mark.filterwarnings("default")
def test_sources_that_a_limit_leaves_out_of_validation_are_named(workspace: Path) -> None:
    short = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--trainer.limit_val_batches"]
    # Batches of 4 windows: of 6 chats, 12 texts and 6 tools, in the order of the file.
    with pytest.warns(
        UserWarning, match=r"limit_val_batches ends before .* data\.val: texts, tools\. Their values are"
    ):
        train(workspace, "one", *short, "0.2")  # one of six; the command line of Lightning 2.6.0 reads 1 as all
    with pytest.warns(UserWarning, match=r"limit_val_batches ends before .* data\.val: tools\."):
        train(workspace, "four", *short, "4")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*limit_val_batches ends before.*")
        train(workspace, "five", *short, "5")


# One process ----------------------------------------------------------------------------------------------------------


def test_every_source_and_every_teacher_is_logged_where_it_takes_part(whole: Path) -> None:
    tags = scalars(whole)
    for tag in ("train/loss", "train/ce", "train/kd", "train/kd/split", "train/kd/same"):
        assert len(tags[tag]) == 12
    assert tags["train/loss"][-1] < tags["train/loss"][0]
    shares = [tags[f"data/share/{source}"] for source in SOURCES]
    assert {tag for tag in tags if tag.startswith("data/share/")} == {f"data/share/{source}" for source in SOURCES}
    assert [sum(step) for step in zip(*shares, strict=True)] == pytest.approx([1] * 12)
    assert all(max(share) > 0 for share in shares)
    for source, teachers in TEACHING.items():
        assert {tag.rsplit("/", 1)[1] for tag in tags if tag.startswith(f"val/{source}/kd/")} == teachers
        for tag in ("bits_per_byte", "ce", *(f"kd/{name}" for name in teachers)):
            assert all(value > 0 for value in tags[f"val/{source}/{tag}"])
    assert {"val/bits_per_byte", "val/ce", "val/kd/split", "val/kd/same"} <= tags.keys()
    # A teacher teaches on one source alone: its total is that of the source.
    assert tags["val/kd/split"] == tags["val/texts/kd/split"]


def test_a_cache_of_one_teacher_stands_for_it(workspace: Path) -> None:
    fixed = ["--model.teachers.split.learn_projection", "false"]
    live = train(workspace, "live", *fixed)
    with inside(workspace):
        stored = ["--output", "cache", "--top_k", "all", "--precision", "32"]
        main(["cache", "--config", "config.yaml", "--teacher", "split", *stored])
    cached = train(workspace, "cached", *fixed, "--model.teachers.split.cache", "cache")
    assert_same_scalars(scalars(cached), scalars(live))


def test_a_single_source_with_a_name_gives_the_losses_of_one_without(workspace: Path) -> None:
    config = deepcopy(CONFIG)
    del config["model"]["teachers"]["same"]
    found = []
    for name, train_on in (("named", {"texts": SOURCES["texts"]}), ("unnamed", SOURCES["texts"])):
        config["data"] |= {"train": train_on, "val": train_on}
        (workspace / f"{name}.yaml").write_text(yaml.safe_dump(config))
        tags = scalars(train(workspace, name, config=f"{name}.yaml"))
        found.append({tag: values for tag, values in tags.items() if tag.startswith("train/") or tag == "val/ce"})
    assert len(found[0]["train/loss"]) == 6
    assert found[0] == found[1]


# Windows, batches and gradients ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, of which the student computes in double precision throughout, and epochs of 64 windows."""
    folder = tmp_path_factory.mktemp("mixture")
    write_models(folder)
    write_neox(folder / "neox", student_tokenizer(), max_position_embeddings=300)
    write_sources(folder, num=16)
    return folder


def teachers_of(folder: Path) -> dict[str, Teacher]:
    """A teacher for each of two losses, one of which reads all rows of the teacher."""
    return {
        "split": Teacher(model=str(folder / "split"), loss=ProjectionKL(), alpha=0.3, dtype="float64"),
        "same": Teacher(model=str(folder / "same"), loss=BytePrefixKL(), alpha=0.7, dtype="float64"),
    }


def fit(
    folder: Path, batch_size: int, num_batches: int, sources: Any = None, **options: Any
) -> tuple[MultiTeacherDistillModule, Recorder]:
    pl.seed_everything(0, verbose=False)
    student = Student(model=str(folder / "neox"), dtype="float64")
    recipe = OptimizerRecipe(learning_rate=3e-3, warmup_fraction=0.0)
    module = MultiTeacherDistillModule(student, teachers_of(folder), optimizer=recipe, **options)
    data = data_of(folder, batch_size, sources=sources)
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=num_batches,
        gradient_clip_val=1.0,
        logger=False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[TeacherMonitor(), AlignmentMonitor(), recorder],
    )
    trainer.fit(module, data)
    return module, recorder


@pytest.fixture(scope="module")
def fitted(folder: Path) -> Callable[[int, int], tuple[MultiTeacherDistillModule, Recorder]]:
    """Four steps of 32 windows, cut into batches; computed when they are asked for."""
    return cache(lambda batch_size, num_batches: fit(folder, batch_size, num_batches))


@pytest.mark.parametrize(("batch_size", "num_batches"), [(16, 2), (4, 8), (1, 32)])
def test_losses_and_gradients_do_not_depend_on_how_a_step_is_cut(
    fitted: Any, batch_size: int, num_batches: int
) -> None:
    """``split`` teaches half of the windows: some batches have none of its own."""
    whole, expected = fitted(32, 1)
    module, found = fitted(batch_size, num_batches)
    assert module.global_step == whole.global_step == 4
    assert_close(found.steps, expected.steps, 1e-10)
    assert_close(found.gradients, expected.gradients, 1e-10)
    assert_close(parameters(module), parameters(whole), 1e-10)
    assert {"train/kd/split", "train/kd/same", "data/share/tools"} < expected.steps[0].keys()


@pytest.mark.parametrize(("batch_size", "num_batches"), [(32, 1), (4, 8), (1, 32)])
def test_a_teacher_reads_its_own_windows_alone_and_is_not_run_without_any(
    fitted: Any, batch_size: int, num_batches: int
) -> None:
    _, found = fitted(batch_size, num_batches)
    assert total(found.windows) == {"texts": 64, "chats": 32, "tools": 32}  # two epochs of 2 to 1 to 1
    assert found.num_runs == expected_runs(found.windows, TEACHING)
    assert found.num_read == {"split": 64, "same": 64}
    if batch_size == 1:
        assert found.num_runs == {"split": 64, "same": 64}


# Adaptive weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", get_args(Scope))
def test_adaptive_weights_sum_to_one_over_the_teachers_of_each_domain(folder: Path, scope: Scope) -> None:
    """Texts have both teachers, conversations one of them each."""
    teaching = {"texts": {"split", "same"}, "chats": {"split"}, "tools": {"same"}}
    given = sources_of(folder)
    sources = {name: replace(given[name], teachers=sorted(own), alphas=None) for name, own in teaching.items()}
    weighting = ConfidenceWeighting(scope=scope, sharpness=0.5)
    shared: set[float] = set()

    def check(_: Any, arguments: Any, weights: dict[str, torch.Tensor]) -> None:
        views = arguments[0]
        covered = {name: view.spans.student_span < len(view.spans) for name, view in views.items()}  # [N]
        rows = next(iter(views.values())).row_domain  # [N]
        for number in rows.unique().tolist():
            inside = rows == number
            own = {name for name, view in views.items() if view.takes_part[number]}
            assert own == teaching[list(sources)[number]]
            given = {name: weight.expand(len(rows))[inside] for name, weight in weights.items()}
            assert all((given[name] == 0).all() for name in given.keys() - own)
            taught = torch.stack([covered[name][inside] for name in own]).any(0)
            sums = torch.stack([given[name] for name in own]).sum(0)[taught]
            torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-12)
            shared.update(given["split"][taught].tolist() if len(own) == 2 else [])

    weighting.register_forward_hook(check)
    _, found = fit(folder, 16, 2, sources, weighting=weighting)
    assert found.num_read == {"split": 96, "same": 96}
    assert any(0.1 < weight < 0.9 for weight in shared)
