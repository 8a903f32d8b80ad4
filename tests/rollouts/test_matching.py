"""The bytes that a rollout, the text that it spells and a teacher's tokens of it have in common."""

from __future__ import annotations

import json
import unicodedata
from functools import cache

import pytest
import real_tokenizers
from aligned_texts import equal_bytes
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_rollouts import mid_text_ids, places, read_text
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.alignment.byte_merge import Run
from xtoken_pl.rollouts import Rollout
from xtoken_pl.rollouts.matching import moved, read_utf8, token_runs, without_partial_end

BYTES = st.lists(st.sampled_from([b"a", b" ", "é".encode(), "数".encode(), b"\xe6", b"\x98", b"\xff", b"\xf0\x9f"]))


@given(data=st.one_of(st.binary(max_size=12), BYTES.map(b"".join)))
def test_valid_stretches_are_read_as_they_are_and_the_rest_is_replaced(data: bytes) -> None:
    text, runs = read_utf8(data)
    assert text == data.decode(errors="replace")
    assert equal_bytes(runs) == {byte: place for byte, place in enumerate(places(data)) if place is not None}


@given(data=st.one_of(st.binary(max_size=12), BYTES.map(b"".join)))
@example(data="🙂".encode()[:3])
@example(data="🙂".encode()[1:])
def test_only_an_unfinished_character_at_the_end_is_left_off(data: bytes) -> None:
    kept = without_partial_end(data)
    assert data.startswith(kept)
    assert kept.decode(errors="replace") == read_text(Rollout((), data, "length"))


@given(runs=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=4), distance=st.integers(-5, 5))
def test_moved_runs_stay_within_the_length(runs: list[tuple[int, int]], distance: int) -> None:
    placed, end = list[Run](), 0
    for skip, size in runs:
        placed.append((end + skip, end + skip, size))
        end += skip + size
    expected = {i: j + distance for i, j in equal_bytes(placed).items() if 0 <= j + distance < 8}
    assert equal_bytes(moved(placed, distance, 8 - max(0, distance))) == expected


# Tokens ---------------------------------------------------------------------------------------------------------------


@cache
def vocabulary(name: str) -> CanonicalVocabulary:
    if name == "qwen3":
        return CanonicalVocabulary.from_tokenizer(real_tokenizers.qwen3())
    tokenizer = real_tokenizers.llama2_style()
    if name == "llama2_nfc":
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state["normalizer"]["normalizers"].insert(0, {"type": "NFC"})
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>")
    return CanonicalVocabulary.from_tokenizer(tokenizer)


#: Pieces whose composed and decomposed forms repeat each other, so that equal bytes are found at many places.
REPEATED = st.sampled_from(["e\u0301", "é", "\u212b", "Å", "\u1112\u1161\u11ab", "한", " a", "ab ", "12", "🙂"])


@pytest.mark.parametrize("name", ["qwen3", "llama2_nfc"])
@pytest.mark.parametrize("is_first", [False, True])
@settings(max_examples=200)
@given(pieces=st.lists(REPEATED, max_size=20))
@example(pieces=["e\u0301"] * 4 + ["é"] * 8)
def test_equal_bytes_of_a_rewritten_text_are_at_the_same_place(name: str, is_first: bool, pieces: list[str]) -> None:
    side, text = vocabulary(name), "".join(pieces)
    ids = side.encode([text])[0] if is_first else mid_text_ids(side, text)
    read = b"".join(side.token_bytes[token] for token in ids)
    added = len(read) - len(unicodedata.normalize("NFC", text).encode())
    assert added == int(is_first and name == "llama2_nfc" and bool(text))
    expected: dict[int, int] = {}
    for start, character in enumerate(text):
        before, end = text[:start], text[: start + 1]
        # A character that the next one or the one before it is joined with is rewritten.
        is_kept = unicodedata.normalize("NFC", text).startswith(unicodedata.normalize("NFC", end))
        if is_kept and unicodedata.normalize("NFC", end) == unicodedata.normalize("NFC", before) + character:
            at, place = len(before.encode()), len(unicodedata.normalize("NFC", before).encode()) + added
            expected |= {at + step: place + step for step in range(len(character.encode()))}
    assert equal_bytes(token_runs(side, text, ids, is_first=is_first)).items() <= expected.items()


def test_a_space_that_the_tokenizer_adds_is_in_no_run() -> None:
    side, text = vocabulary("llama2"), "one two"
    assert token_runs(side, text, side.encode([text])[0], is_first=True) == [(0, 1, 7)]
    assert token_runs(side, text, mid_text_ids(side, text), is_first=False) == [(0, 0, 7)]


@pytest.mark.parametrize("is_first", [False, True])
def test_runs_go_on_behind_what_is_rewritten(*, is_first: bool) -> None:
    side, text = vocabulary("llama2_nfc"), "one cafe\u0301 in two"
    ids = side.encode([text])[0] if is_first else mid_text_ids(side, text)
    runs = token_runs(side, text, ids, is_first=is_first)
    assert (runs[0][:2], runs[-1]) == ((0, is_first), (10, 9 + is_first, 7))
    assert len(runs) == 2


def test_characters_that_a_vocabulary_writes_as_others_are_in_no_run() -> None:
    side, text = vocabulary("llama2"), "one▁two"
    runs = token_runs(side, text, mid_text_ids(side, text), is_first=False)
    assert {*range(3, 6)}.isdisjoint(equal_bytes(runs))
