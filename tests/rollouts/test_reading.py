"""Rollouts that continue a text: what each side reads, and the spans, against a slow reference."""

from __future__ import annotations

from functools import cache
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import real_tokenizers
from aligned_texts import TEXTS, TOPICS
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from reference_rollouts import bytes_of, mid_text_ids, read_text, reference_spans

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.batch.prompts import Prompt
from xtoken_pl.data import collate
from xtoken_pl.rollouts import Rollout
from xtoken_pl.rollouts.reading import RolloutReader

LOADERS = {
    "smollm2": real_tokenizers.smollm2,
    "qwen3": real_tokenizers.qwen3,
    "llama2_style": real_tokenizers.llama2_style,
    "llama3": real_tokenizers.llama3,
    "o200k": real_tokenizers.o200k,
}
SLOW = ("llama3", "o200k")
STUDENTS = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in LOADERS]
TEACHERS = ("smollm2", "qwen3", "llama2_style")
PROMPT = "The first words of a text"
LENGTH = 4096


@cache
def vocabulary(name: str) -> CanonicalVocabulary:
    return CanonicalVocabulary.from_tokenizer(LOADERS[name]())


@cache
def reader(student: str, length: int = LENGTH) -> RolloutReader:
    return RolloutReader(vocabulary(student), {name: vocabulary(name) for name in TEACHERS}, length)


@cache
def prompt_of(student: str) -> Prompt:
    sides = {"": vocabulary(student), **{name: vocabulary(name) for name in TEACHERS}}
    return Prompt({name: [*side.prefix_ids, *side.encode([PROMPT])[0]] for name, side in sides.items()}, is_chat=False)


@cache
def interesting_ids(student: str) -> list[list[int]]:
    """Ids of special tokens, of tokens that are parts of characters, and of short ones."""
    side = vocabulary(student)

    def is_part(data: bytes) -> bool:
        return "\ufffd" in data.decode(errors="replace")

    special = np.flatnonzero(side.is_special & side.exists).tolist()
    parts = [token for token, data in enumerate(side.token_bytes) if is_part(data)]
    short = [token for token, data in enumerate(side.token_bytes) if 0 < len(data) < 3 and not is_part(data)]
    return [special, parts, short]


@cache
def random_ids(student: str) -> st.SearchStrategy[list[int]]:
    exists = np.flatnonzero(vocabulary(student).exists).tolist()
    of_any = st.sampled_from(exists)
    odd = st.one_of(*(st.sampled_from(ids) for ids in interesting_ids(student)), of_any)
    texts = TEXTS.map(lambda text: vocabulary(student).encode([text])[0])
    mixed = st.lists(st.one_of(odd.map(lambda token: [token]), texts), max_size=6).map(lambda lists: [*chain(*lists)])
    return st.one_of(st.lists(odd, max_size=30), mixed)


def read(student: str, ids: list[int]) -> tuple[Rollout, Any]:
    prompt = prompt_of(student)
    rollout = Rollout.from_ids(ids, vocabulary(student), reader(student).stop_ids(prompt))
    (window,) = reader(student).read([prompt], [rollout])
    return rollout, window


def spans_of(window: Any, name: str, prompt: Prompt) -> list[tuple[int, ...]]:
    """Spans, counted from the end of the prompt."""
    shift = np.repeat((len(prompt.ids[""]), len(prompt.ids[name])), 2)
    return [tuple(row) for row in (window[f"{name}/spans"].reshape(-1, 4) - shift).tolist()]


def check(student: str, ids: list[int]) -> None:
    """Checks a window against the reference, for every teacher."""
    side, prompt = vocabulary(student), prompt_of(student)
    rollout, window = read(student, ids)
    num_before, is_ended = len(prompt.ids[""]), rollout.ended == "stop"
    assert window["student_ids"].tolist() == [*prompt.ids[""], *rollout.ids]
    assert window["loss_mask"].tolist() == [0] * num_before + [1] * len(rollout.ids)
    ours = list(rollout.ids[: len(rollout.ids) - is_ended])
    student_bytes, is_special = bytes_of(side, ours), side.is_special[ours].tolist()
    for name in TEACHERS:
        teacher, text = vocabulary(name), read_text(rollout)
        theirs = mid_text_ids(teacher, text)
        end = [teacher.roles["eos"]] if is_ended else []
        assert window[f"{name}/ids"].tolist() == [*prompt.ids[name], *theirs, *end]
        teacher_bytes, found = bytes_of(teacher, theirs), spans_of(window, name, prompt)
        if is_ended:  # eos has the same role in all of these tokenizers
            assert found.pop() == (len(ours), len(ours) + 1, len(theirs), len(theirs) + 1)
        for a, b, c, d in found:
            assert b"".join(student_bytes[a:b]) == b"".join(teacher_bytes[c:d]) != b""
            assert not any(is_special[a:b])
        for one, other in pairwise(found):
            assert one[1] <= other[0]
            assert one[3] <= other[2]
        if b"".join(teacher_bytes) == text.encode():
            assert found == reference_spans(rollout, student_bytes, is_special, teacher_bytes)


