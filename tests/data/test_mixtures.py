"""Named sources: windows of a source have its teachers alone, orders and positions are those of the mixture."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from recorded_runs import Recorder, SaveEverywhere, fit
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer

from xtoken_pl import CanonicalVocabulary, DistillDataModule, TextSource
from xtoken_pl.batch import DOMAIN, NO_WINDOW, Domain
from xtoken_pl.data.part_windows import open_windows
from xtoken_pl.utilities.errors import UserError

STUDENT = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
TEACHERS = {
    "split": CanonicalVocabulary.from_tokenizer(splitting_tokenizer()),
    "coarse": CanonicalVocabulary.from_tokenizer(packing_tokenizer(1500)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of one window each: 12 of math, 6 of code, 9 of web, each in a file of another kind."""
    folder = tmp_path_factory.mktemp("texts")
    texts = [text[:60] for text in TEXTS]
    (folder / "math.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:12]))
    datasets.Dataset.from_dict({"body": texts[12:18]}).save_to_disk(str(folder / "code"))
    datasets.Dataset.from_dict({"text": texts[18:27]}).to_parquet(folder / "web.parquet")
    return folder


def sources(folder: Path, **options: dict[str, Any]) -> dict[str, TextSource]:
    """The three sources, with options of each by its name."""
    given = {
        "math": {"path": str(folder / "math.jsonl")},
        "code": {"path": str(folder / "code"), "text_field": "body"},
        "web": {"path": str(folder / "web.parquet")},
    }
    return {name: TextSource(**{**own, **options.get(name, {})}) for name, own in given.items()}


def data_of(train: Any, val: Any = None, **options: Any) -> DistillDataModule:
    data = DistillDataModule(
        train, val, **{"sequence_length": 80, "batch_size": 2, "num_workers": 0, "seed": 3} | options
    )
    data.connect(STUDENT, TEACHERS)
    return data


WEIGHTS = {"math": {"weight": 2}, "code": {"weight": 1}, "web": {"weight": 1}}


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[column], other[column]) for column in one)


# Windows and domains --------------------------------------------------------------------------------------------------


def test_windows_of_a_source_are_those_of_its_teachers_alone(folder: Path) -> None:
    given = sources(folder, math={"teachers": ["split"]}, code={"alphas": {"split": 0, "coarse": 0.3}})
    data = data_of(given)
    data.setup("fit")
    assert set(data.datasets) == {"train_math", "train_code", "train_web"}
    for key, names in {"math": ["split"], "code": ["coarse"], "web": ["split", "coarse"]}.items():
        alone = DistillDataModule(sources(folder)[key], sequence_length=80, num_workers=0)
        alone.connect(STUDENT, {name: TEACHERS[name] for name in names})
        alone.setup("fit")
        pairs = zip(data.datasets[f"train_{key}"], alone.datasets["train"], strict=True)
        assert all(equal(one, other) for one, other in pairs)
    assert data.domains["train"] == [
        Domain("math", {"split": None}),
        Domain("code", {"coarse": 0.3}),
        Domain("web", {"split": None, "coarse": None}),
    ]


def test_a_window_says_its_domain_when_it_is_read(folder: Path) -> None:
    data = data_of(sources(folder))
    data.setup("fit")
    windows = open_windows(data.parts("train"))
    assert [window[DOMAIN] for window in windows.__getitems__([0, 26, 12, 11, NO_WINDOW])] == [0, 2, 1, 0, 0]
    assert all(DOMAIN not in dataset.column_names for dataset in data.datasets.values())
    assert equal(data.window("train", 13), data.window("train", 1, source="code"))


def test_one_source_is_read_as_before(folder: Path) -> None:
    data = data_of(sources(folder)["math"])
    data.setup("fit")
    expected = np.random.default_rng((3, 0)).permutation(12).tolist()
    assert list(data.train_dataloader().sampler) == expected
    assert data.domains["train"] == [Domain("", {"split": None, "coarse": None})]
    assert data.state_dict()["identity"].keys() == {
        "seed of the order (data.seed, else seed_everything)",
        "number of windows",
        "windows (texts, tokenizers, sequence_length)",
        "global batch size (processes x batch_size)",
    }


def test_sources_without_weights_are_all_read_once_per_epoch(folder: Path) -> None:
    data = data_of(sources(folder), sources(folder))
    data.setup("fit")
    order = list(data.train_dataloader().sampler)
    assert sorted(order) == list(range(27))
    assert order != sorted(order)
    assert list(data.val_dataloader().sampler) == list(range(27))


def test_weights_decide_how_much_of_a_source_is_in_an_epoch(folder: Path) -> None:
    data = data_of(sources(folder, **WEIGHTS))
    data.setup("fit")
    loader = data.train_dataloader()
    order = list(loader.sampler)
    assert Counter(loader.dataset[index][DOMAIN] for index in order) == {0: 12, 1: 6, 2: 6}
    assert len(loader) == 12


