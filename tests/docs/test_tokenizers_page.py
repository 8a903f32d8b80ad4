"""The table of tokenizers is that of the tests."""

from __future__ import annotations

import re
from pathlib import Path

from packaged_tokenizers import PACKAGES
from tokenizer_table import ROWS

PAGE = (Path(__file__).parents[2] / "docs/tokenizers.md").read_text()


def test_each_tokenizer_has_a_row_that_says_what_the_tests_say() -> None:
    table = PAGE.split("| tokenizer | kind | tested files | result |\n|---|---|---|---|\n")[1].split("\n\n")[0]
    rows = [re.fullmatch(r"\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|", line) for line in table.splitlines()]
    assert [row.groups() for row in rows if row] == [
        (name, row.kind, row.tested, row.result) for name, row in ROWS.items()
    ]
    assert len(rows) >= 25
    assert sum(bool(row.package) for row in ROWS.values()) >= 25


def test_every_package_has_a_row() -> None:
    assert {row.package for row in ROWS.values()} - {""} == PACKAGES.keys()
