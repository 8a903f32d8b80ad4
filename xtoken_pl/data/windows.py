"""Cuts texts and conversations into windows that the student and every teacher read whole; no text is lost.

A text is tokenized once with each tokenizer and aligned once with each teacher. Windows are cut where a token ends on
all sides, never on each side by its own limit, so that the tails match. In a conversation the contents are aligned one
by one; the text that a side's chat template writes around them is in no span.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.alignment import SpanAligner, Spans
from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, teacher_columns
from xtoken_pl.data.chat_template import ChatRenderer, RenderedChat
from xtoken_pl.data.conversations import Conversation, Document
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.segments import greedy_segments

logger = logging.getLogger(__name__)

# Increased when the same text would give other windows, so that cached ones are rebuilt.
_VERSION = 1
# Increased when the same conversation would give other windows.
_CHAT_VERSION = 1

#: A window by column: token ids, loss mask and spans.
Window = dict[str, Any]


@dataclass
class _Tokenized:
    """A document tokenized for every side; the student's name is ``""``.

    Attributes:
        ids: Token ids by side, without the prefix.
        prefixes: Tokens to put before every window, by side.
        learned: ``[n]``, whether each student token is learned.
        spans: Spans by teacher.
    """

    ids: dict[str, NDArray[np.int64]]
    prefixes: dict[str, tuple[int, ...]]
    learned: NDArray[np.bool_]
    spans: dict[str, Spans]


class Windower:
    """Makes windows from texts or conversations: token ids of every side, a loss mask, and the spans of every teacher.

    Every window of a text starts with the special tokens that a tokenizer puts before a text (bos), and the last one
    ends with eos on every side that has one. A window of a conversation starts with bos if the side's template does,
    and the last one ends as the template ends.

    Args:
        student: Vocabulary of the student.
        teachers: Vocabularies of the teachers, by name.
        sequence_length: Maximum number of tokens of a window on any side, special tokens included.

    Raises:
        UserError: If ``sequence_length`` leaves no room for a span.
    """

    def __init__(
        self, student: CanonicalVocabulary, teachers: dict[str, CanonicalVocabulary], sequence_length: int
    ) -> None:
        # The first token of a span is predicted from the token before it, so both sides need one.
        for name, vocabulary in {"": student, **teachers}.items():
            shortest = max(1, len(vocabulary.prefix_ids)) + 1
            if sequence_length < shortest:
                raise UserError(
                    f"sequence_length must be at least {shortest} to hold a span of the {_role(name)}, got "
                    f"{sequence_length}"
                )
        self.student = student
        self.teachers = teachers
        self.sequence_length = sequence_length
        self.aligners = {name: SpanAligner(student.tokenizer, teacher.tokenizer) for name, teacher in teachers.items()}

    @property
    def sides(self) -> dict[str, CanonicalVocabulary]:
        """All vocabularies by name, the student's under ``""``."""
        return {"": self.student, **self.teachers}

    @property
    def named_sides(self) -> dict[str, CanonicalVocabulary]:
        """All vocabularies by their names in messages."""
        return {_role(name): vocabulary for name, vocabulary in self.sides.items()}

    @cached_property
    def renderers(self) -> dict[str, ChatRenderer]:
        """Conversation renderers by side.

        Raises:
            UserError: If a side has no chat template.
        """
        return {name: ChatRenderer(vocabulary, _role(name)) for name, vocabulary in self.sides.items()}

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the windows of a text."""
        parts = {name: teacher.fingerprint for name, teacher in self.teachers.items()}
        described = json.dumps([_VERSION, self.student.fingerprint, parts, self.sequence_length])
        return hashlib.sha256(described.encode()).hexdigest()[:32]

    @property
    def chat_fingerprint(self) -> str:
        """Hash of everything that determines the windows of a conversation."""
        templates = {name: renderer.template for name, renderer in self.renderers.items()}
        described = json.dumps([_CHAT_VERSION, self.fingerprint, templates])
        return hashlib.sha256(described.encode()).hexdigest()[:32]

    def __call__(self, documents: Sequence[Document], *, learn_turn_end: bool = False) -> dict[str, list[Any]]:
        """Cuts all documents into windows.

        Args:
            documents: Texts or conversations.
            learn_turn_end: Also learn the special token that ends the assistant's turn.

        Returns:
            The windows as columns: ``student_ids``; ``loss_mask``, 1 for tokens to learn; and for each teacher
            ``NAME/ids`` and ``NAME/spans``, flattened (student_start, student_end, teacher_start, teacher_end).
        """
        columns: dict[str, list[Any]] = {STUDENT_IDS: [], LOSS_MASK: []}
        for name in self.teachers:
            columns |= {column: [] for column in teacher_columns(name)}
        texts = [document for document in documents if isinstance(document, str)]
        chats = [document for document in documents if isinstance(document, Conversation)]
        assert len(texts) + len(chats) == len(documents), "documents are texts or conversations"
        tokenized = [*self._texts(texts), *self._conversations(chats, learn_turn_end=learn_turn_end)]
        counts = [self._add_windows(columns, document) for document in tokenized]
        num_overlong, num_unlearned = np.sum([(0, 0), *counts], axis=0)
        if num_overlong:
            logger.warning(
                "%d stretches of text without a common token boundary are longer than sequence_length=%d; "
                "they are trained on with cross-entropy alone",
                num_overlong,
                self.sequence_length,
            )
        if num_unlearned:
            logger.warning(
                "%d windows of conversations longer than sequence_length=%d hold nothing to learn and are dropped",
                num_unlearned,
                self.sequence_length,
            )
        return columns

    # Documents -> tokens and spans -----------------------------------------------------------------------------------

    def _texts(self, texts: list[str]) -> Iterator[_Tokenized]:
        encoded = {name: _with_eos(side, side.encode(texts)) for name, side in self.sides.items()}
        prefixes = {name: side.prefix_ids for name, side in self.sides.items()}
        for index in range(len(texts)):
            ids = {name: sequences[index] for name, sequences in encoded.items()}
            if len(ids[""]):
                spans = {name: aligner.align(ids[""], ids[name]) for name, aligner in self.aligners.items()}
                yield _Tokenized(ids, prefixes, np.ones(len(ids[""]), dtype=bool), spans)

    def _conversations(self, chats: list[Conversation], *, learn_turn_end: bool) -> Iterator[_Tokenized]:
        kept = [chat for chat in chats if chat.learns_something]
        if len(kept) < len(chats):
            logger.warning(
                "%d conversations in which the assistant says nothing to learn are dropped", len(chats) - len(kept)
            )
        if not kept:
            return
        rendered = {name: renderer.render(kept) for name, renderer in self.renderers.items()}
        for index, chat in enumerate(kept):
            sides = {name: chats[index] for name, chats in rendered.items()}
            student = sides[""]
            learned = np.zeros(len(student.ids), dtype=bool)
            turns = [turn for turn, (_, content, is_learned) in enumerate(chat.turns) if is_learned and content]
            for turn in turns:
                learned[slice(*student.contents[turn])] = True
            if learn_turn_end:
                learned[[_turn_end(student, turn, chat) for turn in turns]] = True
            spans = {
                name: _spans_of_chat(aligner, student, sides[name], turns if learn_turn_end else [])
                for name, aligner in self.aligners.items()
            }
            ids = {name: side.ids for name, side in sides.items()}
            yield _Tokenized(ids, {name: side.prefix for name, side in sides.items()}, learned, spans)

    # Tokens and spans -> windows -------------------------------------------------------------------------------------

    def _add_windows(self, columns: dict[str, list[Any]], document: _Tokenized) -> tuple[int, int]:
        """Adds the windows of a document; returns the numbers of overlong stretches and of dropped windows."""
        ids, prefixes, spans = document.ids, document.prefixes, document.spans
        bounds = common_bounds(len(ids[""]), [(spans[name], len(ids[name])) for name in self.teachers])
        limits = [self.sequence_length - len(prefixes[name]) for name in self.sides]
        num_overlong = num_unlearned = 0
        for start, end in greedy_segments(bounds, limits):
            low, high = bounds[start], bounds[end]
            # There is no boundary inside to cut at: the student's tokens are kept, without any span.
            is_overlong = bool((high - low > limits).any())
            num_overlong += is_overlong
            pieces = range(low[0], high[0], limits[0]) if is_overlong else [low[0]]
            for first in pieces:
                last = min(first + limits[0], high[0])
                if not document.learned[first:last].any():
                    num_unlearned += 1
                    continue
                columns[STUDENT_IDS].append([*prefixes[""], *ids[""][first:last].tolist()])
                mask = [0] * len(prefixes[""]) + document.learned[first:last].astype(int).tolist()
                columns[LOSS_MASK].append(mask)
                for column, name in enumerate(self.teachers, start=1):
                    bound = (0, 0) if is_overlong else (low[column], high[column])
                    ids_column, spans_column = teacher_columns(name)
                    columns[ids_column].append([*prefixes[name], *ids[name][slice(*bound)].tolist()])
                    inside = _slice(spans[name], first, first if is_overlong else last)
                    shift = (len(prefixes[""]) - first, len(prefixes[name]) - bound[0])
                    columns[spans_column].append((inside + np.repeat(shift, 2)).ravel())
        return num_overlong, num_unlearned


def common_bounds(num_student: int, aligned: Sequence[tuple[Spans, int]]) -> NDArray[np.int64]:
    """Positions in a text at which a token ends for the student and all teachers.

    Args:
        num_student: Number of student tokens in the text.
        aligned: Spans and number of tokens of each teacher.

    Returns:
        ``[K + 1, 1 + M]`` token positions of the student and of each of M teachers, from zero to the end.
    """
    shared = np.arange(num_student + 1)
    maps: list[NDArray[np.int64]] = []
    for spans, num_teacher in aligned:
        teacher_position = np.full(num_student + 1, -1, dtype=np.int64)
        # On the teacher's side a gap may separate the end of a span from the start of the next one. The gap goes to
        # the later window, except at the end of the text.
        teacher_position[spans.student_start] = spans.teacher_start
        teacher_position[spans.student_end] = spans.teacher_end
        teacher_position[0], teacher_position[-1] = 0, num_teacher
        maps.append(teacher_position)
        shared = shared[teacher_position[shared] >= 0]
    return np.stack([shared, *(teacher_position[shared] for teacher_position in maps)], axis=1)


def _slice(spans: Spans, low: int, high: int) -> NDArray[np.int64]:
    start, end = np.searchsorted(spans.student_start, (low, high))
    return spans.to_array()[start:end]


def _with_eos(vocabulary: CanonicalVocabulary, sequences: list[list[int]]) -> list[NDArray[np.int64]]:
    eos = vocabulary.roles.get("eos")
    end = [] if eos is None else [eos]
    return [np.array([*ids, *end] if ids else [], dtype=np.int64) for ids in sequences]


def _spans_of_chat(aligner: SpanAligner, student: RenderedChat, teacher: RenderedChat, ended: Sequence[int]) -> Spans:
    """Spans of every content, and of turn-end tokens if both sides write the same one."""
    found = [np.empty((0, 4), dtype=np.int64)]
    for turn, (ours, theirs) in enumerate(zip(student.contents, teacher.contents, strict=True)):
        inside = aligner.align(student.ids[slice(*ours)], teacher.ids[slice(*theirs)], is_stripped=True)
        found.append(inside.to_array() + (ours[0], ours[0], theirs[0], theirs[0]))
        end, other_end = student.turn_ends[turn], teacher.turn_ends[turn]
        if turn in ended and end is not None and other_end is not None:
            same = aligner.align(student.ids[end : end + 1], teacher.ids[other_end : other_end + 1])
            found.append(same.to_array() + (end, end, other_end, other_end))
    return Spans(*np.concatenate(found).T)


def _turn_end(student: RenderedChat, turn: int, chat: Conversation) -> int:
    end = student.turn_ends[turn]
    if end is None:
        raise UserError(
            "learn_turn_end needs a special token after what the assistant says, but the chat template of the student "
            f"writes none in {chat}; leave learn_turn_end out, or give the student another chat_template"
        )
    return end


def _role(name: str) -> str:
    return f"teacher {name!r}" if name else "student"
