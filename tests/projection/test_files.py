"""Stored projections, and the refusal of invalid ones."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from projections import Built, sparse
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError


def test_a_saved_projection_is_loaded_unchanged(small_pair: Built, tmp_path: Path) -> None:
    before, path = small_pair.projection, tmp_path / "new folder" / "w.safetensors"
    before.save(path)
    after = Projection.load(path)
    for name in ("indices", "weights", "is_exact"):
        assert getattr(after, name).equal(getattr(before, name)), name
        assert getattr(after, name).dtype == getattr(before, name).dtype, name
    assert after.num_teacher == before.num_teacher == 2000
    assert after.student_fingerprint == small_pair.student.fingerprint
    assert after.teacher_fingerprint == small_pair.teacher.fingerprint
    assert after.parameters == before.parameters == {"beta": 0.9, "gamma": 0.1, "max_tokens": 4, "top": 4}
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"], "nothing is left beside it"
    after.check_belongs_to(small_pair.student, small_pair.teacher)


def test_a_file_is_not_overwritten_by_default(small: Projection, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    small.save(path)
    content = path.read_bytes()
    other = sparse([{0: 1.0}], num_teacher=1)
    with pytest.raises(UserError, match=r"w\.safetensors exists"):
        other.save(path)
    assert path.read_bytes() == content
    other.save(path, overwrite=True)
    assert Projection.load(path).num_student == 1


def test_a_projection_for_other_tokenizers_is_refused_and_the_side_is_named(
    small_pair: Built, wordless: CanonicalVocabulary, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    small_pair.projection.save(path)
    loaded = Projection.load(path)
    with pytest.raises(ValueError, match=rf"its student tokenizer has 2000 tokens.*{wordless.fingerprint}"):
        loaded.check_belongs_to(wordless, small_pair.teacher)
    with pytest.raises(ValueError, match=rf"its teacher tokenizer has 2000 tokens.*{wordless.fingerprint}"):
        loaded.check_belongs_to(small_pair.student, wordless)
    with pytest.raises(ValueError, match="its student tokenizer"):
        loaded.check_belongs_to(small_pair.teacher, small_pair.student)


@pytest.fixture(scope="module")
def wordless(smollm2_first_2000: PreTrainedTokenizerFast) -> CanonicalVocabulary:
    """The same 2,000 tokens without merges: only the way a text is split differs."""
    state = json.loads(smollm2_first_2000.backend_tokenizer.to_str())
    state["model"]["merges"] = []
    backend = Tokenizer.from_str(json.dumps(state))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return CanonicalVocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **names))


def test_a_projection_of_another_size_is_refused_and_the_side_is_named(small_pair: Built) -> None:
    projection = small_pair.projection
    shorter = replace(
        projection,
        indices=projection.indices[:-1],
        weights=projection.weights[:-1],
        is_exact=projection.is_exact[:-1],
    )
    with pytest.raises(ValueError, match="its student tokenizer has 1999 tokens"):
        shorter.check_belongs_to(small_pair.student, small_pair.teacher)
    with pytest.raises(ValueError, match="its teacher tokenizer has 2001 tokens"):
        replace(projection, num_teacher=2001).check_belongs_to(small_pair.student, small_pair.teacher)


def set_weight(value: float) -> Callable[[dict[str, Tensor]], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["weights"][1, 0] = value

    return spoil


def set_index(value: int) -> Callable[[dict[str, Tensor]], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["indices"][1, 0] = value

    return spoil


def keep(name: str, select: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[name] = select(tensors[name]).clone()

    return spoil


SPOILED = {
    "NaN": (set_weight(math.nan), "must be finite, got NaN or infinity in 1 rows"),
    "infinity": (set_weight(math.inf), "must be finite, got NaN or infinity in 1 rows"),
    "negative": (set_weight(-0.1), "must be >= 0, got -0.1"),
    "row too heavy": (set_weight(0.95), "row 1 sums to 1.05"),
    "row too light": (set_weight(0.5), "row 1 sums to 0.6"),
    "row nearly zero": (set_weight(0.0), "row 1 sums to 0.1"),
    "index too high": (set_index(6), r"indices must be in \[0, 6\).*got 0 to 6"),
    "index negative": (set_index(-1), r"indices must be in \[0, 6\).*got -1 to 3"),
    "columns missing": (keep("weights", lambda x: x[:, :1]), r"both be \[V_s, K\], got \[5, 2\] and \[5, 1\]"),
    "rows missing": (keep("indices", lambda x: x[:4]), r"both be \[V_s, K\], got \[4, 2\] and \[5, 2\]"),
    "one row only": (keep("is_exact", lambda x: x[:1]), r"is_exact of a projection must be \[5\], got \[1\]"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_wrong_values_are_refused(
    small: Projection, tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    tensors = {name: getattr(small, name).clone() for name in ("indices", "weights", "is_exact")}
    spoil(tensors)
    with pytest.raises(ValueError, match=message):
        replace(small, **tensors)
    path = tmp_path / "w.safetensors"
    header = {"format": "xtoken_pl.projection.v1", "num_teacher": "6", "parameters": "{}"}
    save_file(tensors, path, metadata=header | {"student_fingerprint": "s", "teacher_fingerprint": "t"})
    with pytest.raises(ValueError, match=message):
        Projection.load(path)


def test_vectors_instead_of_matrices_are_refused(small: Projection) -> None:
    with pytest.raises(ValueError, match=r"both be \[V_s, K\], got \[10\] and \[10\]"):
        replace(small, indices=small.indices.flatten(), weights=small.weights.flatten())


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(small_pair: Built, tmp_path: Path, kept: float) -> None:
    path = tmp_path / "w.safetensors"
    small_pair.projection.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"w\.safetensors' is truncated or damaged"):
        Projection.load(path)


def test_a_safetensors_file_of_another_kind_is_refused(small: Projection, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"lm_head.weight": torch.ones(2, 2)}, path)
    with pytest.raises(ValueError, match=r"projection must be a file of format .*model\.safetensors' has format None"):
        Projection.load(path)
    small.save(path, overwrite=True)
    save_file(load_file(path), path, metadata={"format": "xtoken_pl.projection.v0"})
    with pytest.raises(ValueError, match=r"has format 'xtoken_pl\.projection\.v0'"):
        Projection.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none at '.*absent\.safetensors'"):
        Projection.load(tmp_path / "absent.safetensors")