@pytest.mark.parametrize("student", STUDENTS)
@settings(max_examples=150)
@given(data=st.data())
def test_spans_of_random_ids_are_those_of_the_reference(student: str, data: st.DataObject) -> None:
    ids = data.draw(random_ids(student))
    assume(ids)
    check(student, ids)


@pytest.mark.parametrize("student", STUDENTS)
@settings(max_examples=100)
@given(text=TEXTS)
@example(text=" leading space")
@example(text="<|im_end|></s><|endoftext|> spelled")
@example(text="\ufffd\ufffd\ufffd\ufffd")
def test_spans_of_canonical_ids_cover_the_whole_text(student: str, text: str) -> None:
    side, prompt = vocabulary(student), prompt_of(student)
    ids = mid_text_ids(side, text)
    assume(b"".join(bytes_of(side, ids)) == text.encode())
    _, window = read(student, [*ids, side.roles["eos"]])
    for name in TEACHERS:
        theirs = window[f"{name}/ids"].tolist()[len(prompt.ids[name]) :]
        if b"".join(bytes_of(vocabulary(name), theirs)) != text.encode():
            continue
        found = spans_of(window, name, prompt)
        for first, last, count in ((0, 1, len(ids) + 1), (2, 3, len(theirs))):
            assert [token for span in found for token in range(span[first], span[last])] == [*range(count)]


@pytest.mark.parametrize("student", STUDENTS)
def test_a_long_canonical_text_is_covered_completely(student: str) -> None:
    side, prompt = vocabulary(student), prompt_of(student)
    text = TOPICS[10_000:14_000]
    _, window = read(student, mid_text_ids(side, text))
    for name in TEACHERS:
        found = np.array(spans_of(window, name, prompt))
        assert (found[1:, [0, 2]] == found[:-1, [1, 3]]).all()
        assert found[0, [0, 2]].tolist() == [0, 0]
        theirs = window[f"{name}/ids"][len(prompt.ids[name]) :]
        assert found[-1, [1, 3]].tolist() == [len(mid_text_ids(side, text)), len(theirs)]


# Single cases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", TEACHERS)
def test_a_rollout_that_ends_at_once_has_one_span_the_end(student: str) -> None:
    prompt = prompt_of(student)
    rollout, window = read(student, [vocabulary(student).roles["eos"]])
    assert (rollout.text, rollout.ended) == (b"", "stop")
    for name in TEACHERS:
        assert spans_of(window, name, prompt) == [(0, 1, 0, 1)]
        assert window[f"{name}/ids"][-1] == vocabulary(name).roles["eos"]


@pytest.mark.parametrize("student", TEACHERS)
def test_a_rollout_of_special_tokens_alone_has_no_text_and_no_spans(student: str) -> None:
    side, prompt = vocabulary(student), prompt_of(student)
    special = [token for token in interesting_ids(student)[0] if token != side.roles["eos"]]
    _, window = read(student, special[:1] * 5)
    for name in TEACHERS:
        assert window[f"{name}/ids"].tolist() == prompt.ids[name]
        assert spans_of(window, name, prompt) == []


@pytest.mark.parametrize("student", TEACHERS)
@pytest.mark.parametrize("is_ended", [False, True])
def test_half_characters_without_end_are_replaced_and_are_in_no_span(student: str, *, is_ended: bool) -> None:
    side, prompt = vocabulary(student), prompt_of(student)
    half = next(token for token, data in enumerate(side.token_bytes) if data == b"\xe6")
    rollout, window = read(student, [half] * 40 + [side.roles["eos"]] * is_ended)
    # Each begins a character, and the last one could still be completed.
    text = "\ufffd" * (40 if is_ended else 39)
    for name in TEACHERS:
        theirs = mid_text_ids(vocabulary(name), text)
        assert window[f"{name}/ids"].tolist()[len(prompt.ids[name]) :][: len(theirs)] == theirs
        assert len(spans_of(window, name, prompt)) == is_ended
    assert len(rollout.ids) == 40 + is_ended


