"""Makes windows from the rows of a source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from xtoken_pl.data.conversations import read_documents, rewritten
from xtoken_pl.data.cutting import Window, as_columns
from xtoken_pl.data.packing import Packer, Packing
from xtoken_pl.data.sources import TextSource
from xtoken_pl.data.windows import Windower, WindowPiece
from xtoken_pl.tokenization.normalization import CommonNormalizer

#: Number of documents that are tokenized, and packed, at a time.
DOCUMENTS_PER_CALL = 100


class WindowMaker:
    """Makes windows from the rows of one source: reads documents, cuts them, and packs short windows.

    Args:
        source: Source of the rows.
        windower: Cuts documents into windows.
        packing: How short windows are packed; only windows from the same call are packed together.
        normalize: Rewrite texts as the normalizers of all sides do, before any side reads them.

    Raises:
        UserError: If the source holds conversations and a side has no chat template, or the normalizers of two sides
            contradict each other.
    """

    def __init__(
        self, source: TextSource, windower: Windower, packing: Packing = "none", *, normalize: bool = False
    ) -> None:
        self.source = source
        self.windower = windower
        self.packing = packing
        self.normalizer = CommonNormalizer(windower.named_sides) if normalize else None
        self._packer = None if packing == "none" else Packer(windower.sides, windower.sequence_length, packing)
        if source.holds_conversations:
            _ = windower.renderers  # raises here, before any row is read

    @property
    def columns(self) -> list[str]:
        """Columns of the source that a call takes."""
        return self.source.columns

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the windows of a row."""
        chats = self.source.holds_conversations
        own = self.windower.chat_fingerprint if chats else self.windower.fingerprint
        if self.packing == "none" and not chats and self.normalizer is None:
            return own
        normalized = [] if self.normalizer is None else ["normalized"]
        num_columns = len(self.source.document_columns)
        more = [*normalized, *self.source.learned.left_out, *(["tools"] if self.source.tools_field else [])]
        described = json.dumps([own, num_columns, self.source.learn_turn_end, self.packing, *more])
        return hashlib.sha256(described.encode()).hexdigest()[:32]

    @property
    def window_columns(self) -> list[str]:
        """Columns of a window."""
        return [*self.windower.columns, *([] if self._packer is None else self._packer.start_columns)]

    def __call__(self, *columns: Sequence[Any]) -> dict[str, list[Any]]:
        """Converts columns of rows to columns of windows."""
        pieces = self.pieces(*columns)
        return as_columns(self.window_columns, [window for piece in pieces for window in piece.windows])

    def pieces(self, *columns: Sequence[Any]) -> Iterator[WindowPiece]:
        """Converts columns of rows to windows, a long text piece by piece.

        Packed windows come with the last piece, since any of them may hold a window of any row.
        """
        documents = read_documents(self.source, *columns)
        if self.normalizer is not None:
            documents = [rewritten(document, self.normalizer) for document in documents]
        held: list[Window] = []
        for piece in self.windower.pieces(documents, self.source.learned):
            if self._packer is None:
                yield piece
                continue
            held += piece.windows
            yield WindowPiece(self._packer.pack(held) if piece.done == 1 else [], piece.done)
