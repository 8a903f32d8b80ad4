"""Long texts become the same windows as if they were cut whole, in linear work and bounded memory, with progress."""

from __future__ import annotations

import json
import tracemalloc
import unicodedata
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from reference_windows import reference_windows
from small_models import packing_tokenizer, splitting_tokenizer
from transformers import PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary, TextSource
from xtoken_pl.alignment import SpanAligner, Spans
from xtoken_pl.data import Windower, load_source
from xtoken_pl.data.left_out import LeftOutFile
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.order.streams import BlockStream
from xtoken_pl.data.packing import Packing
from xtoken_pl.data.tokenized import make_windows
from xtoken_pl.data.work_units import UnitWindows, work_units

PROSE = "".join(topics[name] for name in sorted(topics))
SECTION = 4_096
NOTHING_LEFT_OUT = LeftOutFile("not written")


def windower(length: int = 64, *, section_length: int = SECTION) -> Windower:
    made = Windower(
        CanonicalVocabulary.from_tokenizer(packing_tokenizer()),
        {"split": CanonicalVocabulary.from_tokenizer(splitting_tokenizer())},
        length,
    )
    made.section_length = section_length
    return made


def maker(packing: Packing = "none", **options: Any) -> WindowMaker:
    return WindowMaker(TextSource(path="x"), windower(**options), packing)


def rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def equal(windows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    assert [list(window) for window in windows] == [list(window) for window in expected]
    return all(
        np.array_equal(own, other[column])
        for window, other in zip(windows, expected, strict=True)
        for column, own in window.items()
    )


# The same windows -----------------------------------------------------------------------------------------------------

TEXTS = {
    "prose and code": PROSE[:40_000],
    "digits": "".join(map(str, range(4_000))),
    "no white space": "".join(PROSE[:40_000].split())[:20_000],
    "Japanese and emoji": "日本語の文章、数字１２３と👩‍👩‍👧。\n" * 500,
    "rewritten here and there": "".join(
        PROSE[at : at + 900] + unicodedata.normalize("NFD", "Việt é") for at in range(0, 20_000, 900)
    ),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_windows_of_a_long_text_are_those_of_a_slow_reference(
    kind: str,
    smollm2: PreTrainedTokenizerFast,
    qwen3: PreTrainedTokenizerFast,
    llama2_style: PreTrainedTokenizerFast,
) -> None:
    student, *others = (CanonicalVocabulary.from_tokenizer(side) for side in (smollm2, qwen3, llama2_style))
    teachers = dict(zip(("qwen", "llama"), others, strict=True))
    made = Windower(student, teachers, 96)
    made.section_length = SECTION
    pieces = list(made.pieces([TEXTS[kind]]))
    assert len(pieces) > 3
    windows = [window for piece in pieces for window in piece.windows]
    assert equal(windows, reference_windows(student, teachers, 96, TEXTS[kind]))


@pytest.mark.parametrize("packing", ["none", "joined", "separate"])
def test_windows_do_not_depend_on_the_length_of_a_section(packing: Packing) -> None:
    texts = ["short", PROSE[:15_000], "", PROSE[100:300], "a b c " * 4_000, PROSE[-9_000:], "end"]
    in_sections, whole = maker(packing), maker(packing, section_length=10**9)
    assert in_sections.fingerprint == whole.fingerprint
    assert equal(rows(in_sections(texts)), rows(whole(texts)))


def test_a_text_longer_than_a_section_can_be_a_single_window() -> None:
    text = PROSE[:30_000]
    (window,) = rows(windower(10**6)([text]))
    vocabulary = windower().student
    assert window["student_ids"][1:-1] == vocabulary.encode([text])[0]


# Linear work, bounded memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section_length", [SECTION, 10**9])
def test_work_grows_linearly_with_the_length_of_a_text(section_length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    work: list[int] = []
    to_array, align = Spans.to_array, SpanAligner.align

    def copied(spans: Spans) -> Any:
        work.append(len(spans))
        return to_array(spans)

    def aligned(self: SpanAligner, student_ids: Any, teacher_ids: Any, **options: Any) -> Spans:
        work.append(len(student_ids) + len(teacher_ids))
        return align(self, student_ids, teacher_ids, **options)

    monkeypatch.setattr(Spans, "to_array", copied)
    monkeypatch.setattr(SpanAligner, "align", aligned)
    amounts = []
    for num_words in (2_000, 8_000):
        work.clear()
        windower(section_length=section_length)(["some words 123 " * num_words])
        amounts.append(sum(work))
    assert amounts[1] < 4.5 * amounts[0]


def test_memory_does_not_grow_with_the_length_of_a_text() -> None:
    peaks = []
    for num_words in (1_500, 4_500):
        text = "some words 123 " * num_words
        pieces = windower().pieces([text])
        next(pieces)
        tracemalloc.start()
        for _ in pieces:
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


# Progress, processes --------------------------------------------------------------------------------------------------


def stored_texts(texts: list[str], path: Path) -> Dataset:
    (path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    loaded = load_source(TextSource(path=str(path / "texts.jsonl")))
    assert isinstance(loaded, Dataset)
    return loaded


def test_every_unit_of_a_long_text_gives_some_of_its_windows(tmp_path: Path) -> None:
    texts = stored_texts([PROSE[:60_000]], tmp_path)
    units = work_units(texts, maker(), 1)
    unit_windows = UnitWindows(texts, maker(), NOTHING_LEFT_OUT)
    counts = [len(unit_windows(units[place : place + 1])["student_ids"]) for place in range(len(units))]
    assert len(units) == 15
    assert min(counts) > 0
    assert max(counts) < 2.5 * sum(counts) / len(counts)


@pytest.mark.parametrize("packing", ["none", "joined"])
def test_a_unit_continues_a_text_that_another_process_began(packing: Packing, tmp_path: Path) -> None:
    texts = stored_texts(["first", PROSE[:30_000], "last"], tmp_path)
    units = work_units(texts, maker(packing), 1)
    in_order, alone = (
        UnitWindows(texts, maker(packing), NOTHING_LEFT_OUT),
        [UnitWindows(texts, maker(packing), NOTHING_LEFT_OUT) for _ in units],
    )
    for place, fresh in enumerate(alone):
        unit = units[place : place + 1]
        ours, theirs = rows(in_order(unit)), rows(fresh(unit))
        assert equal(ours, theirs)


@pytest.mark.parametrize("num_proc", [2, 3, 8])
def test_windows_do_not_depend_on_the_number_of_processes(num_proc: int, tmp_path: Path) -> None:
    texts = stored_texts(["first", PROSE[:30_000], "", "third", PROSE[:5_000]], tmp_path)
    expected = rows(maker()(texts["text"]))
    units = work_units(texts, maker(), min(num_proc, 5))
    assert len(units) % min(num_proc, 5) == 0
    windows = make_windows(texts, maker(), num_proc)
    assert equal(list(windows), expected)


@pytest.mark.parametrize("is_interrupted", [False, True])
@pytest.mark.parametrize("num_texts", [5, 230])
def test_windows_made_by_several_processes_are_found_by_a_run_with_another_number(
    num_texts: int, is_interrupted: bool, tmp_path: Path
) -> None:
    texts = stored_texts([f"the text with number {number}" for number in range(num_texts)], tmp_path)
    expected = list(make_windows(texts, maker(), 2))
    if is_interrupted:
        lost = make_windows(texts, maker(), 2).cache_files[1]["filename"]
        Path(lost).unlink()
    for num_proc in (None, 3):
        assert equal(list(make_windows(texts, maker(), num_proc)), expected)


def test_texts_of_a_hundred_rows_are_packed_together_as_one_call(tmp_path: Path) -> None:
    texts = stored_texts([*["a few words"] * 130, PROSE[:9_000], *["others"] * 20], tmp_path)
    made = maker("joined")
    expected = [row for part in (texts["text"][:100], texts["text"][100:]) for row in rows(made(part))]
    assert equal(list(make_windows(texts, made, None)), expected)


# Streams --------------------------------------------------------------------------------------------------------------


def streamed(tmp_path: Path) -> IterableDataset:
    texts = ["first", PROSE[:30_000], "third", PROSE[30_000:50_000]]
    (tmp_path / "stream.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    loaded = load_source(TextSource(path=str(tmp_path / "stream.jsonl")), streaming=True)
    assert isinstance(loaded, IterableDataset)
    return loaded


def test_first_windows_of_a_stream_do_not_wait_for_the_whole_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_aligned: list[int] = []
    align = SpanAligner.align

    def counted(self: SpanAligner, student_ids: Any, *ids: Any, **options: Any) -> Spans:
        num_aligned.append(len(student_ids))
        return align(self, student_ids, *ids, **options)

    monkeypatch.setattr(SpanAligner, "align", counted)
    texts, made = streamed(tmp_path), maker()
    num_tokens = len(made.windower.student.encode([PROSE[:30_000]])[0])
    assert len(list(islice(make_windows(texts, made, None), 5))) == 5
    assert sum(num_aligned) < 0.3 * num_tokens
    num_aligned.clear()
    assert next(iter(BlockStream(texts, made, block_size=5, seed=1)))
    assert sum(num_aligned) < 0.3 * num_tokens


@pytest.mark.parametrize("documents_per_call", [1, 3, 100])
def test_stream_resumes_in_the_middle_of_a_text(documents_per_call: int, tmp_path: Path) -> None:
    def stream() -> BlockStream:
        return BlockStream(streamed(tmp_path), maker(), block_size=7, documents_per_call=documents_per_call, seed=3)

    whole, read, states = stream(), [], []
    num_windows = len(maker()(["first", PROSE[:30_000], "third", PROSE[30_000:50_000]])["student_ids"])
    for window in islice(whole, num_windows + 30):  # into the second epoch
        read.append(window)
        states.append(whole.state_dict())
    assert any("num_skipped" in state for state in states)
    assert len({window["student_ids"].tobytes() for window in read[:num_windows]}) > 0.9 * num_windows
    for done in range(0, len(read), 61):
        again = stream()
        again.load_state_dict(states[done])
        following = read[done + 1 : done + 21]
        assert equal(list(islice(again, len(following))), following)
