"""Texts that a normalizer rewrites: a warning before training, and ``data.normalize``."""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
from chats import chatml, llama3_like
from datasets import Dataset
from normalizing import DECOMPOSED, NORMALIZERS, VIETNAMESE, rewriting, with_normalizer
from small_models import TEXTS

from xtoken_pl import CanonicalVocabulary, DistillDataModule, TextSource
from xtoken_pl.tokenization.normalization import CommonNormalizer
from xtoken_pl.utilities.errors import UserError

PLAIN, COMPOSING = rewriting("none"), rewriting("NFC", splits=True)
CHAT_SIDES = (
    CanonicalVocabulary.from_tokenizer(chatml()),
    {"nfc": with_normalizer(llama3_like(), NORMALIZERS["NFC"])},
)


def data_module(
    folder: Path,
    texts: list[str],
    sides: tuple[CanonicalVocabulary, dict[str, CanonicalVocabulary]] = (PLAIN, {"nfc": COMPOSING}),
    **options: Any,
) -> DistillDataModule:
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text, "p": "?", "c": text}) + "\n" for text in texts))
    fields = {"prompt_field": "p", "completion_field": "c"} if options.pop("chats", False) else {}
    source = TextSource(path=str(folder / "a.jsonl"), **fields)
    given = {"sequence_length": 128, "batch_size": 2, "num_workers": 0, "shuffle_buffer": 10} | options
    module = DistillDataModule(source, **given)
    module.connect(*sides)
    return module


