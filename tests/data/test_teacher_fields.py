"""A row may name its teacher: it is cut with that teacher alone, and packed with rows of the same teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from chats import CHATS, chatml, llama3_like
from recorded_runs import SaveEverywhere, fit
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer

from xtoken_pl import CanonicalVocabulary, DistillDataModule, TextSource
from xtoken_pl.batch import DOMAIN, Domain, starts_column, teacher_columns
from xtoken_pl.data.part_windows import open_windows
from xtoken_pl.utilities.errors import UserError

STUDENT = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
TEACHERS = {
    "split": CanonicalVocabulary.from_tokenizer(splitting_tokenizer()),
    "coarse": CanonicalVocabulary.from_tokenizer(packing_tokenizer(1500)),
}
NAMES = ["split", "coarse", None, "coarse", "", "split"] * 3
ROWS = [{"text": text[:150], "expert": name} for text, name in zip(TEXTS[:18], NAMES, strict=True)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def data_of(source: Any, teachers: dict[str, CanonicalVocabulary] = TEACHERS, **options: Any) -> DistillDataModule:
    data = DistillDataModule(source, **{"sequence_length": 64, "batch_size": 4, "num_workers": 0} | options)
    data.connect(STUDENT, teachers)
    data.setup("fit")
    return data


def windows_of(data: DistillDataModule, names: list[str]) -> set[bytes]:
    """The windows as the student and some teachers see them; ``starts`` included."""
    columns = ["student_ids", "loss_mask", "student_starts"]
    columns += [column for name in names for column in (*teacher_columns(name), starts_column(name))]
    rows = list(open_windows(data.parts("train")).__getitems__(list(range(data.parts("train")[0].size))))
    return {repr([np.asarray(row[column]).tolist() for column in columns if column in row]).encode() for row in rows}


@pytest.mark.parametrize("packing", ["none", "joined", "separate"])
def test_rows_are_cut_and_packed_as_in_a_source_of_their_teacher_alone(tmp_path: Path, packing: Any) -> None:
    path = write(tmp_path / "all.jsonl", ROWS)
    mixed = data_of(TextSource(path=path, teacher_field="expert"), packing=packing)
    together = windows_of(mixed, ["split", "coarse"])
    expected: set[bytes] = set()
    for names in (["split"], ["coarse"], []):
        own = [row for row in ROWS if (row["expert"] or None) in (names or [None])]
        source = TextSource(path=write(tmp_path / f"{names}.jsonl", own))
        alone = data_of(source, {name: TEACHERS[name] for name in names}, packing=packing)
        seen = windows_of(alone, names)
        assert len(seen) > 1
        assert seen <= windows_of(mixed, names)
        expected |= seen
    assert len(together) == len(expected)


def test_a_window_has_the_domain_of_its_teacher(tmp_path: Path) -> None:
    source = TextSource(path=write(tmp_path / "a.jsonl", ROWS), teacher_field="expert")
    data = data_of({"other": TextSource(path=source.path), "rows": source})
    first, size = (part.size for part in data.parts("train"))
    assert data.domains["train"] == [
        Domain("other", {"split": None, "coarse": None}),
        Domain("rows", {"split": None}),
        Domain("rows", {"coarse": None}),
        Domain("rows", {}),
    ]
    found = set()
    for window in open_windows(data.parts("train")).__getitems__(list(range(first, first + size))):
        held = tuple(name for name in TEACHERS if len(window[teacher_columns(name)[0]]))
        assert all(len(window[column]) == 0 for n in TEACHERS if n not in held for column in teacher_columns(n))
        found.add((held, window[DOMAIN]))
    assert found == {(("split",), 1), (("coarse",), 2), ((), 3)}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_teacher_that_does_not_exist_is_refused_with_its_row(tmp_path: Path, kind: str, streaming: bool) -> None:
    rows = [*ROWS[:4], {"text": "more", "expert": "splt"}]
    path = write(tmp_path / "a.jsonl", rows)
    if kind == "parquet":
        datasets.Dataset.from_list(rows).save_to_disk(path := str(tmp_path / "saved"))
    source = TextSource(path=path, teacher_field="expert")
    with pytest.raises(UserError, match=r"expert must name a teacher of the source, got 'splt' in row 5 of .*did you"):
        data_of(source, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_only_teachers_of_the_source_may_be_named(tmp_path: Path, streaming: bool) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    rows = TextSource(path=path, weight=1, teacher_field="expert", teachers=["split"])
    with pytest.raises(UserError, match=r"^data\.train\.rows: expert must name .* got 'coarse' in row 2"):
        data_of({"rows": rows, "all": TextSource(path=path, weight=1)}, streaming=streaming)


def test_a_column_that_holds_no_names_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "some text", "expert": 3}])
    with pytest.raises(UserError, match=r"teacher_field must hold names of .*, but 'expert' holds 3 in row 1 of"):
        data_of(TextSource(path=path, teacher_field="expert"))
    with pytest.raises(UserError, match=r"teacher_field must be a column of the data, got 'teacher'"):
        data_of(TextSource(path=path, teacher_field="teacher"))


def test_a_rare_teacher_is_not_refused_and_the_log_counts_windows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": f"{number} {TEXTS[0][:50]}", "expert": "split"} for number in range(300)]
    rows[1]["expert"] = "coarse"
    rows[2]["expert"] = None
    with caplog.at_level("INFO"):
        data_of(TextSource(path=write(tmp_path / "a.jsonl", rows), teacher_field="expert"))
    assert "298 by teacher 'split', 1 by teacher 'coarse'; 1 windows without a teacher" in caplog.text


def test_conversations_may_name_their_teacher(tmp_path: Path) -> None:
    rows = [{"messages": chat, "expert": name} for chat, name in zip(CHATS, ["llama", None], strict=True)]
    source = TextSource(path=write(tmp_path / "a.jsonl", rows), messages_field="messages", teacher_field="expert")
    data = DistillDataModule(source, sequence_length=256, num_workers=0)
    student, teacher = (CanonicalVocabulary.from_tokenizer(make()) for make in (chatml, llama3_like))
    data.connect(student, {"llama": teacher})
    data.setup("fit")
    held = [len(window["llama/ids"]) > 0 for window in data.datasets["train"]]
    assert held == [True, False]


def test_a_stream_marks_the_teachers_of_its_rows(tmp_path: Path) -> None:
    source = TextSource(path=write(tmp_path / "a.jsonl", ROWS), teacher_field="expert")
    data = data_of(source, streaming=True, shuffle_buffer=4)
    loader = data.train_dataloader().loader
    assert loader is not None
    read = [window for window, _ in zip(loader.dataset, range(30), strict=False)]
    marked = {(len(window["split/ids"]) > 0, len(window["coarse/ids"]) > 0, window[DOMAIN]) for window in read}
    assert marked == {(True, False, 0), (False, True, 1), (False, False, 2)}


@pytest.mark.parametrize("packing", ["none", "separate"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_name_their_teachers_resume_from_every_checkpoint(
    tmp_path: Path, streaming: bool, packing: Any
) -> None:
    source = TextSource(path=write(tmp_path / "a.jsonl", ROWS), teacher_field="expert")

    def make() -> DistillDataModule:
        options: Any = {"streaming": streaming, "shuffle_buffer": 4, "packing": packing, "batch_size": 2, "seed": 3}
        return data_of(source, **options)

    everywhere = SaveEverywhere(tmp_path)
    whole = fit(make(), everywhere, max_steps=8)
    for saved, num_seen in everywhere.saved:
        assert fit(make(), ckpt_path=saved, max_steps=8).seen == whole.seen[num_seen:], saved.name
    assert len({ids for _, _, ids in whole.seen}) > 8
