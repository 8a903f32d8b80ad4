"""Makes windows from the rows of a source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from xtoken_pl.data.chats.conversations import Document, RowError, read_documents, rewritten
from xtoken_pl.data.cutting import Window, as_columns
from xtoken_pl.data.packing import Packer, Packing
from xtoken_pl.data.prompts import PromptMaker
from xtoken_pl.data.sources.text_source import TextSource
from xtoken_pl.data.windows import Windower, WindowPiece
from xtoken_pl.specs import PromptSettings
from xtoken_pl.tokenization.normalization import CommonNormalizer
from xtoken_pl.utilities.words import did_you_mean

#: Number of documents that are tokenized, and packed, at a time.
DOCUMENTS_PER_CALL = 100


class _Sides(NamedTuple):
    """The student and the teachers that read a document together."""

    windower: Windower
    packer: Packer | None
    prompts: PromptMaker | None


class WindowMaker:
    """Makes windows from the rows of one source: reads documents, cuts them, and packs short windows.

    If the rows name their teachers (``teacher_field``), each is cut with the student and its own teacher alone, and
    only rows of the same teacher are packed together; its windows hold empty lists for all other teachers.

    Args:
        source: Source of the rows.
        windower: Cuts documents into windows, with all teachers of the source.
        packing: How short windows are packed; only windows from the same call are packed together.
        normalize: Rewrite texts as the normalizers of all sides do, before any side reads them.
        prompts: How prompts are taken; None for windows without prompts.

    Raises:
        UserError: If the source holds conversations and a side has no chat template, or the normalizers of two sides
            contradict each other.
    """

    def __init__(
        self,
        source: TextSource,
        windower: Windower,
        packing: Packing = "none",
        *,
        normalize: bool = False,
        prompts: PromptSettings | None = None,
    ) -> None:
        self.source = source
        self.windower = windower
        self.packing = packing
        self.prompts = prompts
        self.normalizer = CommonNormalizer(windower.named_sides) if normalize else None
        self._sides = self._read_together(windower)
        self._sides_of_teacher: dict[str, _Sides] = {}
        if source.holds_conversations:
            _ = windower.renderers  # raises here, before any row is read

    def _read_together(self, windower: Windower) -> _Sides:
        prompts = None if self.prompts is None else PromptMaker(windower, self.prompts)
        if self.packing == "none":
            return _Sides(windower, None, prompts)
        assert prompts is None, "packed windows have no prompts"
        return _Sides(windower, Packer(windower.sides, windower.sequence_length, self.packing), None)

    @property
    def columns(self) -> list[str]:
        """Columns of the source that a call takes."""
        return self.source.columns

    @property
    def takes_prompts_alone(self) -> bool:
        """Whether windows hold nothing but a prompt."""
        return self.prompts is not None and self.prompts.only

    @property
    def left_out_are(self) -> tuple[str, str]:
        """The word for one, and for several, of what may be left out."""
        return ("conversation", "conversations") if self.source.holds_conversations else ("window", "windows")

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the windows of a row, and their prompts."""
        if (prompts := self._sides.prompts) is None:
            return self._windows_fingerprint
        described = prompts.described(is_chat=self.source.holds_conversations)
        return hashlib.sha256(json.dumps([self._windows_fingerprint, *described]).encode()).hexdigest()[:32]

    @property
    def _windows_fingerprint(self) -> str:
        chats, is_mixed = self.source.holds_conversations, self.source.teacher_field is not None
        own = self.windower.chat_fingerprint if chats else self.windower.fingerprint
        if self.packing == "none" and not chats and not is_mixed and self.normalizer is None:
            return own
        normalized = [] if self.normalizer is None else ["normalized"]
        num_columns = len(self.source.document_columns)
        more = [*normalized, *(["a teacher for each row"] if is_mixed else [])]
        more += [*self.source.learned.left_out, *(["tools"] if self.source.tools_field else [])]
        described = json.dumps([own, num_columns, self.source.learn_turn_end, self.packing, *more])
        return hashlib.sha256(described.encode()).hexdigest()[:32]

    @property
    def window_columns(self) -> list[str]:
        """Columns of a window."""
        _, packer, prompts = self._sides
        more = [*([] if packer is None else packer.start_columns), *([] if prompts is None else prompts.columns)]
        return [*self.windower.columns, *more]

    def __call__(self, *columns: Sequence[Any]) -> dict[str, list[Any]]:
        """Converts columns of rows to columns of windows."""
        pieces = self.pieces(*columns)
        return as_columns(self.window_columns, [window for piece in pieces for window in piece.windows])

    def pieces(self, *columns: Sequence[Any]) -> Iterator[WindowPiece]:
        """Converts columns of rows to windows, a long text piece by piece.

        Packed windows come with the last piece of their teacher, since any of them may hold a window of any row.
        """
        documents = read_documents(self.source, *columns)
        if self.normalizer is not None:
            documents = [rewritten(document, self.normalizer) for document in documents]
        if self.source.teacher_field is None:
            yield from self._cut(documents, self._sides)
            return
        groups: dict[str, list[Document]] = {}
        for place, row in enumerate(zip(*columns, strict=True)):
            try:
                groups.setdefault(self.teacher_of(row), []).append(documents[place])
            except RowError as error:
                where = f"row {place + 1:,} of {len(documents):,} of {self.source.path!r} that are read together"
                raise error.at(where) from None
        done = 0
        for teacher, own in groups.items():
            for piece in self._cut(own, self._sides_for(teacher)):
                windows = [self._with_all_columns(window) for window in piece.windows]
                yield WindowPiece(windows, (done + piece.done * len(own)) / len(documents), piece.left_out)
            done += len(own)

    def _cut(self, documents: Sequence[Document], sides: _Sides) -> Iterator[WindowPiece]:
        if sides.prompts is not None:
            yield from sides.prompts.pieces(documents, self.source.learned)
            return
        held: list[Window] = []
        for piece in sides.windower.pieces(documents, self.source.learned):
            if sides.packer is None:
                yield piece
                continue
            held += piece.windows
            yield WindowPiece(sides.packer.pack(held) if piece.done == 1 else [], piece.done, piece.left_out)

    # Rows that name their teachers -----------------------------------------------------------------------------------

    def teacher_of(self, row: Sequence[Any]) -> str:
        """Returns the teacher that a row names, ``""`` for none.

        Args:
            row: Values of :attr:`columns`.

        Raises:
            RowError: If it is not one of the source's teachers.
        """
        if self.source.teacher_field is None:
            return ""
        name = row[-1] or ""
        if name and name not in self.windower.teachers:
            raise RowError(
                f"{self.source.teacher_field} must name a teacher of the source, got {name!r} in ",
                did_you_mean(name, self.windower.teachers, "see model.teachers") + ", or null for no teacher",
            )
        return name

    def _sides_for(self, teacher: str) -> _Sides:
        if teacher not in self._sides_of_teacher:
            whole = self.windower
            own = {name: vocabulary for name, vocabulary in whole.teachers.items() if name == teacher}
            self._sides_of_teacher[teacher] = self._read_together(Windower(whole.student, own, whole.sequence_length))
        return self._sides_of_teacher[teacher]

    def _with_all_columns(self, window: Window) -> Window:
        return {column: window.get(column, _NOTHING) for column in self.window_columns}


_NOTHING = np.empty(0, dtype=np.int64)
