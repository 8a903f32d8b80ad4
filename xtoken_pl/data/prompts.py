"""Takes the prompts that a student writes from out of windows of texts and out of conversations.

A prompt ends, and if it is too long begins, where a token ends on all sides: every side reads the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.batch import LOSS_MASK, PROMPT, STUDENT_IDS, prompt_column, teacher_columns
from xtoken_pl.data.chats.conversations import Conversation, Document, LearnedParts
from xtoken_pl.data.chats.rendered import RenderedText, UnrenderableError
from xtoken_pl.data.chats.renderer import RenderedChat
from xtoken_pl.data.chats.tokens import Prefixes, align_chats
from xtoken_pl.data.cutting import Tokenized, Window, common_bounds
from xtoken_pl.data.windows import Windower, WindowPiece
from xtoken_pl.specs import PromptSettings

# n tokens, K + 1 bounds, M teachers

# Increased when the same text or conversation would give another prompt.
_VERSION = 1
_NOTHING = np.empty(0, dtype=np.int64)


class NoPromptError(Exception):
    """Raised with the reason why a row has no prompt."""


class PromptMaker:
    """Takes prompts as columns of a window.

    The columns are ``prompt`` (whether it is a conversation's, and whether it is cut), empty without a prompt, and the
    token ids by side.

    Args:
        windower: Cuts the texts or conversations, for the sides that read the prompts.
        settings: How prompts are taken.
    """

    def __init__(self, windower: Windower, settings: PromptSettings) -> None:
        self.windower = windower
        self.settings = settings
        self.room = windower.sequence_length - settings.max_new_tokens

    @property
    def columns(self) -> list[str]:
        """Columns of a prompt."""
        return [PROMPT, *map(prompt_column, self.windower.sides)]

    def described(self, *, is_chat: bool) -> list[int | str]:
        """Lists everything that determines the prompt of a window or of a conversation."""
        end = [] if is_chat else [self.settings.end or self.settings.num_bytes]
        return [_VERSION, "prompts alone" if self.settings.only else "prompts", self.room, *end]

    def pieces(self, documents: Sequence[Document], learned: LearnedParts) -> Iterator[WindowPiece]:
        """Cuts documents into windows with their prompts; or, if only prompts are wanted, takes these alone.

        A window without a prompt has empty columns. If only prompts are wanted, it is left out, and a window has
        nothing but its prompt.

        Args:
            documents: Texts or conversations.
            learned: Parts of the assistant's turns that are learned besides their contents.
        """
        chats = [document for document in documents if isinstance(document, Conversation)]
        if chats and self.settings.only:
            reasons: list[str] = []
            yield WindowPiece(self._alone(self.of_chats(chats, reasons)), 1, tuple(reasons))
            return
        for piece in self.windower.pieces(documents, learned):
            reasons = []
            if piece.chats:
                own = self.of_chats([chat for chat, _ in piece.chats], reasons)
                found = [prompt for prompt, (_, count) in zip(own, piece.chats, strict=True) for _ in range(count)]
            else:
                found = self.of_texts(piece.windows, reasons)
            if self.settings.only:
                yield WindowPiece(self._alone(found), piece.done, (*piece.left_out, *reasons))
                continue
            nothing = dict.fromkeys(self.columns, _NOTHING)
            pairs = zip(piece.windows, found, strict=True)
            yield piece._replace(windows=[window | (prompt or nothing) for window, prompt in pairs])

    def _alone(self, found: Sequence[Window | None]) -> list[Window]:
        empty = dict.fromkeys(self.windower.columns, _NOTHING)
        return [empty | prompt for prompt in found if prompt is not None]

    # Texts -----------------------------------------------------------------------------------------------------------

    def of_texts(self, windows: Sequence[Window], reasons: list[str]) -> list[Window | None]:
        """Takes the prompts at the beginning of windows of texts.

        Args:
            windows: The windows.
            reasons: Takes the reason for each window without a prompt.

        Returns:
            Columns of each prompt; None for a window without one.
        """
        found: list[Window | None] = []
        for window in windows:
            try:
                found.append(self._of_text(window))
            except NoPromptError as error:
                found.append(None)
                reasons.append(str(error))
        return found

    def _of_text(self, window: Window) -> Window:
        self._check_teachers()
        prefixes = self.windower.text_prefixes
        text = _without_prefixes(window, prefixes)
        bounds, num_bytes = self._bounds(text)
        # The first of several bounds at the same byte: eos is no part of a prompt.
        ends = np.flatnonzero(num_bytes <= self._end(text))
        end = int(np.searchsorted(num_bytes, num_bytes[ends[-1]]))
        if not bounds[end].all():
            raise NoPromptError(
                f"no token ends on all sides within the first {self._end(text)} bytes of a window that would be its "
                "prompt; set model.rollouts.prompt_bytes higher"
            )
        return self._columns(text, prefixes, bounds[:end], bounds[end], is_chat=False)

    def _end(self, text: Tokenized) -> int:
        """Largest number of bytes of the prompt of a text."""
        if self.settings.end is None:
            return self.settings.num_bytes
        stream, _ = self.windower.student.byte_stream(text.ids[""])
        # A window may begin or end within a character.
        decoded = stream.tobytes().decode(errors="surrogateescape")
        match = re.search(self.settings.end, decoded)
        if match is None:
            raise NoPromptError(
                f"the prompt of a window of a text ends with a match of {self.settings.end!r}, which a window does not "
                "hold; set model.rollouts.prompt_end to an expression that fits the data, or leave it out"
            )
        return len(decoded[: match.end()].encode(errors="surrogateescape"))

    # Conversations ---------------------------------------------------------------------------------------------------

    def of_chats(self, chats: Sequence[Conversation], reasons: list[str]) -> list[Window | None]:
        """Takes the prompts of conversations: everything before the assistant's last answer.

        Args:
            chats: The conversations.
            reasons: Takes the reason for each conversation without a prompt.

        Returns:
            Columns of each prompt; None for a conversation without one.
        """
        written = [self._written(chat, reasons) for chat in chats]
        texts = [own for own in written if own is not None]
        rendered = {
            name: iter(renderer.tokenize([own[name] for own in texts]))
            for name, renderer in (self.windower.renderers.items() if texts else ())
        }
        found: list[Window | None] = []
        for chat, own in zip(chats, written, strict=True):
            prompt = None
            if own is not None:
                try:
                    prompt = self._of_chat({name: next(sides) for name, sides in rendered.items()}, chat)
                except NoPromptError as error:
                    reasons.append(str(error))
            found.append(prompt)
        return found

    def _written(self, chat: Conversation, reasons: list[str]) -> dict[str, RenderedText] | None:
        """Writes what the assistant is to answer for every side."""
        try:
            self._check_teachers()
            if not chat.before_answer.turns:
                raise NoPromptError(f"a prompt ends with a message that is not the assistant's, and {chat} has none")
            return {name: renderer.write_prompt(chat) for name, renderer in self.windower.renderers.items()}
        except (NoPromptError, UnrenderableError) as error:
            reasons.append(str(error))
            return None

    def _of_chat(self, sides: dict[str, RenderedChat], chat: Conversation) -> Window:
        prefixes = {name: side.prefix for name, side in sides.items()}
        ids = {name: side.ids for name, side in sides.items()}
        ends = np.array([len(own) for own in ids.values()])
        whole = Tokenized(ids, np.zeros(len(ids[""]), dtype=bool), {})
        try:
            return self._columns(whole, prefixes, np.zeros((1, len(ids)), dtype=np.int64), ends, is_chat=True)
        except NoPromptError:  # it must be cut
            aligners = self.windower.aligners.items()
            spans = {name: align_chats(aligner, sides[""], sides[name]) for name, aligner in aligners}
            aligned = Tokenized(ids, whole.learned, spans)
            bounds, _ = self._bounds(aligned)
            try:
                # Behind the last bound there is nothing that all sides say.
                return self._columns(aligned, prefixes, bounds[:-1], ends, is_chat=True)
            except NoPromptError as error:
                raise NoPromptError(f"{error}, in {chat}") from None

    # Both ------------------------------------------------------------------------------------------------------------

    def _check_teachers(self) -> None:
        if not self.windower.teachers:
            raise NoPromptError("no teacher judges what the student writes behind a row that names no teacher")

    def _bounds(self, text: Tokenized) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places at which a token ends on all sides and no character is cut.

        Returns:
            ``[K + 1, 1 + M]`` positions, and ``[K + 1]`` number of the student's bytes before them.
        """
        bounds = common_bounds(text, is_end=False)
        stream, lengths = self.windower.student.byte_stream(text.ids[""])
        num_bytes = np.concatenate(([0], np.cumsum(lengths)))[bounds[:, 0]]
        begins = np.append((stream & 0xC0) != 0x80, True)  # not within the bytes of a character
        whole = begins[num_bytes] | (num_bytes == 0)
        return bounds[whole], num_bytes[whole]

    def _columns(
        self,
        text: Tokenized,
        prefixes: Prefixes,
        starts: NDArray[np.int64],
        end: NDArray[np.int64],
        *,
        is_chat: bool,
    ) -> Window:
        """Columns of the longest prompt up to ``end`` that leaves room, from one of the bounds ``starts``."""
        room = self.room - np.array([len(prefix) for prefix in prefixes.values()])
        fits = ((end - starts <= room) & (starts < end)).all(axis=1)
        if not fits.any():
            raise NoPromptError(
                f"a prompt must leave room for max_new_tokens={self.settings.max_new_tokens} in sequence_length="
                f"{self.windower.sequence_length}, and a longer one can be cut only where a token ends on all sides; "
                "lower model.rollouts.max_new_tokens, or raise data.sequence_length"
            )
        start = starts[np.argmax(fits)]
        ids = {
            prompt_column(name): np.concatenate((prefixes[name], own[first:last])).astype(np.int64)
            for (name, own), first, last in zip(text.ids.items(), start.tolist(), end.tolist(), strict=True)
        }
        return {PROMPT: np.array([is_chat, start.any()], dtype=np.int64), **ids}


def _without_prefixes(window: Window, prefixes: Prefixes) -> Tokenized:
    """Tokens and spans of a window of a text, without what stands before the text."""
    ids, spans = {"": window[STUDENT_IDS][len(prefixes[""]) :]}, {}
    for name in (name for name in prefixes if name):
        ids_column, spans_column = teacher_columns(name)
        ids[name] = window[ids_column][len(prefixes[name]) :]
        shift = np.repeat((len(prefixes[""]), len(prefixes[name])), 2)
        spans[name] = window[spans_column].reshape(-1, 4) - shift
    return Tokenized(ids, window[LOSS_MASK][len(prefixes[""]) :].astype(bool), spans)
