"""A rollout is shown as both sides read it, without anything that is invisible."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from inspected import NASTY, vocabularies
from scripted_rollouts import write
from small_models import TEXTS

from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, Prompt
from xtoken_pl.inspection.rollouts import COLUMNS, rollout_rows
from xtoken_pl.inspection.tokens import text_of
from xtoken_pl.rollouts import Rollout

STUDENT, TEACHERS = vocabularies()
SIDES = ("student", "split")
END = STUDENT.tokenizer.eos_token


def shown(prompt: Prompt, rollout: Rollout, window: dict[str, Any]) -> dict[str, str]:
    (row,) = rollout_rows(prompt, rollout, window, STUDENT, TEACHERS)
    return dict(zip(COLUMNS, row, strict=True))


def unfolded(cell: str) -> str:
    return cell.replace("\n", "").replace("↵", "\n")


def side(tokens: str, name: str) -> str:
    """The cells of one side in a row, without the spaces between them."""
    lines = [line[len("student  ") :] for line in tokens.split("\n") if line.startswith(name)]
    return re.sub(r"(?<=[\]})]) +(?=[\[{(]|$)", "", "".join(line.rstrip() for line in lines))


def unmarked(cells: str) -> str:
    return re.sub(r"[\[\]{}()│]", "", cells)


@pytest.mark.parametrize("ends", [True, False])
def test_row_shows_prompt_text_reason_and_both_tokenizations(*, ends: bool) -> None:
    text = TEXTS[0][:120]
    prompt, rollout, window = write(STUDENT, TEACHERS, text, num_prompt=9, ends=ends)
    row = shown(prompt, rollout, window)
    number = f"{len(rollout.ids)} tokens"
    assert row["ended"] == (f"stop token, {number}" if ends else f"max_new_tokens, {number}")
    assert row["teacher"] == "split"
    written = unfolded(row["rollout"])
    assert written == rollout.text.decode() + (END if ends else "")
    assert (
        unfolded(row["prompt"]) + rollout.text.decode() == STUDENT.tokenizer.bos_token + text[: 120 if ends else None]
    )
    # Both sides show the rollout alone, and the end token only if there is one.
    plain = written.replace(" ", "·").replace("\n", "↵")
    for name in SIDES:
        assert unmarked(side(row["tokens of both sides"], name)) == unmarked(plain)


def test_spans_are_marked_and_gaps_told_apart() -> None:
    prompt, rollout, window = write(STUDENT, TEACHERS, TEXTS[0][:60])
    window["split/spans"] = window["split/spans"].reshape(-1, 4)[1:].ravel()  # the first span becomes a gap
    cells = re.findall(
        r"[\[{(][^\[\]{}()]*[\]})]", side(shown(prompt, rollout, window)["tokens of both sides"], "split")
    )
    assert [cell[0] for cell in cells] == ["{", *["["] * (len(window["split/spans"]) // 4)]


def test_no_cell_holds_an_invisible_or_controlling_character() -> None:
    prompt, rollout, window = write(STUDENT, TEACHERS, "Say: " + NASTY)
    for cell in shown(prompt, rollout, window).values():
        assert all(char.isprintable() or char == "\n" for char in cell)


def test_half_characters_and_special_tokens_in_a_text_are_shown() -> None:
    half, special = [STUDENT.token_bytes.index("é".encode()[:1])], STUDENT.roles["bos"]
    assert text_of(STUDENT, [*half, special]) == f"⟨c3⟩{STUDENT.tokenizer.convert_ids_to_tokens(special)}"
    whole = [STUDENT.token_bytes.index(bytes([byte])) for byte in "é".encode()]
    assert text_of(STUDENT, whole) == "é"  # parts of a character next to each other are joined
    prompt = Prompt({"": [special], "split": [5]}, is_chat=False)
    window = {STUDENT_IDS: [special, *half, special], LOSS_MASK: [0, 1, 1], "split/ids": [5], "split/spans": []}
    row = shown(prompt, Rollout((*half, special), b"\xc3", "length"), window)
    assert row["rollout"] == text_of(STUDENT, [*half, special])
    assert (row["teacher"], row["tokens of both sides"]) == ("split", "")  # it has no token of this text
    row = shown(prompt, Rollout((*half, special), b"\xc3", "length"), window | {"split/ids": [5, 6]})
    assert side(row["tokens of both sides"], "student").startswith("{⟨c3⟩│")


def test_empty_text_is_shown_with_its_end() -> None:
    eos = STUDENT.roles["eos"]
    prompt = Prompt({"": [3, 4], "split": [5, 6, 7]}, is_chat=False)
    end = TEACHERS["split"].roles["eos"]
    window = {STUDENT_IDS: [3, 4, eos], LOSS_MASK: [0, 0, 1], "split/ids": [5, 6, 7, end], "split/spans": [2, 3, 3, 4]}
    row = shown(prompt, Rollout((eos,), b"", "stop"), window)
    assert row["rollout"] == END
    assert side(row["tokens of both sides"], "student") == f"[{END}]"


def test_rollout_that_no_teacher_reads_has_a_row() -> None:
    prompt, rollout, window = write(STUDENT, TEACHERS, TEXTS[0][:60])
    alone = {column: window[column] for column in (STUDENT_IDS, LOSS_MASK)}
    row = shown(prompt, rollout, alone)
    assert (row["teacher"], row["tokens of both sides"]) == ("", "")


def test_long_prompts_and_texts_are_shortened_at_the_same_token_on_both_sides() -> None:
    text = (TEXTS[0] + TEXTS[1] + TEXTS[2])[:4000]
    prompt, rollout, window = write(STUDENT, TEACHERS, text, num_prompt=300)
    assert len(rollout.ids) > 600
    row = shown(prompt, rollout, window)
    assert row["prompt"].startswith("…")
    assert row["rollout"].endswith("…")
    student, teacher = (unmarked(side(row["tokens of both sides"], name)) for name in SIDES)
    spans = np.reshape(window["split/spans"], (-1, 4))
    start = len(prompt.ids[""])
    end = int(spans[spans[:, 1] <= start + 500][-1, 3])
    before = len(prompt.ids["split"])
    assert teacher == unmarked(
        text_of(TEACHERS["split"], window["split/ids"][before:end]).replace("\n", "").replace(" ", "·")
    )
    assert student.startswith(teacher)
