"""Training from a cache of a teacher: the same losses, without its weights; what does not belong is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl import (
    GOLD,
    ULD,
    BytePrefixKL,
    ConfidenceWeighting,
    DistillDataModule,
    HybridKL,
    MostConfidentTeacher,
    MultiTeacherDistillModule,
    OptimizerRecipe,
    ProjectionKL,
    Student,
    Teacher,
    TextSource,
    TokenKL,
)
from xtoken_pl.batch import NO_WINDOW, DistillBatch, SpanArrays
from xtoken_pl.cli.cache import CacheOptions, build_cache
from xtoken_pl.teachers.cache.reader import CachedSplit
from xtoken_pl.utilities.errors import UserError

LENGTH = 48


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, the teachers' configurations and tokenizers without weights, and texts."""
    folder = tmp_path_factory.mktemp("cache")
    write_model(folder / "student", packing_tokenizer(), seed=1)
    write_model(folder / "split", splitting_tokenizer(), seed=2, num_head_rows=520)
    write_model(folder / "same", packing_tokenizer(), seed=3)
    for name in ("split", "same"):
        shutil.copytree(folder / name, folder / "no_weights" / name, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "train.txt").write_text(TEXTS[1][:3000] + " 12 345 6789" * 20)
    (folder / "val.txt").write_text(TEXTS[2][:1000])
    (folder / "other.txt").write_text(TEXTS[3][:3000])
    return folder


def data_of(root: Path, **options: Any) -> DistillDataModule:
    given: dict[str, Any] = {
        "train": "train.txt",
        "val": "val.txt",
        "sequence_length": LENGTH,
        "batch_size": 4,
    } | options
    for split in ("train", "val"):
        given[split] = given[split] and TextSource(path=str(root / given[split]))
    return DistillDataModule(num_workers=0, **given)


def module_of(root: Path, teachers: dict[str, Teacher], **options: Any) -> MultiTeacherDistillModule:
    return MultiTeacherDistillModule(Student(model=str(root / "student")), teachers, **options)


def split_teacher(root: Path, **options: Any) -> Teacher:
    return Teacher(**{"model": str(root / "split"), "loss": ProjectionKL(), **options})


@pytest.fixture(scope="module")
def stored(root: Path) -> Callable[..., str]:
    """Builds a cache, once for every set of options; returns its folder."""
    folders: dict[str, str] = {}

    def build(teacher: str = "split", temperature: float = 1.0, **options: Any) -> str:
        key = f"{teacher} {temperature} {options}"
        if key not in folders:
            folders[key] = str(root / "caches" / str(len(folders)))
            # The windows are those of all teachers of a run.
            teachers = {"t": Teacher(model=str(root / teacher), temperature=temperature), "split": split_teacher(root)}
            module = module_of(root, teachers)
            build_cache(module, data_of(root), CacheOptions(teacher="t", output=folders[key], **options))
        return folders[key]

    return build


@pytest.fixture
def damaged(stored: Callable[..., str], tmp_path: Path) -> Path:
    """A copy of a cache, to be damaged."""
    return Path(shutil.copytree(stored(shard_windows=16), tmp_path / "copy"))


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


def test_training_from_a_cache_of_everything_is_training_with_the_teachers(
    root: Path, stored: Callable[..., str]
) -> None:
    every = {"top_k": "all", "precision": 32}
    settings: dict[str, tuple[str, Any, float]] = {
        "token": ("same", TokenKL(), 1.0),
        "projection": ("split", ProjectionKL(), 1.0),
        "reverse": ("split", ProjectionKL(divergence="reverse"), 1.0),
        "hybrid": ("split", HybridKL(), 1.0),
        "gold": ("split", GOLD(), 1.0),
        "uld": ("split", ULD(), 1.0),
        "tempered": ("split", ProjectionKL(), 2.0),
    }
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
    weighting = ConfidenceWeighting("cross_entropy", scope="sequence")
    steps, validated = fit(root, live, weighting=weighting)
    cached_steps, cached_validated = fit(root, cached, weighting=weighting)
    assert len(steps) == 12
    assert steps[-1]["ce"] < 0.9 * steps[0]["ce"]  # it learned, so that the gradients mattered
    for step, (expected, found) in enumerate(zip(steps, cached_steps, strict=True)):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7), step
    assert {f"val/kd/{name}" for name in settings} <= validated.keys()
    assert cached_validated == pytest.approx(validated, rel=1e-5)


def set_up(module: MultiTeacherDistillModule, data: DistillDataModule, stage: str = "fit") -> DistillDataModule:
    data.connect(*module.vocabularies(), caches=module.caches)
    data.setup(stage)
    return data


