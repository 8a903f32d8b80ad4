"""Packed windows hold whole documents, the same ones on every side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_windows import BARE, DOCUMENTS, LENGTH, PACK, SIDES, SPLIT, windows_of
from torch import Tensor

from xtoken_pl import DistillDataModule, TextSource
from xtoken_pl.batch import NO_WINDOW
from xtoken_pl.data import collate
from xtoken_pl.data.packing import Packer, Packing
from xtoken_pl.data.stored_windows import StoredWindows

# Packing -----------------------------------------------------------------------------------------------------


def documents_of(window: dict[str, Any], side: str) -> list[list[int]]:
    ids, starts = (
        window[f"{side}/ids" if side else "student_ids"],
        window[f"{side}/starts" if side else "student_starts"],
    )
    return [ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["a", "12345 the", "é", "数字 def f(x):", "tokenizer " * 5, ""]), max_size=20))
def test_packed_windows_hold_every_window_whole_and_the_same_ones_on_every_side(texts: list[str]) -> None:
    apart, packed = windows_of(texts, "none"), windows_of(texts, "separate")
    assert len(packed) <= len(apart)
    whole = sorted(tuple(tuple(row[f"{s}/ids" if s else "student_ids"]) for s in SIDES) for row in apart)
    found = [zip(*(map(tuple, documents_of(window, side)) for side in SIDES), strict=True) for window in packed]
    assert sorted(document for documents in found for document in documents) == whole


@pytest.mark.parametrize("packing", ["joined", "separate"])
def test_no_side_of_a_packed_window_exceeds_sequence_length(packing: Packing) -> None:
    packed = windows_of(DOCUMENTS * 3, packing)
    longest = [max(len(row["student_ids"]), len(row["split/ids"]), len(row["reverse/ids"])) for row in packed]
    assert max(longest) <= LENGTH
    assert len(packed) < 0.6 * len(windows_of(DOCUMENTS * 3, "none"))
    assert sorted(longest)[1] > LENGTH - 12  # the last one may be short


def test_eos_separates_joined_documents_and_is_learned_only_if_it_is_their_own() -> None:
    eos = PACK.roles["eos"]
    with_eos, without = PACK.encode(["abc"])[0], PACK.encode(["def"])[0]
    columns = {
        "student_ids": [[*without], [*with_eos, eos]],
        "loss_mask": [[1] * len(without), [1] * (len(with_eos) + 1)],
    }
    (ids,), (mask,) = Packer({"": PACK}, 100, "joined")(columns).values()
    assert ids == [*without, eos, *with_eos, eos]
    assert mask == [*[1] * len(without), 0, *[1] * (len(with_eos) + 1)]


def test_a_joined_document_whose_start_nothing_shows_is_learned_from_its_second_token() -> None:
    for vocabulary in (BARE, SPLIT):
        documents = [vocabulary.encode([text])[0] for text in ("12", "abc")]
        columns = {"student_ids": documents, "loss_mask": [[1] * len(ids) for ids in documents]}
        (ids,), (mask,) = Packer({"": vocabulary}, 100, "joined")(columns).values()
        start = ids.index(documents[1][0])
        assert mask[start:] == [int(ids[start - 1] == vocabulary.roles.get("eos")), *[1] * (len(documents[1]) - 1)]


def test_positions_restart_at_every_document_and_at_the_padding() -> None:
    windows = [
        {"student_ids": [5, 6, 7, 8, 9], "loss_mask": [0] * 5, "student_starts": [0, 2]},
        {"student_ids": [5, 6], "loss_mask": [0] * 2, "student_starts": [0]},
    ]
    positions = collate(windows, []).student.position_ids
    assert cast(Tensor, positions).tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 2]]


def test_a_side_without_any_token_of_a_document_does_not_shift_the_others() -> None:
    window = {"student_ids": [5, 6, 7], "loss_mask": [0, 0, 1], "student_starts": [0, 1]}
    window |= {"t/ids": [4, 8], "t/spans": [2, 3, 1, 2], "t/starts": [0, 0]}
    batch = collate([window], ["t"])
    assert cast(Tensor, batch.teachers["t"].tokens.position_ids).tolist() == [[0, 1]]


def test_windows_that_are_not_separate_have_no_positions() -> None:
    for packing in ("none", "joined"):
        assert collate(windows_of(DOCUMENTS, cast(Packing, packing)), ["split"]).student.position_ids is None


# The data module ----------------------------------------------------------------------------------------------------


def data_of(folder: Path, **options: Any) -> DistillDataModule:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    source = TextSource(path=str(path))
    data = DistillDataModule(source, source, sequence_length=LENGTH, batch_size=2, num_workers=0, **options)
    data.connect(PACK, {"split": SPLIT})
    data.setup("fit")
    return data


@pytest.mark.parametrize("packing", ["joined", "separate"])
def test_streams_and_stored_windows_are_packed_alike(tmp_path: Path, packing: Packing) -> None:
    stored, streamed = data_of(tmp_path, packing=packing), data_of(tmp_path, packing=packing, streaming=True)
    batches = [list(cast(Any, data.val_dataloader())) for data in (stored, streamed)]
    expected = [batch.student.input_ids.tolist() for batch in batches[0]]
    assert [batch.student.input_ids.tolist() for batch in batches[1]] == expected
    first = next(iter(streamed.train_dataloader()))
    assert (first.student.position_ids is not None) == (packing == "separate")


def test_packing_is_part_of_the_runs_identity(tmp_path: Path) -> None:
    identities = [
        data_of(tmp_path, packing=cast(Packing, kind)).state_dict()["identity"]
        for kind in ("none", "joined", "separate")
    ]
    assert [identity.get("data.packing") for identity in identities] == [None, "joined", "separate"]
    windows = "windows (texts, tokenizers, sequence_length)"
    assert len({identity[windows] for identity in identities}) == 3


def test_a_process_without_a_window_of_a_batch_gets_an_empty_document(tmp_path: Path) -> None:
    data = data_of(tmp_path, packing="separate")
    windows = StoredWindows(cast(Any, data.datasets["train"]), ["split"], {})
    batch = collate([windows[NO_WINDOW], windows[0]], ["split"])
    assert cast(Tensor, batch.student.position_ids)[0, :3].tolist() == [0, 0, 1]
    assert len(collate([windows[NO_WINDOW]], ["split"]).student.labels) == 0
