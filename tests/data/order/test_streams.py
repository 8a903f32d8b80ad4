"""A stream gives each text to one worker and resumes from any batch."""

from __future__ import annotations

import io
import json
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer
from torchdata.stateful_dataloader import StatefulDataLoader

from xtoken_pl import CanonicalVocabulary, TextSource
from xtoken_pl.data import Windower, load_source
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.order.streams import BlockStream

WINDOWER = Windower(
    CanonicalVocabulary.from_tokenizer(packing_tokenizer()),
    {"split": CanonicalVocabulary.from_tokenizer(splitting_tokenizer())},
    64,
)


@pytest.fixture(scope="module", params=["one file", "four files"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextSource:
    """Twelve texts, each of one window."""
    folder = tmp_path_factory.mktemp("texts")
    texts = [text[:60] for text in TEXTS[:12]]
    num_files = 1 if request.param == "one file" else 4
    for number in range(num_files):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[number::num_files]]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    return TextSource(path=str(folder))


def stream(source: TextSource, **options: Any) -> BlockStream:
    options = {"block_size": 4, "documents_per_call": 3, "seed": 5, **options}
    return BlockStream(texts_of(source.path), WindowMaker(source, WINDOWER), **options)


@cache
def texts_of(path: str) -> datasets.IterableDataset:
    return load_source(TextSource(path=path), streaming=True)


def loader(
    source: TextSource, num_workers: int, *, batch_size: int = 2, **options: Any
) -> StatefulDataLoader[list[bytes]]:
    windows = stream(source, **options)
    return StatefulDataLoader(windows, batch_size, num_workers=num_workers, collate_fn=keys)


def keys(windows: list[dict[str, Any]]) -> list[bytes]:
    return [np.asarray(window["student_ids"]).tobytes() for window in windows]


def expected_keys() -> set[bytes]:
    columns = WINDOWER([text[:60] for text in TEXTS[:12]])
    return {np.asarray(ids, dtype=np.int32).tobytes() for ids in columns["student_ids"]}


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 0), (3, 0), (2, 2)])
def test_each_text_goes_to_one_worker_of_one_process_in_an_epoch(
    source: TextSource, num_processes: int, num_workers: int
) -> None:
    seen: list[bytes] = []
    for rank in range(num_processes):
        read = loader(source, num_workers, batch_size=1, num_processes=num_processes, rank=rank)
        seen += [key for batch in islice(read, 12 // num_processes) for key in batch]
    assert len(seen) == 12
    assert set(seen) == expected_keys()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_resumes_from_any_batch_across_blocks_and_epochs(source: TextSource, num_workers: int) -> None:
    whole = loader(source, num_workers)
    read, states = [], [whole.state_dict()]
    for batch in islice(whole, 14):  # two epochs and more
        read.append(batch)
        states.append(whole.state_dict())
    assert len(set(map(tuple, read))) > 10
    for done in range(0, 14, 1 if num_workers == 0 else 4):
        stored = io.BytesIO()
        torch.save(states[done], stored)
        stored.seek(0)
        again = loader(source, num_workers)
        again.load_state_dict(torch.load(stored, weights_only=True))
        assert list(islice(again, 14 - done)) == read[done:]


def test_the_next_block_is_read_while_windows_are_emitted(source: TextSource) -> None:
    num_read: list[int] = []

    class Counted(WindowMaker):
        def pieces(self, *columns: list[Any]) -> Any:
            num_read.append(1)
            return super().pieces(*columns)

    maker = Counted(source, WINDOWER)
    windows = BlockStream(texts_of(source.path), maker, block_size=6, documents_per_call=1, seed=5)
    read_before = []
    for _ in islice(windows, 12):
        read_before.append(len(num_read))
    assert read_before == [6, 7, 8, 9, 10, 11, 12, 12, 12, 12, 12, 12]  # two blocks of six, the first one read at once


def test_every_epoch_has_its_own_order_and_blocks_are_shuffled(source: TextSource) -> None:
    read = keys(list(islice(stream(source, block_size=100), 24)))
    first, second = read[:12], read[12:]
    assert set(first) == set(second) == expected_keys()
    assert first != second
    in_order = keys(list(islice(stream(source, block_size=1, documents_per_call=1), 12)))
    assert sorted(first) == sorted(in_order)
    assert first != in_order


def test_share_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": TEXTS[0][:60]}) + "\n")
    with pytest.raises(ValueError, match=r"share 2 of 2 of the stream has none; set data\.num_workers"):
        next(iter(stream(TextSource(path=str(tmp_path / "a.jsonl")), num_processes=2, rank=1)))
