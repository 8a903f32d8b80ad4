"""Slow reference of how a teacher reads a rollout that continues a text."""

from __future__ import annotations

from itertools import pairwise

from reference import Span

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.rollouts import Rollout


def read_text(rollout: Rollout) -> str:
    """Text that the teachers read: U+FFFD for invalid bytes, without an unfinished character at the end."""
    data = rollout.text
    for length in (1, 2, 3) if rollout.ended == "length" else ():
        tail = data[len(data) - length :]
        if len(tail) == length and is_unfinished(tail):
            data = data[:-length]
            break
    return data.decode(errors="replace")


def is_unfinished(data: bytes) -> bool:
    """Whether some bytes after it make it one character."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start == 0 and error.reason == "unexpected end of data"
    return False


def places(data: bytes) -> list[int | None]:
    """The byte of the text that is read at which each byte is; None for bytes that are not valid UTF-8."""
    found: list[int | None] = [None] * len(data)
    for start in range(len(data)):
        for length in (1, 2, 3, 4):
            try:
                character = data[start : start + length].decode()
            except UnicodeDecodeError:
                continue
            if len(character) == 1 and found[start] is None:
                before = len(data[:start].decode(errors="replace").encode())
                found[start : start + length] = range(before, before + length)
            break
    return found


def mid_text_ids(vocabulary: CanonicalVocabulary, text: str) -> list[int]:
    """The ids of a text within a longer one."""
    with vocabulary.mid_text_backend() as backend:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


def bytes_of(vocabulary: CanonicalVocabulary, ids: list[int]) -> list[bytes]:
    return [vocabulary.token_bytes[token] for token in ids]


def reference_spans(rollout: Rollout, student: list[bytes], is_special: list[bool], teacher: list[bytes]) -> list[Span]:
    """Spans of the tokens of a rollout, without those of its end, and a teacher's tokens of the text that is read.

    Args:
        rollout: The rollout.
        student: Bytes of each of its tokens, without its stop token.
        is_special: Whether each of them is special.
        teacher: Bytes of each of the teacher's tokens, which are those of the text.
    """
    place_of = places(rollout.text)
    starts: dict[int, int] = {}  # token of the teacher's that starts at a byte
    position = 0
    for number, token in enumerate([*teacher, b"."]):
        if token:
            starts[position] = number
        position += len(token)
    found: list[Span] = []
    for first, last in stretches(student, is_special, place_of):
        begin = sum(map(len, student[:first]))
        bounds: list[tuple[int, int]] = []  # common bounds: token of the student's, token of the teacher's
        for token in range(first, last + 1):
            byte = begin + sum(map(len, student[first:token]))
            place = place_of[byte] if token < last else place_of[byte - 1]
            if place is not None and place + (token == last) in starts:
                bounds.append((token, starts[place + (token == last)]))
        found += [(a, b, c, d) for (a, c), (b, d) in pairwise(bounds)]
    return found


def stretches(student: list[bytes], is_special: list[bool], place_of: list[int | None]) -> list[tuple[int, int]]:
    """Ranges of tokens of which all bytes are valid, and none is special."""
    found: list[tuple[int, int]] = []
    position, start = 0, None
    for number, token in enumerate(student):
        is_good = bool(token) and not is_special[number]
        is_good = is_good and None not in place_of[position : position + len(token)]
        if is_good and start is None:
            start = number
        if not is_good and start is not None:
            found.append((start, number))
            start = None
        position += len(token)
    return [*found, (start, len(student))] if start is not None else found
