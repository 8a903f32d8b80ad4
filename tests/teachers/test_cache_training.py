"""Training from a cache of a teacher gives the losses of training with the teacher, without its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cached_teachers import data_of, module_of, set_up, split_teacher
from lightning.pytorch.plugins import HalfPrecision
from small_models import splitting_tokenizer

from xtoken_pl import (
    BPM,
    ESCD,
    GOLD,
    ULD,
    BytePrefixKL,
    ConfidenceWeighting,
    HybridKL,
    OptimizerRecipe,
    ProjectionKL,
    SpanLoss,
    Teacher,
    TokenKL,
)
from xtoken_pl.batch import NO_WINDOW, DistillBatch
from xtoken_pl.losses import Divergence, RowKind


class Recorder(pl.Callback):
    """Keeps every number of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        flat = {key: value for key, value in outputs.items() if not isinstance(value, dict)}
        for key in ("alpha", "teacher_kd", "span_coverage", "unmapped_mass"):
            flat |= {f"{key}/{name}": value for name, value in outputs[key].items()}
        self.steps.append({key: float(value) for key, value in flat.items()})


def fit(root: Path, teachers: dict[str, Teacher], **options: Any) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Every number of 12 steps, and of the validation after them."""
    pl.seed_everything(0)
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=12, limit_val_batches=2, num_sanity_val_steps=0, callbacks=[recorder],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = module_of(root, teachers, optimizer=OptimizerRecipe(learning_rate=1e-2), **options)
    trainer.fit(module, data_of(root))
    trainer.validate(module, data_of(root), verbose=False)
    return recorder.steps, {key: float(value) for key, value in trainer.callback_metrics.items()}


#: Loss and temperature of each teacher, and its model.
SPAN_START_LOSSES: dict[str, tuple[str, Any, float]] = {
    "token": ("same", TokenKL(), 1.0),
    "projection": ("split", ProjectionKL(), 1.0),
    "reverse": ("split", ProjectionKL(divergence="reverse"), 1.0),
    "hybrid": ("split", HybridKL(), 1.0),
    "gold": ("split", GOLD(), 1.0),
    "uld": ("split", ULD(), 1.0),
    "tempered": ("split", ProjectionKL(), 2.0),
}
#: Losses that read every row of a teacher.
ALL_ROW_LOSSES: dict[str, tuple[str, Any, float]] = {
    "token_mean": ("same", TokenKL(merge="mean"), 1.0),
    "projection_mean": ("split", ProjectionKL(merge="mean"), 1.0),
    "hybrid_mean": ("split", HybridKL(merge="mean"), 1.0),
    "gold_mean": ("split", GOLD(merge="mean"), 1.0),
    "uld_mean": ("split", ULD(merge="mean"), 1.0),
    "prefix": ("split", BytePrefixKL(), 1.0),
    "prefix_reverse": ("split", BytePrefixKL(divergence="reverse"), 1.0),
    "prefix_jensen_shannon": ("split", BytePrefixKL(divergence="jensen_shannon"), 1.0),
    "prefix_tempered": ("split", BytePrefixKL(), 2.0),
    "bpm": ("split", BPM(), 1.0),
    "escd": ("split", ESCD(), 1.0),
}


@pytest.mark.parametrize(
    ("rows", "measure"),
    [
        ("span_starts", "cross_entropy"),
        ("all", "cross_entropy"),
        pytest.param("all", "entropy", marks=pytest.mark.slow),
        pytest.param("all", "max_probability", marks=pytest.mark.slow),
    ],
)
def test_training_from_a_cache_of_everything_is_training_with_the_teachers(
    root: Path, stored: Callable[..., str], rows: RowKind, measure: Any
) -> None:
    every = {"rows": rows, "top_k": "all", "precision": 32}
    settings = SPAN_START_LOSSES | (ALL_ROW_LOSSES if rows == "all" else {})
    live, cached = (
        {
            name: Teacher(
                model=str(root / folder / model), loss=loss, temperature=temperature, alpha=alpha, cache=cache
            )
            for alpha, (name, (model, loss, temperature)) in enumerate(settings.items(), start=1)
            for cache in [stored(model, temperature, **every) if folder else None]
        }
        for folder in ("", "no_weights")
    )
    weighting = ConfidenceWeighting(measure, scope="sequence")
    steps, validated = fit(root, live, weighting=weighting)
    cached_steps, cached_validated = fit(root, cached, weighting=weighting)
    assert len(steps) == 12
    assert steps[-1]["ce"] < 0.9 * steps[0]["ce"]  # it learned, so that the gradients mattered
    for step, (expected, found) in enumerate(zip(steps, cached_steps, strict=True)):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7), step
    assert {f"val/kd/{name}" for name in settings} <= validated.keys()
    assert cached_validated == pytest.approx(validated, rel=1e-5)


def scored(root: Path, teacher: Teacher) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of every span of a batch of the validation texts, and the student's gradient."""
    module = module_of(root, {"t": teacher, "split": split_teacher(root)})
    data = set_up(module, data_of(root), "validate")
    module.configure_model()
    batch = next(iter(data.val_dataloader()))
    loss = module.score(batch).spans["t"].loss
    loss.sum().backward()
    gradient = module.student.lm_head.weight.grad
    assert gradient is not None
    return loss.detach(), gradient


