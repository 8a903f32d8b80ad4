"""Refuses a source of which no conversation can be rendered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from xtoken_pl.data.chats.conversations import Conversation, read_documents
from xtoken_pl.data.chats.rendered import UnrenderableError
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.sources.local_texts import columns_of
from xtoken_pl.utilities.errors import UserError


def refuse_left_out(rows: Iterable[Mapping[str, Any]], maker: WindowMaker) -> None:
    """Gives the reason if a source has no windows because the chat templates render none of its conversations.

    Args:
        rows: First rows of the source.
        maker: Maker of the windows.

    Raises:
        UserError: If a chat template cannot render one of these conversations.
    """
    if not maker.source.holds_conversations:
        return
    columns = zip(*(columns_of(maker.source, row) for row in rows), strict=True)
    chats = [chat for chat in read_documents(maker.source, *columns) if isinstance(chat, Conversation)]
    for chat in chats:
        for renderer in maker.windower.renderers.values():
            try:
                renderer.write(chat)
            except UnrenderableError as error:
                raise UserError(
                    f"every conversation of {maker.source.path!r} is left out. The first: {error}"
                ) from error