def stored_split(root: Path, cache: str, name: str) -> tuple[Any, CachedSplit]:
    """The windows of a split, and the reader of what a cache stores of them."""
    module, data = module_of(root, {"t": split_teacher(root, cache=cache)}), data_of(root)
    windows: Any = set_up(module, data, "fit" if name == "train" else "validate").datasets[name]
    return windows, module.caches["t"].split(name, windows, data.sequence_length)


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


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_k_stored_tokens_give_the_loss_with_teacher_top_k(
    root: Path, stored: Callable[..., str], temperature: float
) -> None:
    def gives(loss: TokenKL, cache: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return scored(root, Teacher(model=str(root / "same"), temperature=temperature, loss=loss, cache=cache))

    cache = stored("same", temperature, top_k=20, precision=32)
    for ours, theirs in zip(gives(TokenKL(), cache), gives(TokenKL(teacher_top_k=20)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    # The loss's own k stays where it is smaller.
    fewer = gives(TokenKL(teacher_top_k=5), cache), gives(TokenKL(teacher_top_k=5))
    torch.testing.assert_close(fewer[0][0], fewer[1][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("top_k", [20, "all"])
def test_16_bits_move_the_loss_by_their_rounding_alone(root: Path, stored: Callable[..., str], top_k: Any) -> None:
    exact, rounded = (
        scored(root, split_teacher(root, cache=stored(top_k=top_k, precision=precision))) for precision in (32, 16)
    )
    # Off by 2.5e-4 at most, a log-probability moves the loss by its probability times 1 + log p/q, below 20 here.
    assert 0 < (exact[0] - rounded[0]).abs().max() < 20 * 2.5e-4
    assert (exact[1] - rounded[1]).norm() < 1e-2 * exact[1].norm()


def batch_of(root: Path, cache: str | Path) -> DistillBatch:
    data = set_up(module_of(root, {"t": split_teacher(root, cache=str(cache))}), data_of(root), "validate")
    return next(iter(data.val_dataloader()))


def test_rows_of_a_batch_are_distributions_that_half_precisions_leave_as_they_are(
    root: Path, stored: Callable[..., str]
) -> None:
    batch = batch_of(root, stored(top_k=20))
    spans, holes = slice(3, 9), torch.zeros(len(splitting_tokenizer()), dtype=torch.bool)

    def rows(batch: DistillBatch) -> torch.Tensor:
        cached = batch.teachers["t"].cached
        assert cached is not None
        return cached.dense(spans, holes, len(holes) - int(holes.sum()))

    torch.testing.assert_close(rows(batch).exp().sum(-1), torch.ones(6))
    assert torch.equal(rows(HalfPrecision("bf16-true").convert_input(batch)), rows(batch))
    is_stored = torch.zeros(len(holes), dtype=torch.bool)
    is_stored[batch.teachers["t"].cached.ids[spans].flatten().long()] = True
    holes[(~is_stored).nonzero()[:3]] = True
    assert rows(batch)[:, holes].isneginf().all()
    torch.testing.assert_close(rows(batch).exp().sum(-1), torch.ones(6))


def read_everything(root: Path, cache: Path) -> None:
    data = set_up(module_of(root, {"t": split_teacher(root, cache=str(cache))}), data_of(root))
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for _ in loader:
            pass


def test_a_flipped_bit_is_refused_naming_shard_and_window(root: Path, damaged: Path) -> None:
    read_everything(root, damaged)
    path = damaged / "train-000001.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"window \d+ of .*train-000001.safetensors is damaged \(its checksum differs"):
        read_everything(root, damaged)


def test_no_flipped_bit_of_a_shard_goes_unnoticed(root: Path, damaged: Path) -> None:
    windows, reader = stored_split(root, str(damaged), "val")

    def read_all(reader: CachedSplit) -> list[SpanArrays]:
        return [reader.read(index, windows[index]) for index in range(len(windows))]

    whole = read_all(reader)
    path = damaged / "val-000000.safetensors"
    content = path.read_bytes()
    places = np.linspace(0, len(content) - 1, 150).astype(int)
    places[1::2] = np.arange(len(places) // 2) * 8 + 3  # half of them in the header
    header_size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_size])
    by_window = [8 + header_size + header[name]["data_offsets"][0] for name in ("ends", "text_checksum", "checksum")]
    for place in [*places, *by_window]:
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"val-000000.safetensors (is damaged|cannot be read)"):
            read_all(pickle.loads(pickle.dumps(reader)))
    path.write_bytes(content)
    again = pickle.loads(pickle.dumps(reader)).read(1, windows[1])  # as in a worker of the loader
    assert all(np.array_equal(again[name], values) for name, values in whole[1].items())


def test_a_missing_or_truncated_shard_is_refused_at_set_up(root: Path, damaged: Path) -> None:
    path = damaged / "train-000000.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"train-000000.safetensors must have [\d,]+ bytes"):
        read_everything(root, damaged)
    path.unlink()
    with pytest.raises(UserError, match=r"train-000000.safetensors is missing"):
        read_everything(root, damaged)


class OwnConfidence(ConfidenceWeighting):
    """Measures what no cache knows."""

    def row_confidence(self, log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -log_probs.amax(dim=-1)


def test_what_a_cache_was_not_built_with_is_refused_by_name(
    root: Path, stored: Callable[..., str], tmp_path: Path
) -> None:
    cache = stored()
    write_model(tmp_path / "trained", splitting_tokenizer(), seed=9, num_head_rows=520)
    other_weights = {"model": str(tmp_path / "trained")}
    only_train = str(tmp_path / "only_train")
    options = CacheOptions(teacher="t", output=only_train)
    build_cache(module_of(root, {"t": split_teacher(root)}), data_of(root, val=None), options)

    def refused(message: str, data: dict[str, Any] | None = None, weighting: Any = None, **teacher: Any) -> None:
        given = {"cache": cache, **teacher}
        module, texts = (
            module_of(root, {"t": split_teacher(root, **given)}, weighting=weighting),
            data_of(root, **data or {}),
        )
        with pytest.raises(ValueError, match=message):
            set_up(module, texts)

    refused("was built with a tokenizer of the teacher 't'", model=str(root / "same"), loss=TokenKL())
    refused("was built with weights", **other_weights)
    refused("holds distributions at temperature 1, but the run has 2", temperature=2.0)
    refused("sequence_length 48, but the run has 40", {"sequence_length": 40})
    refused("windows of train", {"train": "other.txt"})
    refused("windows of val", {"val": "other.txt"})
    refused("has no 'val' split", cache=only_train)
    refused("the loss of teacher 't' cannot be cached: .*BytePrefixKL reads all rows", loss=BytePrefixKL())
    refused("merge='mean'", loss=ProjectionKL(merge="mean"))
    refused("measures entropy", weighting=MostConfidentTeacher("entropy"))
    refused("OwnConfidence measures a confidence of its own", weighting=OwnConfidence())
    refused("a stream has none", {"streaming": True})
    with pytest.raises(UserError, match=r"has no manifest.json"):
        module_of(root, {"t": split_teacher(root, cache=str(tmp_path / "nothing"))}).setup("fit")


def test_what_could_not_be_compared_is_said(root: Path, stored: Callable[..., str], tmp_path: Path) -> None:
    def open_cache(folder: Path, **teacher: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert module_of(root, {"t": split_teacher(root, model=str(folder), cache=stored(), **teacher)}).caches
        return [str(warning.message) for warning in caught if "cache" in str(warning.message)]

    without_weights = root / "no_weights/split"
    [warning] = open_cache(without_weights)
    for named in ("its tokenizer and config.json were", str(root / "split"), str(without_weights), "revision None"):
        assert named in warning
    assert open_cache(root / "split") == []
    [warning] = open_cache(root / "split", dtype="bfloat16")
    assert "dtype float32, quantization None; the run sets dtype bfloat16" in warning
    copy = Path(shutil.copytree(without_weights, tmp_path / "copy"))
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    with pytest.raises(ValueError, match=r"was built with a config.json"):
        open_cache(copy)
    config.unlink()
    [warning] = open_cache(copy)
    assert "only its tokenizer was" in warning


def test_a_checkpoint_names_the_weights_that_a_cache_was_built_from(root: Path, stored: Callable[..., str]) -> None:
    def weights(teacher: Teacher) -> str | None:
        return module_of(root, {"t": teacher}).run_identity.teachers["t"]["weights"]

    without_weights = split_teacher(root, model=str(root / "no_weights/split"), cache=stored())
    assert weights(without_weights) == weights(split_teacher(root))


def test_a_process_without_a_window_of_the_last_batch_reads_nothing(root: Path, stored: Callable[..., str]) -> None:
    data = set_up(module_of(root, {"t": split_teacher(root, cache=stored())}), data_of(root), "validate")
    loader = data.val_dataloader()
    blank = loader.collate_fn(loader.dataset.__getitems__([NO_WINDOW]))
    beside = loader.collate_fn(loader.dataset.__getitems__([NO_WINDOW, 3]))
    assert len(blank.teachers["t"].cached) == 0
    assert len(beside.teachers["t"].cached) == len(beside.teachers["t"].spans) > 0


def test_no_more_than_32_shards_stay_open_and_each_that_was_closed_opens_again(
    root: Path, stored: Callable[..., str]
) -> None:
    cache = stored(shard_windows=1)
    windows, reader = stored_split(root, cache, "train")
    shards = {str(path) for path in Path(cache).glob("train-*.safetensors")}

    def open_shards() -> int:
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
        return len(mapped & shards)

    assert len(windows) > 40
    first = reader.read(0, windows[0])
    for index in range(1, len(windows)):
        reader.read(index, windows[index])
    assert open_shards() == 32
    again = reader.read(0, windows[0])
    assert all(np.array_equal(again[name], values) for name, values in first.items())
    assert open_shards() == 32


def test_texts_that_were_changed_without_a_trace_are_refused_when_they_are_read(
    root: Path, stored: Callable[..., str]
) -> None:
    windows, reader = stored_split(root, stored(), "val")
    window = dict(windows[2])
    window["student_ids"] = window["student_ids"][::-1]
    with pytest.raises(ValueError, match=r"window 2 of .* was built from another text"):
        reader.read(2, window)