def test_text_around_a_special_token_and_a_half_character_stays_in_spans() -> None:
    side = vocabulary("smollm2")
    one, two, three = side.encode(["one", " two", " three"])
    ids = [*one, side.tokenizer.bos_token_id, *two, side.token_bytes.index(b"\xe6"), *three]
    rollout, window = read("smollm2", ids)
    assert (rollout.text, rollout.ended) == (b"one two\xe6 three", "length")
    for name in TEACHERS:
        found = spans_of(window, name, prompt_of("smollm2"))
        assert [span[:2] for span in found] == [(0, 1), (2, 3), (4, 5)]


def test_a_text_that_a_normalizer_rewrites_is_a_gap() -> None:
    side = vocabulary("smollm2")
    text = "The cafe\u0301 opens at 8."
    ids = side.encode([text])[0]
    _, window = read("smollm2", ids)
    found = spans_of(window, "qwen3", prompt_of("smollm2"))
    covered = b"".join(side.token_bytes[ids[token]] for a, b, _, _ in found for token in range(a, b))
    assert covered == b"The opens at 8."


def test_tokens_that_are_not_canonical_stay_as_they_are_and_share_a_span() -> None:
    side = vocabulary("smollm2")
    ids = [side.token_bytes.index(bytes([byte])) for byte in b"letters"]
    _, window = read("smollm2", ids)
    assert window["student_ids"].tolist()[-7:] == ids
    (canonical,) = side.encode(["letters"])
    assert window["smollm2/ids"].tolist()[-len(canonical) :] == canonical != ids
    assert sum(b - a for a, b, _, _ in spans_of(window, "smollm2", prompt_of("smollm2"))) == 7


# Windows --------------------------------------------------------------------------------------------------------------


def test_a_teacher_that_reads_too_many_tokens_keeps_those_that_fit_with_their_spans() -> None:
    side, prompt = vocabulary("smollm2"), prompt_of("smollm2")
    rollout = Rollout.from_ids([*side.encode([TOPICS[:400]])[0], side.roles["eos"]], side, {side.roles["eos"]})
    (whole,), (cut,) = (reader("smollm2", length).read([prompt], [rollout]) for length in (LENGTH, 60))
    assert cut["student_ids"].tolist() == whole["student_ids"].tolist()
    for name in TEACHERS:
        assert cut[f"{name}/ids"].tolist() == whole[f"{name}/ids"].tolist()[:60]
        spans = whole[f"{name}/spans"].reshape(-1, 4)
        assert cut[f"{name}/spans"].tolist() == spans[spans[:, 3] <= 60].ravel().tolist()
        assert 0 < len(cut[f"{name}/spans"]) < len(whole[f"{name}/spans"])


def test_each_rollout_has_its_own_prompt_domain_and_teachers_and_a_batch_is_made_of_them() -> None:
    side, prompt = vocabulary("smollm2"), prompt_of("smollm2")
    alone = Prompt({name: prompt.ids[name] for name in ("", "qwen3")}, is_chat=False, domain=3)
    texts = ["one text", "another one", "a third"]
    rollouts = [Rollout.from_ids(ids, side, ()) for ids in side.encode(texts)]
    prompts = [prompt, alone, prompt]
    windows = reader("smollm2").read(prompts, rollouts)
    for single, own, rollout in zip(windows, prompts, rollouts, strict=True):
        (expected,) = reader("smollm2").read([own], [rollout])
        assert {name: np.asarray(value).tolist() for name, value in single.items()} == {
            name: np.asarray(value).tolist() for name, value in expected.items()
        }
    assert [window["domain"] for window in windows] == [0, 3, 0]
    assert "llama2_style/ids" not in windows[1]
    batch = collate(windows, TEACHERS)
    assert len(batch.student.rows) == sum(len(rollout.ids) for rollout in rollouts)
    num_read = {name: len(view.tokens.input_ids) for name, view in batch.teachers.items()}
    assert num_read == {"smollm2": 2, "qwen3": 3, "llama2_style": 2}


def test_no_rollouts_have_no_windows() -> None:
    assert reader("smollm2").read([], []) == []
