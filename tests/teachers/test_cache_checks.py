"""A cache that does not belong to a run is refused by name, and what could not be compared is said."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from cached_teachers import data_of, module_of, set_up, split_teacher
from normalizing import DECOMPOSED, rewriting
from small_models import splitting_tokenizer, write_model
from transformers import PreTrainedTokenizerFast

from xtoken_pl import BytePrefixKL, ConfidenceWeighting, MostConfidentTeacher, ProjectionKL, Teacher, TokenKL
from xtoken_pl.cli.cache import CacheOptions, build_cache
from xtoken_pl.utilities.errors import UserError


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
    refused(r"the loss of teacher 't' \(BytePrefixKL\) reads every row of the teacher, and its", loss=BytePrefixKL())
    refused("choose .*merge='chain_rule'", loss=ProjectionKL(merge="mean"))
    refused(r"MostConfidentTeacher\(measure=entropy", weighting=MostConfidentTeacher("entropy"))
    refused("OwnConfidence.* reads every row of teacher 't'", weighting=OwnConfidence())
    refused("a stream has none", {"streaming": True})
    with pytest.raises(UserError, match=r"has no manifest.json"):
        module_of(root, {"t": split_teacher(root, cache=str(tmp_path / "nothing"))}).setup("fit")


def test_a_cache_of_texts_as_they_are_is_refused_for_rewritten_ones(root: Path, tmp_path: Path) -> None:
    tokenizer = cast(PreTrainedTokenizerFast, rewriting("NFC", splits=True).tokenizer)
    teacher = Teacher(model=write_model(tmp_path / "composing", tokenizer), loss=ProjectionKL())
    (tmp_path / "train.txt").write_text(DECOMPOSED * 2)
    (tmp_path / "student").symlink_to(root / "student")
    caches = {choice: str(tmp_path / f"cache_{choice}") for choice in (False, True)}
    for choice, folder in caches.items():
        data = data_of(tmp_path, val=None, normalize=choice)
        build_cache(module_of(tmp_path, {"t": teacher}), data, CacheOptions(teacher="t", output=folder))
    for choice, folder in caches.items():
        module = module_of(tmp_path, {"t": replace(teacher, cache=folder)})
        set_up(module, data_of(tmp_path, val=None, normalize=choice))
        with pytest.raises(UserError, match=r"windows of train.*data\.normalize"):
            set_up(module, data_of(tmp_path, val=None, normalize=not choice))


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
