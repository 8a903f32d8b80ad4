"""Rows of a teacher, as a shard stores them: their size, and windows without a span."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import TEXTS, splitting_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.batch import KnownRows
from xtoken_pl.checkpoints.fingerprints import window_checksum
from xtoken_pl.data import Windower, collate
from xtoken_pl.losses.row_content import RowKind
from xtoken_pl.models import Head
from xtoken_pl.teachers.cache.manifest import TopK
from xtoken_pl.teachers.cache.row_format import RowFormat
from xtoken_pl.teachers.cache.shards import Shard, write_shard
from xtoken_pl.teachers.cache.teacher_rows import ModelRows, TeacherRows
from xtoken_pl.teachers.local import FrozenModel, SharedWeights


def small_rows(teacher: CanonicalVocabulary, row_format: RowFormat) -> TeacherRows:
    """Of a random model with next to no weights."""
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(teacher), hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1,
    ))  # fmt: skip
    frozen = FrozenModel(SharedWeights(model), Head.from_model(model, teacher))
    return TeacherRows("t", ModelRows(frozen, row_format, 1.0, torch.device("cpu")))


@pytest.mark.parametrize("rows_kind", ["span_starts", "all"])
@pytest.mark.parametrize(("top_k", "precision"), [(8, 16), ("all", 32)])
def test_windows_without_a_span_store_nothing(tmp_path: Path, top_k: TopK, precision: int, rows_kind: RowKind) -> None:
    teacher = CanonicalVocabulary.from_tokenizer(splitting_tokenizer())
    window = {"student_ids": [1, 2, 3], "loss_mask": [0, 1, 1], "t/ids": [], "t/spans": []}
    row_format = RowFormat(rows_kind, top_k, precision, len(teacher), len(teacher))
    rows, num_tokens = small_rows(teacher, row_format).compute([window] * 2, "")
    assert num_tokens == 4
    write_shard(tmp_path / "shard", rows, [window_checksum(window, "t")] * 2)
    cached = KnownRows.from_windows([Shard(tmp_path / "shard").read(place, window, "t") for place in range(2)])
    assert len(cached) == 0
    labels, holes = torch.zeros(0, dtype=torch.int64), torch.zeros(len(teacher), dtype=torch.bool)
    assert cached.dense(labels, holes, len(teacher)).shape == (0, len(teacher))


def test_a_student_token_takes_at_most_300_bytes(
    tmp_path: Path, llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast, o200k: PreTrainedTokenizerFast
) -> None:
    student = CanonicalVocabulary.from_tokenizer(llama3)
    for name, tokenizer in (("qwen3", qwen3), ("o200k", o200k)):
        teacher = CanonicalVocabulary.from_tokenizer(tokenizer)
        columns = Windower(student, {"t": teacher}, 128)([TEXTS[0][:1500]])
        windows = [{key: column[index] for key, column in columns.items()} for index in range(len(columns["t/ids"]))]
        row_format = RowFormat("span_starts", 64, 16, len(teacher), int(teacher.exists.sum()))
        rows, num_tokens = small_rows(teacher, row_format).compute(windows, "")
        write_shard(tmp_path / name, rows, [0] * len(rows))
        assert num_tokens == len(collate(windows, ["t"]).student.labels) > 200
        assert 250 < (tmp_path / name).stat().st_size / num_tokens <= 300, name
        assert row_format.bytes_per_row == sum(values[0].nbytes for values in rows[0].values())
