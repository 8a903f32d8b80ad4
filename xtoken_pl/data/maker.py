"""Rows of a source -> windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from xtoken_pl.data.conversations import read_documents
from xtoken_pl.data.packing import Packer, Packing
from xtoken_pl.data.sources import TextSource
from xtoken_pl.data.windows import Windower


class WindowMaker:
    """Makes windows of the rows of one source: reads their documents, cuts these, and packs what is short.

    Args:
        source: Whose rows they are.
        windower: Of the tokenizers.
        packing: How short windows are packed; those are put together that come from the same call.

    Raises:
        ValueError: If the source holds conversations, and a side has no chat template.
    """

    def __init__(self, source: TextSource, windower: Windower, packing: Packing = "none") -> None:
        self.source = source
        self.windower = windower
        self.packing = packing
        self._packer = None if packing == "none" else Packer(windower.sides, windower.sequence_length, packing)
        if source.holds_conversations:
            _ = windower.renderers  # refused before a row is read

    @property
    def columns(self) -> list[str]:
        """The columns of the source that it is given."""
        return self.source.columns

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the windows of some rows."""
        chats = self.source.holds_conversations
        own = self.windower.chat_fingerprint if chats else self.windower.fingerprint
        if self.packing == "none" and not chats:
            return own
        described = json.dumps([own, len(self.columns), self.source.learn_turn_end, self.packing])
        return hashlib.sha256(described.encode()).hexdigest()[:32]

    def __call__(self, *columns: Sequence[Any]) -> dict[str, list[Any]]:
        """Columns of rows -> columns of windows."""
        documents = read_documents(self.source, *columns)
        windows = self.windower(documents, learn_turn_end=self.source.learn_turn_end)
        return windows if self._packer is None else self._packer(windows)