def warned(module: DistillDataModule) -> list[str]:
    """Warnings of low coverage at set-up."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module.setup("fit")
    return [str(warning.message) for warning in caught if "in a span" in str(warning.message)]


def coverage(module: DistillDataModule) -> float:
    """Share of the training tokens of two batches that are in a span."""
    batches = [batch for batch, _ in zip(module.train_dataloader(), range(2), strict=False)]
    views = [next(iter(batch.teachers.values())) for batch in batches]
    return sum(int((v.spans.student_span < len(v.spans)).sum()) for v in views) / sum(
        batch.student.rows.numel() for batch in batches
    )


def ids_of(module: DistillDataModule) -> list[list[int]]:
    return [row["student_ids"].tolist() for row in cast(Dataset, module.datasets["train"])]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("chats", [False, True])
def test_the_option_gives_every_side_the_rewritten_text(tmp_path: Path, streaming: bool, chats: bool) -> None:
    sides = CHAT_SIDES if chats else (PLAIN, {"nfc": COMPOSING})
    made: dict[str, DistillDataModule] = {}
    for name, text, normalize in (("rewritten", DECOMPOSED, True), ("composed", VIETNAMESE, False)):
        (tmp_path / name).mkdir()
        options = {"streaming": streaming, "chats": chats, "normalize": normalize}
        made[name] = data_module(tmp_path / name, [text * 3] * 4, sides, **options)
    assert [warned(module) for module in made.values()] == [[], []]
    assert coverage(made["rewritten"]) == coverage(made["composed"]) > 0.9
    if not streaming:
        assert ids_of(made["rewritten"]) == ids_of(made["composed"])


@pytest.mark.parametrize("streaming", [False, True])
def test_low_coverage_is_said_at_set_up_with_its_cause_and_the_way_out(tmp_path: Path, streaming: bool) -> None:
    module = data_module(tmp_path, [DECOMPOSED * 3] * 4, streaming=streaming)
    [message] = warned(module)
    assert coverage(module) < 0.8
    for named in ("train: only", "to learn", "teacher 'nfc'", "NFC", "% of this text", "set data.normalize to true"):
        assert named in message


def test_the_share_that_is_rewritten_is_said(tmp_path: Path) -> None:
    [message] = warned(data_module(tmp_path, ["one two six " * 10 + DECOMPOSED * 3] * 4))
    text = "one two six " * 10 + DECOMPOSED * 3
    changed = sum(len(word) for word in DECOMPOSED.split() if not word.isascii()) * 3
    assert f"rewrites {100 * changed / len(text):.0f}% of this text" in message


@pytest.mark.parametrize("text", ["one two six " * 30 + "e\u0301te\u0301 ", "one two six " * 200 + "e\u0301te\u0301 "])
@pytest.mark.parametrize("sides", [(PLAIN, {"nfc": COMPOSING}), (COMPOSING, {"plain": PLAIN})])
def test_the_share_that_is_rewritten_is_said_where_it_is_small(
    tmp_path: Path,
    text: str,
    sides: tuple[CanonicalVocabulary, dict[str, CanonicalVocabulary]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    assert warned(data_module(tmp_path, [text] * 4, sides)) == []
    [message] = [message for message in caplog.messages if "rewrites" in message and message.startswith("train:")]
    role = "student" if sides[0] is COMPOSING else "teacher 'nfc'"
    assert f"the normalizer of the {role} (NFC) rewrites" in message
    said = float(re.search(r"rewrites ([\d.]+)% of the text", message)[1])
    assert said == pytest.approx(100 * len("e\u0301te\u0301") / len(text), rel=0.2)  # some windows end within the text


def test_nothing_is_said_of_normalizers_that_leave_the_text_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data_module(tmp_path, ["one two six " * 30] * 4)
    assert not [message for message in caplog.messages if "rewrites" in message]


@pytest.mark.parametrize("sides", [(COMPOSING, {"plain": PLAIN}), (rewriting("NFC"), {"plain": PLAIN})])
def test_a_normalizer_of_the_student_is_named_as_well(
    tmp_path: Path, sides: tuple[CanonicalVocabulary, dict[str, CanonicalVocabulary]]
) -> None:
    [message] = warned(data_module(tmp_path, [DECOMPOSED * 3 + TEXTS[0][:50]] * 4, sides))
    assert "The normalizer of the student (NFC)" in message
    assert "data.normalize" in message


@pytest.mark.parametrize("text", [VIETNAMESE * 9, TEXTS[0], "数字１２３ — Привет, мир! שלום " * 9])
@pytest.mark.parametrize("length", [64, 512])
def test_normal_texts_give_no_warning(tmp_path: Path, text: str, length: int) -> None:
    assert warned(data_module(tmp_path, [text] * 4, sequence_length=length)) == []


def test_texts_without_a_span_are_refused_with_the_option_that_mends_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no span in common with teacher 'nfc'.*set data\.normalize to true"):
        data_module(tmp_path, ["\u1112\u1161\u11ab" * 400] * 4, sequence_length=64).setup("fit")


def test_stored_windows_of_the_other_choice_are_not_used(tmp_path: Path) -> None:
    without, rewritten = (data_module(tmp_path, [DECOMPOSED] * 4, normalize=normalize) for normalize in (False, True))
    for module in (without, rewritten):
        module.setup("fit")
    assert without.parts("train")[0].maker.fingerprint != rewritten.parts("train")[0].maker.fingerprint
    assert ids_of(without) != ids_of(rewritten)


def test_texts_that_no_normalizer_changes_give_the_same_windows(tmp_path: Path) -> None:
    without, rewritten = (data_module(tmp_path, TEXTS[:2], normalize=normalize) for normalize in (False, True))
    for module in (without, rewritten):
        module.setup("fit")
    assert ids_of(without) == ids_of(rewritten)


def test_the_option_is_said_in_the_log_and_by_the_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = data_module(tmp_path, [DECOMPOSED] * 4, normalize=True)
    with caplog.at_level("INFO"):
        module.setup("fit")
    assert "train: every side reads the texts as rewritten by NFC of the teacher 'nfc'" in caplog.text
    assert module.state_dict()["identity"]["data.normalize"] == "true"


def test_normalizers_that_contradict_each_other_are_refused_at_set_up(tmp_path: Path) -> None:
    sides = rewriting("NFD"), {"nfc": COMPOSING}
    with pytest.raises(UserError, match=r"data\.normalize needs tokenizers whose normalizers agree"):
        data_module(tmp_path, [VIETNAMESE], sides, normalize=True).setup("fit")
    assert CommonNormalizer({"student": sides[0]})(VIETNAMESE) == DECOMPOSED


def test_windows_from_all_of_the_data_are_checked(tmp_path: Path) -> None:
    [message] = warned(data_module(tmp_path, [VIETNAMESE] * 200 + [DECOMPOSED * 5] * 200))
    assert "in 100 windows" in message
