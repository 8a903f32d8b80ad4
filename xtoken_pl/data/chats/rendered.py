"""Locates the contents of a conversation, and what the assistant writes around them, in the text that a template wrote.

The template is applied twice: to marks in place of the units, which shows its own text around each of them, and to the
units themselves, which shows how it spells them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import NamedTuple

from xtoken_pl.data.chats.conversations import Conversation
from xtoken_pl.data.chats.units import Kind, Messages, Unit, messages_of
from xtoken_pl.utilities.errors import UserError

# Placeholder for a unit: private use characters, which no template writes or trims.
_MARK = "\ue0c0{}\ue0c1"
_MARKS = re.compile(_MARK.format(r"(\d+)"))
_TO_LAST_TAG = re.compile(r"(?s).*[\s>\])}]|")


class UnrenderableError(UserError):
    """Raised for a conversation that a chat template rejects, or does not write as it is."""


class RejectedError(UnrenderableError):
    """Raised for a conversation that a chat template rejects."""


class Place(NamedTuple):
    """Number of a unit and its characters [start, end) in a rendered text."""

    unit: int
    start: int
    end: int


class Stretch(NamedTuple):
    """Characters [start, end) of a rendered text that belong to a turn.

    ``part`` is ``content``, ``reasoning``, the ``opening`` and ``closing`` text that the assistant writes around its
    reasoning, or ``calls``: the text of all calls, with their units.
    """

    part: str
    turn: int
    start: int
    end: int
    units: tuple[Place, ...] = ()


class RenderedText:
    """A conversation as a template writes it.

    Args:
        conversation: The conversation.
        render: Applies the template to messages; ``prompt=True`` adds the generation prompt.
        special: Pattern of the special tokens; None if there are none.
        as_text: Whether the template is given the arguments of calls as JSON text.

    Attributes:
        text: The text.
        stretches: Parts of the text that belong to a turn, in order; the rest is the template's.

    Raises:
        UnrenderableError: If the template rejects the conversation, or does not write every content and every call
            once, in order and unchanged.
    """

    def __init__(
        self,
        conversation: Conversation,
        render: Callable[..., str],
        special: re.Pattern[str] | None,
        *,
        as_text: bool = False,
    ) -> None:
        self._render = render
        self._special = special
        self._found: dict[tuple[str, ...], int] = {}
        self.units: list[Unit] = []
        self.marked = messages_of(conversation.turns, self._mark, as_text=as_text)
        self.marked_text = render(self.marked)
        self.text = render(messages_of(conversation.turns, lambda unit: unit.text, as_text=as_text))
        self._places = list(self._find_units())
        self._check_places()
        self.stretches = list(self._find_stretches())

    def _mark(self, unit: Unit) -> str:
        if not unit.text:
            return ""
        self.units.append(unit)
        return _MARK.format(len(self.units) - 1)

    # Units -----------------------------------------------------------------------------------------------------------

    def _find_units(self) -> Iterator[Place]:
        """Yields the first place of every unit, in the order of the text."""
        around, units = _split(self.marked_text)
        position, known = 0, set[int]()
        for before, number, after in zip(around, units, around[1:], strict=False):
            unit = self.units[number] if number < len(self.units) else Unit(0, Kind.CONTENT, "", may_be_json=False)
            position += len(before)
            spellings = (text for text in unit.spellings if self.text.startswith(text + after, position))
            written = next(spellings, None)
            is_repeated = number in known and unit.kind is Kind.CONTENT
            if written is None or is_repeated or not self.text.startswith(before, position - len(before)):
                raise _changed()
            if number not in known:
                yield Place(number, position, position + len(written))
            known.add(number)
            position += len(written)
        if self.text[position:] != around[-1]:
            raise _changed()

    def _check_places(self) -> None:
        """Refuses a text in which a content or a call is missing or moved; a template may leave out reasoning."""
        written = [self.units[place.unit] for place in self._places]
        order = [(unit.turn, unit.kind) for unit in written]
        missing = {*range(len(self.units))} - {place.unit for place in self._places}
        kinds = {self.units[number].kind for number in missing}
        if Kind.CALL in kinds:
            raise UnrenderableError("leaves out tool calls")
        if Kind.CONTENT in kinds or order != sorted(order):
            raise _changed()

    # Turns -----------------------------------------------------------------------------------------------------------

    def _find_stretches(self) -> Iterator[Stretch]:
        groups = [(turn, list(places)) for turn, places in groupby(self._places, lambda p: self.units[p.unit].turn)]
        position, previous = 0, None
        for number, (turn, places) in enumerate(groups):
            follows = groups[number + 1][1][0].start if number + 1 < len(groups) else len(self.text)
            before = self.text[position : places[0].start]
            for stretch in self._stretches_of(turn, places, before, previous, self.text[places[-1].end : follows]):
                if stretch.start < stretch.end:
                    yield stretch
            position, previous = places[-1].end, places[-1].unit

    def _stretches_of(
        self, turn: int, places: list[Place], before: str, previous: int | None, after: str
    ) -> Iterator[Stretch]:
        """Yields the stretches of a turn, whose first unit stands after ``before`` and its last one before ``after``.

        ``previous`` is the unit before the turn.
        """
        of_kind = {kind: [p for p in places if self.units[p.unit].kind is kind] for kind in Kind}
        content, calls = of_kind[Kind.CONTENT], of_kind[Kind.CALL]
        begin = places[0].start
        if of_kind[Kind.REASONING] or (calls and not content):
            find_prompt = partial(self._prompt_end, turn, before, previous)
            begin += self._once(find_prompt, "prompt", before, self._role(turn - 1)) - len(before)
        end = places[-1].end
        if calls or not content:
            find_end = partial(self._turn_end, turn, places[-1].unit, after)
            end += self._once(find_end, "turn", after, self._role(turn + 1))
        for thought in of_kind[Kind.REASONING]:
            yield Stretch("opening", turn, begin, thought.start)
            yield Stretch("reasoning", turn, thought.start, thought.end)
            begin = content[0].start if content else end
            if calls and not content:
                closing = self.text[thought.end : calls[0].start]
                find_closing = partial(self._closing_end, turn, thought.unit, closing)
                begin = thought.end + self._once(find_closing, "closing", closing)
            yield Stretch("closing", turn, thought.end, begin)
        for said in content:
            yield Stretch("content", turn, said.start, said.end)
            begin = said.end
        if calls:
            yield Stretch("calls", turn, begin, end, tuple(calls))

    def _once(self, find: Callable[[], int], *given: str) -> int:
        """Returns what ``find`` returns; the same text is searched once, as each search renders earlier messages."""
        if given not in self._found:
            self._found[given] = find()
        return self._found[given]

    def _role(self, turn: int) -> str:
        return str(self.marked[turn]["role"]) if 0 <= turn < len(self.marked) else ""

    def _prompt_end(self, turn: int, before: str, previous: int | None) -> int:
        """Number of characters of ``before`` that the assistant is given: up to the end of the generation prompt."""
        opened, closed = (self._rest(self.marked[:turn], previous, prompt=prompt) for prompt in (True, False))
        if opened is None or closed is None or not opened.startswith(closed):
            return len(before)
        if prompt := opened.removeprefix(closed):
            if before.startswith(opened):
                return len(opened)
            # Some templates begin the reasoning in their prompt, and then write a turn that has none without it.
            common = _num_equal_tags(before, opened)
            first_line = prompt.find("\n") + 1 or len(prompt)
            if common >= len(closed) + first_line:
                return common
        # Without such a prompt, what the template writes before a content takes its place.
        says = {"role": "assistant", "content": _MARK.format(len(self.units))}
        plain = self._rest([*self.marked[:turn], says], previous, until=len(self.units))
        return len(before) if plain is None or not before.startswith(plain) else len(plain)

    def _turn_end(self, turn: int, last: int, after: str) -> int:
        """Number of characters of ``after`` up to the special token that ends the turn."""
        tail = after
        if turn + 1 < len(self.marked):
            rest = self._rest(self.marked[: turn + 1], last)
            tail = after[: num_equal(rest, after)] if rest is not None else self._to_special(after)
        special = [*self._special.finditer(tail)] if self._special is not None else []
        is_ended = special and not tail[special[-1].end() :].strip()
        return special[-1].start() if is_ended else len(tail.rstrip())

    def _closing_end(self, turn: int, thought: int, after: str) -> int:
        """Number of characters of ``after`` that end the reasoning: those that are also there without the calls."""
        silent = {name: value for name, value in self.marked[turn].items() if name != "tool_calls"}
        rest = self._rest([*self.marked[:turn], silent], thought)
        return _num_equal_tags(rest or "", after)

    def _to_special(self, text: str) -> str:
        found = self._special.search(text) if self._special is not None else None
        return text if found is None else text[: found.end()]

    def _rest(
        self, messages: Messages, last: int | None, *, prompt: bool = False, until: int | None = None
    ) -> str | None:
        """Text of other messages after the unit ``last``, and before the unit ``until``.

        None if the template rejects them, or other units stand there; those that it writes again do not count.
        """
        if not messages:
            return None
        try:
            around, units = _split(self._render(messages, prompt=prompt))
        except UnrenderableError:
            return None
        if (last is not None and last not in units) or (until is not None and units[-1:] != [until]):
            return None
        first = 0 if last is None else units.index(last) + 1
        repeated = units[first : len(units) - (until is not None)]
        if not {*repeated} <= {*units[:first]}:
            return None
        written = (self.units[number].text + text for number, text in zip(repeated, around[first + 1 :], strict=False))
        return around[first] + "".join(written)


def num_equal(first: str | bytes, second: str | bytes) -> int:
    """Number of equal characters or bytes at the start of two texts."""
    differs = (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return next(differs, min(len(first), len(second)))


def _num_equal_tags(first: str, second: str) -> int:
    """Number of equal characters at the start of two texts, without those of a tag of which the end differs."""
    equal = _TO_LAST_TAG.match(first[: num_equal(first, second)])
    assert equal is not None, "the pattern also matches nothing"
    return equal.end()


def _split(marked: str) -> tuple[list[str], list[int]]:
    """Splits a text at its marks."""
    pieces = _MARKS.split(marked)
    return pieces[::2], list(map(int, pieces[1::2]))


def _changed() -> UnrenderableError:
    return UnrenderableError("drops, moves or changes a message or a tool call, or depends on what it says")
