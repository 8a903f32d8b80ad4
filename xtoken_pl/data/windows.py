"""Cuts texts and conversations into windows that the student and every teacher read whole; no text is lost.

A text is tokenized once with each tokenizer and aligned once with each teacher. Windows are cut where a token ends on
all sides, never on each side by its own limit, so that the tails match. In a conversation the contents are aligned one
by one; the text that a side's chat template writes around them is in no span.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.alignment import SpanAligner
from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, teacher_columns
from xtoken_pl.data.chats.conversations import BY_DEFAULT, Conversation, Document, LearnedParts
from xtoken_pl.data.chats.renderer import ChatRenderer
from xtoken_pl.data.chats.tokens import Prefixes, tokenize_chats
from xtoken_pl.data.cutting import Tokenized, Window, WindowCutter, as_columns
from xtoken_pl.data.pieces import text_pieces
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.sections import SECTION_LENGTH
from xtoken_pl.utilities.errors import UserError

logger = logging.getLogger(__name__)

# Increased when the same text would give other windows, so that cached ones are rebuilt.
_VERSION = 1
# Increased when the same conversation would give other windows.
_CHAT_VERSION = 1


class WindowPiece(NamedTuple):
    """Windows that have been made at a time.

    Attributes:
        windows: The windows.
        done: Share of the documents that are done, 1 for the last windows.
        left_out: Reason for each conversation that is left out because a chat template cannot render it.
        chats: The conversations that the windows are of, in order, and the number of windows of each.
    """

    windows: list[Window]
    done: float
    left_out: tuple[str, ...] = ()
    chats: tuple[tuple[Conversation, int], ...] = ()


class Windower:
    """Makes windows from texts or conversations: token ids of every side, a loss mask, and the spans of every teacher.

    Every window of a text starts with the special tokens that a tokenizer puts before a text (bos), and the last one
    ends with eos on every side that has one. A window of a conversation starts with bos if the side's template does,
    and the last one ends as the template ends.

    Args:
        student: Vocabulary of the student.
        teachers: Vocabularies of the teachers, by name.
        sequence_length: Maximum number of tokens of a window on any side, special tokens included.

    Attributes:
        section_length: Number of characters above which a text is tokenized in sections, with the same windows.

    Raises:
        UserError: If ``sequence_length`` leaves no room for a span.
    """

    section_length = SECTION_LENGTH

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

    @property
    def columns(self) -> list[str]:
        """Columns of a window."""
        return [STUDENT_IDS, LOSS_MASK, *(column for name in self.teachers for column in teacher_columns(name))]

    def __call__(self, documents: Sequence[Document], learned: LearnedParts = BY_DEFAULT) -> dict[str, list[Any]]:
        """Cuts all documents into windows.

        Args:
            documents: Texts or conversations.
            learned: Parts of the assistant's turns that are learned besides their contents.

        Returns:
            The windows as columns: ``student_ids``; ``loss_mask``, 1 for tokens to learn; and for each teacher
            ``NAME/ids`` and ``NAME/spans``, flattened (student_start, student_end, teacher_start, teacher_end).
        """
        pieces = self.pieces(documents, learned)
        return as_columns(self.columns, [window for piece in pieces for window in piece.windows])

    def pieces(self, documents: Sequence[Document], learned: LearnedParts = BY_DEFAULT) -> Iterator[WindowPiece]:
        """Cuts documents into windows, a long text piece by piece, so that memory is bounded.

        Args:
            documents: Texts or conversations.
            learned: Parts of the assistant's turns that are learned besides their contents.
        """
        # Each document counts with one more than its length, so that only the last piece reaches the total.
        total, done = sum(1 + _length(document) for document in documents), 0
        counts = Counter[str]()
        for is_long, group in groupby(documents, lambda document: _length(document) > self.section_length):
            if not is_long:
                short = list(group)
                done += sum(1 + _length(document) for document in short)
                left_out: list[str] = []
                windows, chats = self._windows_of(short, counts, learned, left_out)
                yield WindowPiece(windows, done / total, tuple(left_out), tuple(chats))
                continue
            for text in group:
                assert isinstance(text, str), "only texts have a length"
                for windows, end in self._windows_of_long(text, counts):
                    yield WindowPiece(windows, (done + end) / total)
                done += 1 + len(text)
        if counts["overlong"]:
            logger.warning(
                "%d stretches of text without a common token boundary are longer than sequence_length=%d; "
                "they are trained on with cross-entropy alone",
                counts["overlong"],
                self.sequence_length,
            )
        if counts["unlearned"]:
            logger.warning(
                "%d windows of conversations longer than sequence_length=%d hold nothing to learn and are dropped",
                counts["unlearned"],
                self.sequence_length,
            )

    def _windows_of(
        self, documents: Sequence[Document], counts: Counter[str], learned: LearnedParts, left_out: list[str]
    ) -> tuple[list[Window], list[tuple[Conversation, int]]]:
        """Returns windows, and the conversations that they are of with their numbers of windows."""
        texts = [document for document in documents if isinstance(document, str)]
        chats = [document for document in documents if isinstance(document, Conversation)]
        assert len(texts) + len(chats) == len(documents), "documents are texts or conversations"
        windows: list[Window] = []
        chats_of_windows: list[tuple[Conversation, int]] = []
        # Texts need no chat templates.
        tokenized_chats = tokenize_chats(chats, self.renderers, self.aligners, learned, left_out) if chats else ()
        for document, prefixes, tokenized in (*self._texts(texts), *tokenized_chats):
            cutter = WindowCutter(prefixes, self.sequence_length)
            own = list(cutter.cut(tokenized, is_last=True))
            windows += own
            if own and isinstance(document, Conversation):
                chats_of_windows.append((document, len(own)))
            counts.update(cutter.counts)
        return windows, chats_of_windows

    def _windows_of_long(self, text: str, counts: Counter[str]) -> Iterator[tuple[list[Window], int]]:
        """Yields the windows of a text piece by piece, and the number of characters that are done."""
        cutter = WindowCutter(self.text_prefixes, self.sequence_length)
        start = 0
        for piece in text_pieces(text, self.sides, self.section_length):
            is_last = piece.end == len(text)
            ids = _with_eos(self.sides, piece.ids) if is_last else piece.ids
            windows = list(cutter.cut(self._aligned(ids, mid_text=start > 0), is_last=is_last))
            start = piece.end + is_last
            yield windows, start
        counts.update(cutter.counts)

    # Documents -> tokens and spans -----------------------------------------------------------------------------------

    @property
    def text_prefixes(self) -> Prefixes:
        """Tokens to put before every window of a text, by side."""
        return {name: side.prefix_ids for name, side in self.sides.items()}

    def _texts(self, texts: list[str]) -> Iterator[tuple[str, Prefixes, Tokenized]]:
        for batch in _batches(texts, self.section_length):
            encoded = {name: side.encode(batch) for name, side in self.sides.items()}
            for index in range(len(batch)):
                ids = {name: np.array(sequences[index], dtype=np.int64) for name, sequences in encoded.items()}
                if len(ids[""]):
                    yield batch[index], self.text_prefixes, self._aligned(_with_eos(self.sides, ids))

    def _aligned(self, ids: dict[str, NDArray[np.int64]], *, mid_text: bool = False) -> Tokenized:
        spans = {
            name: aligner.align(ids[""], ids[name], mid_text=mid_text).to_array()
            for name, aligner in self.aligners.items()
        }
        return Tokenized(ids, np.ones(len(ids[""]), dtype=bool), spans)


def _length(document: Document) -> int:
    """Number of characters of a text; 0 for a conversation, which is tokenized message by message."""
    return len(document) if isinstance(document, str) else 0


def _batches(texts: Sequence[str], length: int) -> Iterator[list[str]]:
    """Groups texts so that those tokenized at once are not much longer than ``length`` characters."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if sum(map(len, batch)) >= length:
            yield batch
            batch = []
    if batch:
        yield batch


def _with_eos(
    sides: Mapping[str, CanonicalVocabulary], ids: Mapping[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.int64]]:
    """Adds eos on every side that has one and any token."""
    ends = {name: [side.roles["eos"]] if "eos" in side.roles else [] for name, side in sides.items()}
    return {name: np.concatenate((own, ends[name])).astype(np.int64) if len(own) else own for name, own in ids.items()}


def _role(name: str) -> str:
    return f"teacher {name!r}" if name else "student"
