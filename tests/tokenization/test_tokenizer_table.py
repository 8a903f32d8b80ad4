"""Each row of the table of tokenizers: tokens are the bytes of the text as far as it says, or it is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scripts import texts_of_scripts
from tokenizer_families import SLOW, row_texts
from tokenizer_table import ROWS, Program, Row

from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.tokenization.normalization import Normalizer
from xtoken_pl.utilities.errors import UserError


def rows(*, refused: bool) -> list:
    chosen = [name for name, row in ROWS.items() if row.result.startswith("refused: ") == refused]
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW), id=name) for name in chosen]


def read(row: Row, folder: Path) -> CanonicalVocabulary:
    return CanonicalVocabulary.from_tokenizer(load_tokenizer(str(folder), trust_remote_code=row.has_code))


@dataclass(repr=False)
class Loaded:
    """A tokenizer of the table, and what its tokens must be."""

    row: Row
    vocabulary: CanonicalVocabulary
    program: Program | None

    def __post_init__(self) -> None:
        self.normalizer = Normalizer(self.vocabulary)
        known = set(self.vocabulary.token_bytes)
        in_utf8 = [*range(0xC0), *range(0xC2, 0xF5)]
        has_pieces = self.vocabulary.components.kind == "metaspace"  # and characters, such as ▁ for a space
        self.lost = b"" if has_pieces else bytes(byte for byte in in_utf8 if bytes([byte]) not in known)

    def check(self, texts: Iterable[str]) -> None:
        """Asserts that the tokens of texts are their bytes, as the normalizers write them, and the program's ids."""
        given = list(texts)
        for text, ids in zip(given, self.vocabulary.encode(given), strict=True):
            stream = self.vocabulary.byte_stream(np.array(ids, dtype=np.int64))[0].tobytes()
            if self.vocabulary.components.dummy_prefix and ids:
                assert stream.startswith(b" ")
                stream = stream[1:]
            assert stream == self.normalizer(text).encode().translate(None, delete=self.lost)
            if self.program is not None:
                assert self.program(text, ids), f"{text!r} has other ids in its own program"


@pytest.fixture(scope="module", params=rows(refused=False))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    row = ROWS[request.param]
    folder = row.write(tmp_path_factory.mktemp("tokenizer"))
    return Loaded(row, read(row, folder), row.program(folder) if row.program is not None else None)


@pytest.mark.parametrize("name", rows(refused=True))
def test_a_tokenizer_that_is_not_exact_is_refused_by_what_breaks_it(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    folder = row.write(tmp_path)
    with pytest.raises(UserError, match=re.escape(row.result.removeprefix("refused: "))):
        read(row, folder)


def test_tokens_of_texts_of_many_scripts_are_their_bytes(loaded: Loaded) -> None:
    loaded.check(row_texts())


@given(text=st.text(max_size=40))
@example("e\u0301\u0323 \u212b ﬁ ＡＢ İ ßẞ \u1112\u1161\u11ab\u0958\u0344")
@example("▁Ġ <s></s><unk><0x0A><|endoftext|>[INST]")
@example("  \t \n\n \r\n\u00a0\u3000\u200b ")
def test_tokens_of_any_text_are_its_bytes(loaded: Loaded, text: str) -> None:
    loaded.check([text])


def test_what_a_tokenizer_rewrites_or_lacks_is_what_its_row_says(loaded: Loaded) -> None:
    how, _, names = loaded.row.result.partition(": ")
    assert loaded.normalizer.name == names
    spelled = " " if loaded.vocabulary.components.kind == "metaspace" else "▁"
    changed = [text for text in texts_of_scripts(20) if loaded.normalizer(text) != text.replace("▁", spelled)]
    assert bool(changed) == (how == "rewrites")
    lacking = re.search(r"but for (\d+) bytes", how)
    assert len(loaded.lost) == (int(lacking[1]) if lacking else 0)
