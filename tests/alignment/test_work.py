"""The work of an alignment is linear in the text, however much of it a normalizer rewrote."""

import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from aligned_texts import TOPICS, encoded, random_text

from xtoken_pl.alignment import SpanAligner, byte_merge, dynamic_programme

VIETNAMESE = "Việt Nam có khí hậu nhiệt đới "
HANGUL = random_text("".join(map(chr, range(0xAC00, 0xAC00 + 500))), 60_000)
CJK = random_text("一丁七万丈三上下不与", 60_000)
ALTERNATING = "".join(letter.upper() if i % 2 else letter.lower() for i, letter in enumerate(TOPICS[:60_000]))
# The student's and the teacher's text; both are much longer than a stretch that the dynamic programme aligns.
CASES = {
    "decomposed": (unicodedata.normalize("NFD", VIETNAMESE * 2_000), VIETNAMESE * 2_000),
    "decomposed, without spaces": (unicodedata.normalize("NFD", HANGUL[:30_000]), HANGUL[:30_000]),
    "decomposed, with rare anchors": tuple(
        unicodedata.normalize(form, " an anchor ".join(HANGUL[i : i + 400] for i in range(0, 30_000, 400)))
        for form in ("NFD", "NFC")
    ),
    "full width": (TOPICS[:60_000].translate({code: code + 0xFEE0 for code in range(33, 127)}), TOPICS[:60_000]),
    "capitals": (TOPICS[:60_000].upper(), TOPICS[:60_000].lower()),
    "every second letter": (TOPICS[:60_000].lower(), ALTERNATING),
    "first letters": (TOPICS[:60_000].title(), TOPICS[:60_000].lower()),
    "only the ends": ("begin here " + CJK + " end here", "begin here " + TOPICS[:60_000] + " end here"),
    "nothing": (TOPICS[:60_000], CJK),
    "one letter": (TOPICS[:60_000], "a" * 60_000),
    "another text": (TOPICS[:60_000], TOPICS[60_000:120_000]),
    "reversed": (TOPICS[:60_000], TOPICS[:60_000][::-1]),
    "periodic": ("ab" * 30_000, "ba" * 29_999),
    "a period moved": ("abcdefgh" * 7_500, "x".join(["abcdefgh" * 75] * 100)),
}
assert all(len(text) >= 30_000 for pair in CASES.values() for text in pair)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Symbols compared by the byte merge, windows that it looks up, and groups that the dynamic programme visits."""
    count = {"compared": 0, "looked up": 0, "groups": 0}
    agreeing, places, groups = byte_merge._num_agreeing, byte_merge._shared_places, dynamic_programme.equal_groups

    def counted_agreeing(student: Any, teacher: Any) -> int:
        number = agreeing(student, teacher)
        count["compared"] += number + 1
        return number

    def counted_places(codes: Any, other_codes: Any) -> list[tuple[int, int]]:
        count["looked up"] += len(codes) + len(other_codes)
        return places(codes, other_codes)

    def counted_groups(*sides: Any) -> Iterator[dynamic_programme.Group]:
        for group in groups(*sides):
            count["groups"] += 1
            yield group

    monkeypatch.setattr(byte_merge, "_num_agreeing", counted_agreeing)
    monkeypatch.setattr(byte_merge, "_shared_places", counted_places)
    monkeypatch.setattr(dynamic_programme, "equal_groups", counted_groups)
    return count


@pytest.mark.parametrize("case", CASES)
def test_the_work_is_bounded_by_the_length_of_the_text(
    llama3_from_qwen3: SpanAligner, counts: dict[str, int], case: str
) -> None:
    sides = llama3_from_qwen3.student, llama3_from_qwen3.teacher
    ids = [encoded(side, text) for side, text in zip(sides, CASES[case], strict=True)]
    num_symbols = sum(int(side.byte_stream(sequence)[1].sum()) for side, sequence in zip(sides, ids, strict=True))
    llama3_from_qwen3.align(*ids)
    assert 0 < sum(counts.values()) < 12 * num_symbols, counts


@pytest.mark.parametrize("num_tokens", [20, 200, 2000])
def test_a_token_is_tried_at_a_limited_number_of_places(num_tokens: int) -> None:
    student, teacher = [b"a", b"aa"] * (num_tokens // 2), [b"aa", b"a"] * (num_tokens // 2)
    groups = list(dynamic_programme.equal_groups(student, teacher))
    # One token to 1, ..., 4 tokens and 2, ..., 4 tokens to one: seven kinds.
    assert 0 < len(groups) <= 7 * dynamic_programme.MAX_PLACES * num_tokens
