"""Each row of the table of tokenizers: tokens are the bytes of the text as far as it says, or it is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from original_tokenizers import texts
from scripts import texts_of_scripts
from tokenizer_table import ROWS, Row

from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.tokenization.normalization import Normalizer
from xtoken_pl.utilities.errors import UserError

#: Real tokenizers take seconds each, or come from packages.
SLOW = {"Gemma 3", *(name for name, row in ROWS.items() if row.package)}
TEXTS = [*texts_of_scripts(20), *texts(1000)]


def read(row: Row, folder: Path) -> CanonicalVocabulary:
    return CanonicalVocabulary.from_tokenizer(load_tokenizer(str(folder), trust_remote_code=row.has_code))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ROWS])
def test_a_tokenizer_of_the_table_does_what_its_row_says(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    folder = row.write(tmp_path)
    how, _, what = row.result.partition(": ")
    if how == "refused":
        with pytest.raises(UserError, match=re.escape(what)):
            read(row, folder)
        return
    vocabulary = read(row, folder)
    all_ids = vocabulary.encode(TEXTS)
    check_bytes(vocabulary, all_ids, what, row.result)
    if row.program is not None:
        has_ids_of_program = row.program(folder)
        differ = [text for text, ids in zip(TEXTS, all_ids, strict=True) if not has_ids_of_program(text, ids)]
        assert not differ


def check_bytes(vocabulary: CanonicalVocabulary, all_ids: list[list[int]], normalizers: str, result: str) -> None:
    """Asserts that the tokens of all texts are the bytes of the text as the row says that it is rewritten."""
    normalizer = Normalizer(vocabulary)
    known = set(vocabulary.token_bytes)
    lost = bytes(byte for byte in [*range(0xC0), *range(0xC2, 0xF5)] if bytes([byte]) not in known)
    if match := re.search(r"but for (\d+) bytes", result):
        assert len(lost) == int(match[1])
    else:
        assert not lost or vocabulary.components.kind == "metaspace"
    num_rewritten = 0
    for text, ids in zip(TEXTS, all_ids, strict=True):
        stream = vocabulary.byte_stream(np.array(ids, dtype=np.int64))[0].tobytes()
        if vocabulary.components.dummy_prefix and ids:
            assert stream.startswith(b" ")
            stream = stream[1:]
        assert stream == normalizer(text).encode().translate(None, delete=lost)
        num_rewritten += normalizer(text) != (
            text.replace("▁", " ") if vocabulary.components.kind == "metaspace" else text
        )
    assert normalizer.name == normalizers
    assert (num_rewritten > 0) == bool(normalizers)
