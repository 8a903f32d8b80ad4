"""Tokenizes conversations for all sides, and aligns what is said in them.

Contents are aligned with contents, reasoning with reasoning, and the tool calls of a turn with those of the same turn.
The text that only one side's chat template writes around them is in no span.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.alignment import SpanAligner
from xtoken_pl.data.chats.call_blocks import call_spans
from xtoken_pl.data.chats.conversations import Conversation, LearnedParts
from xtoken_pl.data.chats.rendered import RenderedText, UnrenderableError
from xtoken_pl.data.chats.renderer import ChatRenderer, RenderedChat
from xtoken_pl.data.cutting import Tokenized
from xtoken_pl.utilities.errors import UserError

logger = logging.getLogger(__name__)

#: Tokens to put before every window of a document, by side.
Prefixes = dict[str, tuple[int, ...]]


def tokenize_chats(
    chats: Sequence[Conversation],
    renderers: Mapping[str, ChatRenderer],
    aligners: Mapping[str, SpanAligner],
    learned: LearnedParts,
    left_out: list[str],
) -> Iterator[tuple[Conversation, Prefixes, Tokenized]]:
    """Tokenizes and aligns conversations.

    Those in which the assistant says nothing to learn, and those that a chat template cannot render, are left out.
    Warnings give the number of the former, and of the turns whose reasoning the student's template leaves out.

    Args:
        chats: The conversations.
        renderers: Renderers by side, the student's under ``""``.
        aligners: Aligners by teacher.
        learned: Parts of the assistant's turns that are learned besides their contents.
        left_out: Takes the reason for each conversation that a chat template cannot render.
    """
    kept = [chat for chat in chats if chat.learns_something(learned)]
    if len(kept) < len(chats):
        logger.warning(
            "%d conversations in which the assistant says nothing to learn are dropped", len(chats) - len(kept)
        )
    written = _written(kept, renderers, left_out)
    if not written:
        return
    rendered = {name: renderer.tokenize([texts[name] for _, texts in written]) for name, renderer in renderers.items()}
    if learned.reasoning:
        _warn_of_lost_reasoning([chat for chat, _ in written], rendered[""])
    for index, (chat, _) in enumerate(written):
        sides = {name: chats[index] for name, chats in rendered.items()}
        mask, ended = _learned_tokens(chat, sides[""], learned)
        spans = {name: align_chats(aligner, sides[""], sides[name], ended) for name, aligner in aligners.items()}
        ids = {name: side.ids for name, side in sides.items()}
        yield chat, {name: side.prefix for name, side in sides.items()}, Tokenized(ids, mask, spans)


def _written(
    chats: Sequence[Conversation], renderers: Mapping[str, ChatRenderer], left_out: list[str]
) -> list[tuple[Conversation, dict[str, RenderedText]]]:
    """Returns the conversations that the templates of all sides can render, with their texts by side."""
    written: list[tuple[Conversation, dict[str, RenderedText]]] = []
    for chat in chats:
        try:
            written.append((chat, {name: renderer.write(chat) for name, renderer in renderers.items()}))
        except UnrenderableError as error:
            left_out.append(str(error))
    return written


def _warn_of_lost_reasoning(chats: Sequence[Conversation], rendered: Sequence[RenderedChat]) -> None:
    turns = [
        pair for chat, side in zip(chats, rendered, strict=True) for pair in zip(chat.turns, side.turns, strict=True)
    ]
    thought = [tokens.reasoning for turn, tokens in turns if turn.is_learned and turn.reasoning]
    if num_lost := sum(start == end for start, end in thought):
        logger.warning(
            "the reasoning of %d of %d turns is not learned, since the chat template of the student does not write it",
            num_lost,
            len(thought),
        )


def _learned_tokens(
    chat: Conversation, student: RenderedChat, learned: LearnedParts
) -> tuple[NDArray[np.bool_], list[int]]:
    """Returns ``[n]``, whether each of the student's tokens is learned, and the turns whose end is learned."""
    mask = np.zeros(len(student.ids), dtype=bool)
    ended: list[int] = []
    for number, (turn, tokens) in enumerate(zip(chat.turns, student.turns, strict=True)):
        if not turn.is_learned:
            continue
        ranges = [tokens.content]
        if learned.reasoning:
            ranges.append(tokens.thought)
        if learned.tool_calls and tokens.calls is not None:
            ranges.append(tokens.calls.tokens)
        for start, end in ranges:
            mask[start:end] = True
        if learned.turn_ends and any(start < end for start, end in ranges):
            mask[_turn_end(student, number, chat)] = True
            ended.append(number)
    return mask, ended


def align_chats(
    aligner: SpanAligner, student: RenderedChat, teacher: RenderedChat, ended: Sequence[int] = ()
) -> NDArray[np.int64]:
    """Spans of what both sides write: contents, reasoning and what is equal around it, calls, and turn ends.

    Args:
        aligner: Aligner of the teacher.
        student: The conversation as the student reads it.
        teacher: The conversation as the teacher reads it.
        ended: Numbers of the turns whose ends are aligned.

    Returns:
        ``[S, 4]`` spans.
    """
    found = [np.empty((0, 4), dtype=np.int64)]

    def align(ours: tuple[int, int], theirs: tuple[int, int], **options: bool) -> None:
        if ours[0] == ours[1] or theirs[0] == theirs[1]:
            return
        inside = aligner.align(student.ids[slice(*ours)], teacher.ids[slice(*theirs)], **options).to_array()
        found.append(inside + (ours[0], ours[0], theirs[0], theirs[0]))

    for number, (ours, theirs) in enumerate(zip(student.turns, teacher.turns, strict=True)):
        if ours.opening_text == theirs.opening_text:
            align(ours.opening, theirs.opening, mid_text=True)
        align(ours.reasoning, theirs.reasoning, is_stripped=True)
        if ours.closing_text == theirs.closing_text:
            align(ours.closing, theirs.closing, mid_text=True)
        align(ours.content, theirs.content, is_stripped=True)
        if ours.calls is not None and theirs.calls is not None:
            found.append(call_spans(ours.calls, theirs.calls))
        if number in ended and ours.end is not None and theirs.end is not None:
            align((ours.end, ours.end + 1), (theirs.end, theirs.end + 1))
    return np.concatenate(found)


def _turn_end(student: RenderedChat, turn: int, chat: Conversation) -> int:
    end = student.turns[turn].end
    if end is None:
        raise UserError(
            "learn_turn_end needs a special token after what the assistant says, but the chat template of the student "
            f"writes none in {chat}; leave learn_turn_end out, or give the student another chat_template"
        )
    return end
