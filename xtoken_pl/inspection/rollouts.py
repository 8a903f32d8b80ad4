"""A prompt, and a rollout, as both sides read them, in plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np

from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, Prompt, teacher_columns
from xtoken_pl.data.cutting import Window
from xtoken_pl.inspection.inspection import Inspection
from xtoken_pl.inspection.terminal import BETWEEN, alignment_text
from xtoken_pl.inspection.tokens import text_of, tokens_of
from xtoken_pl.rollouts import Rollout
from xtoken_pl.tokenization import CanonicalVocabulary

#: Columns of the table.
COLUMNS = ("prompt", "rollout", "ended", "teacher", "tokens of both sides")

_TEXT_WIDTH, _TOKENS_WIDTH = 60, 100  # characters of a line
_PROMPT_TOKENS, _ROLLOUT_TOKENS = 100, 500  # the last tokens of a prompt, and the first ones of a rollout


def prompt_text(prompt: Prompt, student: CanonicalVocabulary, teachers: Mapping[str, CanonicalVocabulary]) -> str:
    """Returns the tokens of a prompt, one line for each side.

    Args:
        prompt: The prompt.
        student: The student's vocabulary.
        teachers: Vocabularies of the teachers by name.
    """
    sides = {"": student, **teachers}
    return "\n".join(
        f"{name or 'student'} {sides[name].name}: {len(ids):,} tokens\n  "
        + BETWEEN.join(token.text for token in tokens_of(sides[name], ids))
        for name, ids in prompt.ids.items()
    )


def rollout_rows(
    prompt: Prompt,
    rollout: Rollout,
    window: Window,
    student: CanonicalVocabulary,
    teachers: Mapping[str, CanonicalVocabulary],
) -> list[tuple[str, ...]]:
    """Returns a row of the table for each teacher that reads a rollout, or one row if none does.

    Args:
        prompt: The prompt; its end is shown.
        rollout: Text that the student wrote; the beginning of a long one is shown.
        window: The window of both.
        student: The student's vocabulary.
        teachers: Vocabularies of the teachers by name.
    """
    before, ids = prompt.ids[""], rollout.ids
    asked = "…" * (len(before) > _PROMPT_TOKENS) + text_of(student, before[-_PROMPT_TOKENS:])
    wrote = text_of(student, ids[:_ROLLOUT_TOKENS]) + "…" * (len(ids) > _ROLLOUT_TOKENS)
    reason = {"stop": "stop token", "length": "max_new_tokens"}[rollout.ended]
    row: tuple[str, ...] = (_folded(asked), _folded(wrote), f"{reason}, {len(ids):,} tokens")
    part = _written_part(window, prompt, teachers)
    views = Inspection.from_window("", part, student, teachers).teachers
    aligned = {name: alignment_text(view, name, width=_TOKENS_WIDTH) for name, view in views.items()}
    # A teacher may have no token of the text, such as of a part of a character.
    readers = [name for name in teachers if teacher_columns(name)[0] in part] or [""]
    return [(*row, name, aligned.get(name, "")) for name in readers]


def _written_part(window: Window, prompt: Prompt, teachers: Mapping[str, CanonicalVocabulary]) -> Window:
    """Returns the part of a window behind its prompt, up to the largest number of tokens that are shown."""
    start = len(prompt.ids[""])
    end = start + _ROLLOUT_TOKENS
    part: Window = {column: window[column][start:end] for column in (STUDENT_IDS, LOSS_MASK)}
    for name in teachers:
        ids_column, spans_column = teacher_columns(name)
        if not len(window.get(ids_column, ())):
            continue
        teacher_start, ids = len(prompt.ids[name]), window[ids_column]
        spans = np.asarray(window[spans_column], dtype=np.int64).reshape(-1, 4)
        shown = spans[(spans[:, 0] >= start) & (spans[:, 1] <= end)]
        # A rollout that is shown as a whole is shown to the teacher's last token.
        is_cut = len(window[STUDENT_IDS]) > end
        teacher_end = int(shown[-1, 3]) if is_cut and len(shown) else len(ids)
        part[ids_column] = ids[teacher_start:teacher_end]
        part[spans_column] = (shown - [start, start, teacher_start, teacher_start]).flatten()
    return part


def _folded(text: str) -> str:
    """Breaks long lines, and changes nothing else."""
    lines = (
        textwrap.wrap(line, _TEXT_WIDTH, replace_whitespace=False, drop_whitespace=False, expand_tabs=False)
        for line in text.split("\n")
    )
    return "\n".join("\n".join(parts) for parts in lines)
