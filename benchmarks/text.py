"""Alignment against tokenization, and W: ``python -m benchmarks.text``, on one core."""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import statistics
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.measure import Figure, run, seconds
from benchmarks.pair import TEXT, Pair
from xtoken_pl import Projection, SpanAligner, build_projection

_NUM_TOKENS = 4096
_VIETNAMESE = "Việt Nam có khí hậu nhiệt đới. " * 300
_REWRITTEN = "\N{ANGSTROM SIGN}"  # Qwen 3's NFC makes another character of it


def figures() -> Iterator[Figure]:
    """Medians of many calls; the tokenizers are loaded, and W's file is in the cache of the system."""
    torch.set_num_threads(1)
    pair = Pair()
    start = seconds(lambda: build_projection(pair.student_tokenizer, pair.teacher_tokenizer))
    yield Figure("building W", start, "s", 5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        pair.projection.save(path)
        yield Figure("loading W", seconds(lambda: Projection.load(path)), "s", 0.3)

    student, teacher = pair.student_tokenizer, pair.teacher_tokenizer
    text = student.decode(student(TEXT, add_special_tokens=False)["input_ids"][:_NUM_TOKENS])
    aligner = SpanAligner(student, teacher)

    def tokenize(text: str) -> tuple[list[int], list[int]]:
        return student(text, add_special_tokens=False)["input_ids"], teacher(text, add_special_tokens=False)[
            "input_ids"
        ]

    middle = len(text) // 2
    untouched, rewritten = tokenize(text), tokenize(text[:middle] + _REWRITTEN + text[middle:])
    tokenizing = _median(lambda: tokenize(text))
    aligning = _median(lambda: aligner.align(*untouched))
    repairing = _median(lambda: aligner.align(*rewritten))
    speed = len(untouched[0]) / aligning / 1e6
    yield Figure("aligning 4,096 tokens", speed, "million tokens/s", 3, at_least=True)
    share, note = 100 * aligning / tokenizing, f"{1e3 * aligning:.2f} ms / {1e3 * tokenizing:.1f} ms"
    yield Figure("alignment against tokenization under both tokenizers", share, "%", 10, note=note)
    note = f"{1e3 * repairing:.2f} ms / {1e3 * aligning:.2f} ms"
    yield Figure("alignment with one character rewritten against none", repairing / aligning, "x", 3, note=note)
    decomposed = unicodedata.normalize("NFD", _VIETNAMESE)[: len(_VIETNAMESE)]
    making = _median(lambda: aligner.align(*tokenize(_VIETNAMESE)), 11)
    remaking = _median(lambda: aligner.align(*tokenize(decomposed)), 11)
    note = f"{1e3 * remaking:.1f} ms / {1e3 * making:.1f} ms"
    what = "tokenizing and aligning decomposed text against as much composed text"
    yield Figure(what, remaking / making, "x", 10, note=note)


def _median(function: Callable[[], object], calls: int = 51) -> float:
    function()
    return statistics.median(seconds(function) for _ in range(calls))


if __name__ == "__main__":
    run(figures)
