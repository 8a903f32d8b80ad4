"""Makes windows of rollouts: the student's ids as it wrote them, and the same text as each teacher reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from xtoken_pl.alignment import SpanAligner
from xtoken_pl.alignment.byte_merge import Run, chained_runs
from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, teacher_columns
from xtoken_pl.batch.columns import DOMAIN
from xtoken_pl.batch.prompts import Prompt
from xtoken_pl.data.chats.answers import AnswerFormat
from xtoken_pl.data.chats.renderer import ChatRenderer
from xtoken_pl.data.cutting import Window
from xtoken_pl.rollouts.matching import moved, num_spaces, read_utf8, token_runs, without_partial_end
from xtoken_pl.rollouts.rollout import Rollout
from xtoken_pl.tokenization import CanonicalVocabulary


@dataclass(frozen=True)
class _Answer:
    """The text of a rollout as the teachers read it.

    Attributes:
        text: The text, without what only the student's chat template asks for.
        runs: Runs of equal bytes of the student's tokens and of ``text``; a run ends at a special token of the student.
        num_skipped: Number of the student's bytes before the text, which ``runs`` do not count.
    """

    text: str
    runs: list[Run]
    num_skipped: int


class RolloutReader:
    """Reads rollouts as the student and every teacher do.

    The student's ids are those that it generated, all of them in the loss mask. A teacher reads its own tokens of the
    same text behind its own prompt, and its own end if a stop token ended the rollout. Spans lie in the rollout alone,
    and hold equal bytes at the same place of the text. In no span are student tokens with bytes that are not valid
    UTF-8, special tokens that the student wrote within the text, and text that the teacher's normalizer rewrites.

    Args:
        student: Vocabulary of the student.
        teachers: Vocabularies of the teachers, by name.
        sequence_length: Largest number of tokens of a window on a teacher's side; what follows is left out.
    """

    def __init__(
        self, student: CanonicalVocabulary, teachers: Mapping[str, CanonicalVocabulary], sequence_length: int
    ) -> None:
        self._sides = {"": student, **teachers}
        self._sequence_length = sequence_length
        self._aligners = {name: SpanAligner(student.tokenizer, side.tokenizer) for name, side in teachers.items()}
        self._formats: dict[tuple[str, bool], AnswerFormat] = {}

    def stop_ids(self, prompt: Prompt) -> frozenset[int]:
        """Token ids that end what the student writes behind a prompt."""
        formats = (self._format("", is_chat=is_chat) for is_chat in {prompt.is_chat, False})
        return frozenset(form.stop_id for form in formats if form.stop_id is not None)

    def read(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[Window]:
        """Makes a window of each rollout.

        Args:
            prompts: Prompt of each rollout.
            rollouts: The rollouts.

        Returns:
            The windows, without the columns of teachers that have no ids in the prompt.
        """
        written = list(zip(prompts, rollouts, strict=True))
        windows = [_student_columns(prompt, rollout) for prompt, rollout in written]
        answers = [self._answer(prompt, rollout) for prompt, rollout in written]
        for name in self._aligners:
            taught = [index for index, prompt in enumerate(prompts) if name in prompt.ids]
            formats = [self._format(name, is_chat=prompts[index].is_chat) for index in taught]
            texts = [form.lead + answers[index].text for form, index in zip(formats, taught, strict=True)]
            encoded = self._encode(name, texts, formats)
            for index, form, ids in zip(taught, formats, encoded, strict=True):
                windows[index] |= self._teacher_columns(name, *written[index], answers[index], form, ids)
        return windows

    # Formats ---------------------------------------------------------------------------------------------------------

    def _format(self, name: str, *, is_chat: bool) -> AnswerFormat:
        """Format of a side; chat templates are read when they are needed, as not every teacher has one."""
        if (name, is_chat) not in self._formats:
            side = self._sides[name]
            renderer = ChatRenderer(side, f"teacher {name!r}" if name else "student") if is_chat else None
            self._formats[name, is_chat] = renderer.answer_format if renderer else AnswerFormat.for_text(side)
        return self._formats[name, is_chat]

    def _num_added(self, name: str, form: AnswerFormat) -> int:
        """Largest number of spaces before an answer that are no part of it."""
        return len(form.lead) + (form.is_first and self._sides[name].components.dummy_prefix)

    # Rollout -> text -> tokens of a teacher --------------------------------------------------------------------------

    def _answer(self, prompt: Prompt, rollout: Rollout) -> _Answer:
        """Returns the text of a rollout without the spaces that its chat template puts around an answer."""
        side, form = self._sides[""], self._format("", is_chat=prompt.is_chat)
        num_skipped = min(self._num_added("", form), num_spaces(rollout.text))
        data = rollout.text[num_skipped:]
        if rollout.ended == "stop":
            end, _ = side.byte_stream(np.array(form.end_ids, dtype=np.int64))
            data = data.removesuffix(end.tobytes())
        else:
            data = without_partial_end(data)
        ids = np.array(rollout.ids, dtype=np.int64)
        ends = np.maximum(np.cumsum(side.num_bytes[ids]) - num_skipped, 0)
        places = [0, *ends[side.is_special[ids]].tolist(), len(data)]
        between_special = [(low, low, high - low) for low, high in pairwise(places)]
        text, runs = read_utf8(data)
        return _Answer(text, chained_runs(between_special, runs), num_skipped)

    def _encode(self, name: str, texts: Sequence[str], formats: Sequence[AnswerFormat]) -> list[list[int]]:
        """Encodes the texts of all rollouts at once, as a teacher reads them behind its prompts."""
        side = self._sides[name]
        pairs = list(zip(texts, formats, strict=True))
        first = iter(side.encode([text for text, form in pairs if form.is_first]))
        with side.mid_text_backend() as backend:
            inside = [text for text, form in pairs if not form.is_first]
            others = iter([encoding.ids for encoding in backend.encode_batch_fast(inside, add_special_tokens=False)])
        return [next(first if form.is_first else others) for form in formats]

    # Window ----------------------------------------------------------------------------------------------------------

    def _teacher_columns(
        self, name: str, prompt: Prompt, rollout: Rollout, answer: _Answer, form: AnswerFormat, ids: list[int]
    ) -> Window:
        aligner, is_ended = self._aligners[name], rollout.ended == "stop"
        text, side = form.lead + answer.text, self._sides[name]
        read, _ = side.byte_stream(np.array(ids, dtype=np.int64))
        num_extra = num_spaces(read.tobytes()) - num_spaces(answer.text.encode())
        num_skipped = min(self._num_added(name, form), max(0, num_extra))
        runs = moved(answer.runs, len(form.lead), len(text.encode()))
        runs = chained_runs(runs, token_runs(side, text, ids, is_first=form.is_first))
        runs, skipped = moved(runs, -num_skipped, len(read)), (answer.num_skipped, num_skipped)
        spans = [aligner.align_within(rollout.ids, ids, runs, skipped=skipped).to_array()]
        own = [*ids, *form.end_ids] if is_ended else ids
        if is_ended and form.stop_id is not None:
            end = aligner.align(rollout.ids[-1:], own[-1:]).to_array()
            spans.append(end + np.repeat((len(rollout.ids) - 1, len(own) - 1), 2))
        before = prompt.ids[name]
        shifted = np.concatenate(spans) + np.repeat((len(prompt.ids[""]), len(before)), 2)
        shifted = shifted[shifted[:, 3] <= self._sequence_length]
        ids_column, spans_column = teacher_columns(name)
        whole = np.array([*before, *own], dtype=np.int64)
        return {ids_column: whole[: self._sequence_length], spans_column: shifted.ravel()}


def _student_columns(prompt: Prompt, rollout: Rollout) -> Window:
    before = prompt.ids[""]
    return {
        STUDENT_IDS: np.array([*before, *rollout.ids], dtype=np.int64),
        LOSS_MASK: np.repeat((0, 1), (len(before), len(rollout.ids))),
        DOMAIN: prompt.domain,
    }