@pytest.mark.parametrize(
    ("divergence", "temperature"), [("forward", 1.0), ("forward", 2.0), ("reverse", 1.0), ("jensen_shannon", 2.0)]
)
@pytest.mark.parametrize("kind", [BytePrefixKL, BPM, ESCD])
def test_k_stored_tokens_of_every_row_give_the_losses_of_prefixes_with_teacher_top_k(
    root: Path, stored: Callable[..., str], kind: Any, divergence: Divergence, temperature: float
) -> None:
    def gives(cache: str | None = None, **options: int) -> tuple[torch.Tensor, torch.Tensor]:
        loss = kind(divergence=divergence, **options)
        return scored(root, split_teacher(root, temperature=temperature, loss=loss, cache=cache))

    cache = stored("split", temperature, rows="all", top_k=20, precision=32)
    for ours, theirs in zip(gives(cache), gives(teacher_top_k=20), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(gives(cache)[0], gives()[0], rtol=1e-2)


@pytest.mark.parametrize("rows", ["span_starts", "all"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_k_stored_tokens_give_the_loss_with_teacher_top_k(
    root: Path, stored: Callable[..., str], temperature: float, rows: RowKind
) -> None:
    def gives(loss: TokenKL, cache: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return scored(root, Teacher(model=str(root / "same"), temperature=temperature, loss=loss, cache=cache))

    cache = stored("same", temperature, rows=rows, top_k=20, precision=32)
    for ours, theirs in zip(gives(TokenKL(), cache), gives(TokenKL(teacher_top_k=20)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    # The loss's own k stays where it is smaller.
    fewer = gives(TokenKL(teacher_top_k=5), cache), gives(TokenKL(teacher_top_k=5))
    torch.testing.assert_close(fewer[0][0], fewer[1][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "loss"),
    [
        ("span_starts", ProjectionKL()),
        ("all", ProjectionKL()),
        ("all", ProjectionKL(merge="mean")),
        ("all", BytePrefixKL()),
    ],
)
@pytest.mark.parametrize("top_k", [20, "all"])
def test_16_bits_move_the_loss_by_their_rounding_alone(
    root: Path, stored: Callable[..., str], top_k: Any, rows: RowKind, loss: SpanLoss
) -> None:
    exact, rounded = (
        scored(root, split_teacher(root, loss=loss, cache=stored(rows=rows, top_k=top_k, precision=precision)))
        for precision in (32, 16)
    )
    # Off by 2.5e-4 at most, a log-probability moves the loss by its probability times 1 + log p/q, below 20 here.
    assert 0 < (exact[0] - rounded[0]).abs().max() < 20 * 2.5e-4
    assert (exact[1] - rounded[1]).norm() < 1e-2 * exact[1].norm()


@pytest.mark.parametrize("rows", ["span_starts", "all"])
def test_k_tokens_at_another_temperature_leave_the_likelihood_of_the_text_exact(
    root: Path, stored: Callable[..., str], rows: RowKind
) -> None:
    def confidence(cache: str | None) -> torch.Tensor:
        teachers = {"t": split_teacher(root, temperature=2.0, cache=cache), "other": split_teacher(root)}
        module = module_of(root, teachers, weighting=ConfidenceWeighting("cross_entropy"))
        data = set_up(module, data_of(root), "validate")
        module.configure_model()
        return module.score(next(iter(data.val_dataloader()))).confidence["t"]

    cache = stored(temperature=2.0, rows=rows, top_k=20, precision=32)
    torch.testing.assert_close(confidence(cache), confidence(None), rtol=1e-5, atol=1e-5)


def batch_of(root: Path, cache: str | Path) -> DistillBatch:
    data = set_up(module_of(root, {"t": split_teacher(root, cache=str(cache))}), data_of(root), "validate")
    return next(iter(data.val_dataloader()))


@pytest.mark.parametrize("kind", ["span_starts", "all"])
def test_rows_of_a_batch_are_distributions_that_half_precisions_leave_as_they_are(
    root: Path, stored: Callable[..., str], kind: RowKind
) -> None:
    batch = batch_of(root, stored(rows=kind, top_k=20))
    view, some = batch.teachers["t"], slice(3, 9)
    labels = (view.tokens.labels if kind == "all" else view.tokens.labels[view.spans.teacher_first])[some]
    holes = torch.zeros(len(splitting_tokenizer()), dtype=torch.bool)

    def rows(batch: DistillBatch) -> torch.Tensor:
        known = batch.teachers["t"].known
        assert known is not None
        return known.select(some).dense(labels, holes, len(holes) - int(holes.sum()))

    # Rows of 16 bits with an exact observed token are not normalized.
    tolerance = 3e-4 if kind == "all" else 1e-5
    torch.testing.assert_close(rows(batch).exp().sum(-1), torch.ones(6), rtol=0, atol=tolerance)
    assert torch.equal(rows(HalfPrecision("bf16-true").convert_input(batch)), rows(batch))
    is_known = torch.zeros(len(holes), dtype=torch.bool)
    is_known[view.known.top.ids[some].flatten().long()] = is_known[labels] = True
    holes[(~is_known).nonzero()[:3]] = True
    assert rows(batch)[:, holes].isneginf().all()
    torch.testing.assert_close(rows(batch).exp().sum(-1), torch.ones(6), rtol=0, atol=tolerance)


def test_a_process_without_a_window_of_the_last_batch_reads_nothing(root: Path, stored: Callable[..., str]) -> None:
    data = set_up(module_of(root, {"t": split_teacher(root, cache=stored())}), data_of(root), "validate")
    loader = data.val_dataloader()
    blank = loader.collate_fn(loader.dataset.__getitems__([NO_WINDOW]))
    beside = loader.collate_fn(loader.dataset.__getitems__([NO_WINDOW, 3]))
    assert len(blank.teachers["t"].tokens.input_ids) == len(blank.teachers["t"].spans) == 0
    assert len(beside.teachers["t"].known) == len(beside.teachers["t"].spans) > 0