def test_a_source_of_weight_zero_is_left_out(folder: Path) -> None:
    data = data_of(sources(folder, **WEIGHTS | {"web": {"weight": 0, "path": "no/such/file.jsonl"}}))
    data.setup("fit")
    assert set(data.datasets) == {"train_math", "train_code"}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_column_of_one_source_is_reported_with_its_name(folder: Path, streaming: bool) -> None:
    given = sources(folder, **WEIGHTS | {"code": {"weight": 1, "text_field": "text"}})
    with pytest.raises(UserError, match=r"^data\.train\.code: text_field must be a column .* has \['body'\]"):
        data_of(given, streaming=streaming).setup("fit")


# Resuming -------------------------------------------------------------------------------------------------------------


def resumes_everywhere(make: Any, folder: Path, every: int = 1, **options: Any) -> Recorder:
    everywhere = SaveEverywhere(folder)
    whole = fit(make(), everywhere, **options)
    for saved, num_seen in everywhere.saved[::every]:
        assert fit(make(), ckpt_path=saved, **options).seen == whole.seen[num_seen:], saved.name
    return whole


@pytest.mark.parametrize("options", [{}, WEIGHTS], ids=["all", "weights"])
def test_a_mixture_resumes_from_every_checkpoint(folder: Path, tmp_path: Path, options: Any) -> None:
    def make() -> DistillDataModule:
        return data_of(sources(folder, **options), batch_size=5)

    whole = resumes_everywhere(make, tmp_path, max_epochs=2, accumulate_grad_batches=2)
    assert {epoch for epoch, _, _ in whole.seen} == {0, 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixed_stream_resumes_from_every_checkpoint(folder: Path, tmp_path: Path, workers: int) -> None:
    def make() -> DistillDataModule:
        given = sources(folder, **WEIGHTS)
        return data_of(given, TextSource(path=given["math"].path), streaming=True, num_workers=workers)

    whole = resumes_everywhere(make, tmp_path, every=1 if workers == 0 else 5, max_steps=12)
    assert len({ids for _, _, ids in whole.seen}) > 12


def test_a_mixed_stream_reads_each_source_as_often_as_its_weight_says(folder: Path) -> None:
    data = data_of(sources(folder, **WEIGHTS), streaming=True, shuffle_buffer=4)
    data.setup("fit")
    loader = data.train_dataloader()
    assert loader.loader is not None
    read = [window[DOMAIN] for window, _ in zip(loader.loader.dataset, range(40), strict=False)]
    assert Counter(read) == {0: 20, 1: 10, 2: 10}
    assert Counter(read[:8]) == {0: 4, 1: 2, 2: 2}


def test_a_window_of_streams_is_found_by_its_source(folder: Path) -> None:
    data = data_of(sources(folder, **WEIGHTS), streaming=True)
    assert data.window("train", 1, source="code")[DOMAIN] == 1
    with pytest.raises(UserError, match=r"needs the name of its source, got none; give one of math, code, web"):
        data.window("train", 1)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"math": {"weight": 3}}, r"weight of data\.train\.math \(2\.0 in the checkpoint, 3\.0 here\)"),
        ({"web": {"weight": 1, "teachers": ["split"]}}, r"of data\.train\.web \(\[split, coarse\] in .*, \[split\] h"),
        ({"code": {"weight": 1, "split": "train[:5]"}}, r"number of windows of data\.train\.code \(6 in"),
    ],
    ids=["weight", "teachers", "texts"],
)
def test_resuming_another_mixture_is_refused_by_name(folder: Path, tmp_path: Path, changed: Any, expected: str) -> None:
    everywhere = SaveEverywhere(tmp_path)
    fit(data_of(sources(folder, **WEIGHTS)), everywhere, max_steps=1)
    with pytest.raises(UserError, match=f"must not change: .*{expected}"):
        fit(data_of(sources(folder, **WEIGHTS | changed)), ckpt_path=everywhere.saved[0][0], max_steps=2)


def test_resuming_with_other_sources_is_refused_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    everywhere = SaveEverywhere(tmp_path)
    fit(data_of(sources(folder, **WEIGHTS)), everywhere, max_steps=1)
    named = sources(folder, **WEIGHTS)
    others = [dict(reversed(named.items())), named | {"more": named["math"]}, {"maths": named.pop("math"), **named}]
    for given in others:
        with pytest.raises(
            UserError, match=r"change: sources of data\.train, in order \(\[math.* here\)\. Restore"
        ) as error:
            fit(data_of(given), ckpt_path=everywhere.saved[0][0], max_steps=2)
        assert "nothing" not in str(error.value)


def test_another_alpha_of_a_source_is_logged_when_a_run_resumes(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make(alpha: float) -> DistillDataModule:
        return data_of(sources(folder, web={"alphas": {"split": alpha}}))

    everywhere = SaveEverywhere(tmp_path)
    fit(make(0.5), everywhere, max_steps=1)
    with caplog.at_level("INFO"):
        fit(make(0.7), ckpt_path=everywhere.saved[0][0], max_steps=2)
    assert "resuming with another alphas of data.train.web: {'split': 0.7}, {'split': 0.5} in" in caplog.text
