"""Short documents and their windows under each kind of packing, for tests."""

from __future__ import annotations

from typing import Any

from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, splitting_tokenizer, without_bos_and_eos

from xtoken_pl import CanonicalVocabulary, TextSource
from xtoken_pl.data import Windower
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.packing import Packing

LENGTH = 40
PACK, SPLIT, REVERSE = (
    CanonicalVocabulary.from_tokenizer(make()) for make in (packing_tokenizer, splitting_tokenizer, reversing_tokenizer)
)
BARE = CanonicalVocabulary.from_tokenizer(without_bos_and_eos(packing_tokenizer()))
SIDES = {"": PACK, "split": SPLIT, "reverse": REVERSE}
WINDOWER = Windower(PACK, {"split": SPLIT, "reverse": REVERSE}, LENGTH)
DOCUMENTS = [
    text[start : start + size] for text, start, size in zip(TEXTS, range(9), (9, 30, 14, 60, 5, 21), strict=False)
]
DOCUMENTS += [" 12 345 6789", "1", "x"]

Rows = list[dict[str, Any]]


def windows_of(documents: list[str], packing: Packing, sides: dict[str, CanonicalVocabulary] = SIDES) -> Rows:
    windower = WINDOWER if sides is SIDES else Windower(sides[""], {n: side for n, side in sides.items() if n}, LENGTH)
    columns = WindowMaker(TextSource(path="x"), windower, packing)(documents)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def text_of(vocabulary: CanonicalVocabulary, ids: list[int]) -> bytes:
    return b"".join(vocabulary.token_bytes[token] for token in ids)
