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
from peft import LoraConfig, get_peft_model
from small_models import splitting_tokenizer, write_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

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


def test_a_cache_of_a_hub_model_is_told_apart_from_those_of_its_adapters(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub/models--someone--split"
    shutil.copytree(root / "split", repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(root / "split")
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(base, config).save_pretrained(tmp_path / name)
    adapters = {"plain": None, **{name: str(tmp_path / name) for name in ("first", "second")}}
    teachers = {name: split_teacher(root, model="someone/split", adapter=files) for name, files in adapters.items()}
    for name in ("plain", "first"):
        options = CacheOptions(teacher="t", output=str(tmp_path / f"cache_{name}"))
        build_cache(module_of(root, {"t": teachers[name]}), data_of(root), options)

    def open_cache(built: str, run: str, **options: Any) -> None:
        cache = str(tmp_path / f"cache_{built}")
        assert module_of(root, {"t": replace(teachers[run], cache=cache, **options)}).caches

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be compared")
        for name in ("plain", "first"):
            open_cache(name, name)
        for built, run in (("plain", "first"), ("first", "plain"), ("first", "second")):
            with pytest.raises(UserError, match=r"was built with weights \(commit:0{8}.* that differ .*adapter"):
                open_cache(built, run)
        with pytest.raises(UserError, match="was built with weights"):
            open_cache("first", "second", model=str(root / "split"))
    with pytest.warns(UserWarning, match="weights of teacher 't' could not be compared"):
        open_cache("first", "first", model=str(root / "split"))


def test_a_checkpoint_names_the_weights_that_a_cache_was_built_from(root: Path, stored: Callable[..., str]) -> None:
    def weights(teacher: Teacher) -> str | None:
        return module_of(root, {"t": teacher}).run_identity.teachers["t"]["weights"]

    without_weights = split_teacher(root, model=str(root / "no_weights/split"), cache=stored())
    assert weights(without_weights) == weights(split_teacher(root))
