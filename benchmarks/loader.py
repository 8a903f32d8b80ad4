"""Tokens per second of the data pipeline, without a model: ``python -m benchmarks.loader``.

A worker tokenizes texts for all sides, aligns them, cuts windows of 4,096 tokens, and makes batches with the plans of
the losses. The student has Llama 3's vocabulary; the teachers are those of the paper's best run (o200k and Llama 3,
whose losses plan nothing), or Qwen 3 with the byte-prefix KL, which plans.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.measure import Figure, run
from benchmarks.pair import TEXT
from xtoken_pl import BytePrefixKL, CanonicalVocabulary
from xtoken_pl.batch import DistillBatch, Planner
from xtoken_pl.data import Windower, collate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))  # the tokenizers are those of the tests
import real_tokenizers

_LENGTH, _WINDOWS = 4096, 4
#: Characters of a text; about 8,000 tokens.
_CHARACTERS = 32_000
_TEXTS = [TEXT[start : start + _CHARACTERS] for start in range(0, len(TEXT), _CHARACTERS)]


@dataclass
class Pipeline(IterableDataset[DistillBatch]):
    """Batches of this process's share of the texts, read ``num_times`` times.

    Attributes:
        windower: Makes windows of all sides.
        planners: Batch planners by teacher.
        num_times: How often the texts are read.
    """

    windower: Windower
    planners: Mapping[str, Planner] = field(default_factory=dict)
    num_times: int = 1

    def __iter__(self) -> Iterator[DistillBatch]:
        worker = get_worker_info()
        index, count = (worker.id, worker.num_workers) if worker else (0, 1)
        windows: list[dict[str, object]] = []
        for text in (_TEXTS * self.num_times)[index::count]:
            columns = self.windower([text])
            windows += [{name: column[i] for name, column in columns.items()} for i in range(len(columns["loss_mask"]))]
            while len(windows) >= _WINDOWS:
                yield collate(windows[:_WINDOWS], list(self.windower.teachers), self.planners)
                windows = windows[_WINDOWS:]
        if windows:
            yield collate(windows, list(self.windower.teachers), self.planners)


def tokens_per_second(pipeline: Pipeline, num_workers: int) -> float:
    """Student tokens per second of a second reading of all texts; the first one starts the workers."""
    loader = DataLoader(pipeline, batch_size=None, num_workers=num_workers, persistent_workers=num_workers > 0)
    for _ in loader:
        pass
    start = time.perf_counter()
    tokens = sum(int(batch.student.attention_mask.sum()) for batch in loader)
    return tokens / (time.perf_counter() - start)


def figures() -> Iterator[Figure]:
    """For 0, 1 and 2 workers; 0 is the process of the training loop."""
    torch.set_num_threads(1)
    student, qwen, o200k = (
        CanonicalVocabulary.from_tokenizer(tokenizer())
        for tokenizer in (real_tokenizers.llama3, real_tokenizers.qwen3, real_tokenizers.o200k)
    )
    loss = BytePrefixKL()
    loss.bind(student, qwen, None)
    assert loss.planner is not None
    pipelines = {
        "two teachers, no plans": Pipeline(Windower(student, {"phi": o200k, "llama": student}, _LENGTH)),
        "one teacher, byte-prefix KL": Pipeline(Windower(student, {"qwen": qwen}, _LENGTH), {"qwen": loss.planner}),
    }
    for name, pipeline in pipelines.items():
        for num_workers in (0, 1, 2):
            speed = tokens_per_second(pipeline, num_workers) / 1e3
            yield Figure(f"loader, {name}: {num_workers} workers", speed, "thousand tokens/s")


if __name__ == "__main__":
    run(figures)
