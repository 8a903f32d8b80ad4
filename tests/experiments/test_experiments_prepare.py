"""A pruned student has the kept layers of the whole model, and its folder says what it was made of."""

from __future__ import annotations

from pathlib import Path

import torch
from small_models import packing_tokenizer, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.prepare import write_pruned


def test_a_pruned_model_has_the_kept_layers_and_all_else_of_the_whole_one(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write_model(whole, packing_tokenizer())
    pruned = write_pruned(tmp_path, whole, kept=((1, 1),))
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (whole, pruned))
    expected = {
        name.replace("layers.1.", "layers.0."): weight for name, weight in before.items() if "layers.0." not in name
    }
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], weight) for name, weight in expected.items())
    assert AutoTokenizer.from_pretrained(pruned).get_vocab() == packing_tokenizer().get_vocab()


def test_a_pruned_model_is_written_again_only_for_another_whole_one(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_model(tmp_path / str(seed), packing_tokenizer(), seed=seed)
    first, again, other = (write_pruned(tmp_path, tmp_path / name, kept=((0, 0),)) for name in ("0", "0", "1"))
    assert first == again != other
    assert first.is_dir()


def test_no_pruned_model_is_written_where_the_whole_one_is_missing(tmp_path: Path) -> None:
    assert not write_pruned(tmp_path, tmp_path / "missing").exists()
