"""What a mixture cannot be is refused before texts are read, with the rule, the value and the way out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from small_models import packing_tokenizer, splitting_tokenizer

from xtoken_pl import CanonicalVocabulary, DistillDataModule, TextSource
from xtoken_pl.utilities.errors import UserError

STUDENT = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
TEACHERS = {
    "split": CanonicalVocabulary.from_tokenizer(splitting_tokenizer()),
    "same": CanonicalVocabulary.from_tokenizer(packing_tokenizer()),
}


def source(**options: Any) -> TextSource:
    return TextSource(path="nowhere.jsonl", **options)


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf])
def test_weights_are_numbers_that_are_not_negative(weight: float) -> None:
    with pytest.raises(UserError, match=rf"weight must be a finite number >= 0, got {weight}; 0 leaves the source out"):
        source(weight=weight)
    with pytest.raises(UserError, match=rf"alphas\.split must be a finite number >= 0, got {weight}; 0 for a teacher"):
        source(alphas={"split": weight})


def test_what_a_source_cannot_be_names_its_path() -> None:
    """One of several sources is at fault, and its name in the mixture is not known to it."""
    for options in ({"weight": -1}, {"teachers": ["a"], "alphas": {"a": 1}}, {"learn_turn_end": True}):
        with pytest.raises(UserError, match=r"^source 'nowhere\.jsonl': .*; "):
            source(**options)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": {}}, r"data\.train must have at least one source, got \{\}; name one"),
        ({"train": source(), "val": {}}, r"data\.val must have at least one source.*leave data\.val out"),
        ({"train": source(weight=2)}, r"data\.train has weight=2, and it is the only source; leave it out"),
        ({"train": source(), "val": {"a": source(weight=1)}}, r"data\.val\.a has weight=1, and every window is"),
        ({"train": {"a": source(weight=1), "b": source()}}, r"all sources .* but b has none, and a has one; give"),
        ({"train": {"a": source(weight=0), "b": source(weight=0)}}, r"weight > 0, got \{'a': 0, 'b': 0\}; raise"),
        ({"train": {"a": source(), "b": source()}, "streaming": True}, r"must have weights.*but a, b have none; give"),
        (
            {"train": {"a": "texts.jsonl"}},
            r"data\.train\.a must be a TextSource, got 'texts\.jsonl'; write TextSource\(",
        ),
        ({"train": {"a b": source()}}, r"must be letters, digits, _ and -, got 'a b' in data\.train; rename it"),
        ({"train": {"": source()}}, r"must be letters, digits, _ and -, got ''"),
        ({"train": {"path": source()}}, r"cannot be called 'path', which is an option of a source; rename it"),
        ({"train": {"kd": source()}}, r"cannot be called 'kd', which is used in configurations or logs; rename"),
        ({"train": {"Math": source(), "math": source()}}, r"upper and lower case .*got 'Math' and 'math'.*rename one"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value.get("train"))[:40],
)
def test_sources_and_weights_that_do_not_fit_are_refused(splits: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        DistillDataModule(**splits)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"a": source(teachers=["splt"])}, r"data\.train\.a\.teachers must name .* got 'splt'; did you mean split\?"),
        (source(alphas={"splt": 1}), r"data\.train\.alphas must name .* got 'splt'; did you mean split\?"),
        ({"a": source(teachers=[])}, r"data\.train\.a has teachers=\[\]; name one of split, same, or leave"),
        (source(alphas={"split": 0, "same": 0}), r"data\.train has alphas=\{'split': 0, 'same': 0\}; name one of"),
        ({"a": source(teachers=["split"])}, r"none names teacher 'same'; name it .*or remove model\.teachers\.same"),
        (
            {"a": source(teachers=["split"], weight=1), "b": source(teachers=["same"], weight=0)},
            r"on a source of data\.train of weight > 0, but none names teacher 'same'",
        ),
    ],
    ids=["unknown", "unknown alpha", "none", "all zero", "idle", "idle: weight 0"],
)
def test_teachers_that_do_not_fit_are_refused(train: Any, expected: str) -> None:
    data = DistillDataModule(train)
    with pytest.raises(UserError, match=expected):
        data.connect(STUDENT, TEACHERS)


def test_a_source_of_validation_may_have_fewer_teachers() -> None:
    data = DistillDataModule({"a": source(), "b": source()}, {"a": source(teachers=["split"]), "b": source()})
    data.connect(STUDENT, TEACHERS)
    assert [set(domain.alphas) for domain in data.domains["val"]] == [{"split"}, {"split", "same"}]


def test_a_run_without_teachers_needs_none_in_its_sources() -> None:
    data = DistillDataModule({"a": source(teachers=[]), "b": source()})
    data.connect(STUDENT, {})
    assert [dict(domain.alphas) for domain in data.domains["train"]] == [{}, {}]
    with pytest.raises(UserError, match=r"must name teachers of the run, got 'split'; there are none"):
        DistillDataModule(source(teachers=["split"])).connect(STUDENT, {})


def test_two_ways_to_name_teachers_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"by teachers or by alphas, got teachers=\['a'\] and alphas=\{'a': 1\}; leave"):
        source(teachers=["a"], alphas={"a": 1})


def test_the_texts_of_every_source_are_read_before_any_is_tokenized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in the last source costs no time."""
    (tmp_path / "good.jsonl").write_text('{"text": "a text"}\n')
    (tmp_path / "bad.jsonl").write_text('{"body": "a text"}\n')
    sources = {name: TextSource(path=str(tmp_path / f"{name}.jsonl")) for name in ("good", "bad")}
    data = DistillDataModule(sources)
    data.connect(STUDENT, {})
    monkeypatch.setattr("xtoken_pl.data.part_windows.make_windows", lambda *_: pytest.fail("texts were tokenized"))
    for read in (data.prepare_data, lambda: data.setup("fit")):
        with pytest.raises(UserError, match=r"data.train.bad: text_field must be a column of the data, got 'text'"):
            read()
