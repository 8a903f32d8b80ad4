"""The table of tokenizers is that of the tests."""

from __future__ import annotations

import re
from pathlib import Path

from packaged_tokenizers import PACKAGES
from scripts import SENTENCES
from tokenizer_families import FAMILIES, SLOW, family_texts, row_texts
from tokenizer_table import ROWS

from xtoken_pl.tokenization.tokenizer_file import PROBES

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


def said(pattern: str) -> tuple[str, ...]:
    """Gives what groups of a pattern match on the page, whose lines are joined."""
    found = re.search(pattern, " ".join(PAGE.split()))
    assert found is not None, pattern
    return found.groups()


def test_numbers_of_texts_and_families_are_those_of_the_tests() -> None:
    num_scripts = len(SENTENCES.keys() - {"Symbols"})
    assert said(r"of about ([\d,]+) texts in (\d+) scripts") == (f"{round(len(row_texts()), -2):,}", str(num_scripts))
    families, pairs, num_texts, scripts = said(
        r"(\w+) of these tokenizers,.* in both directions, (\d+) pairs, over (\d+) texts in (\d+) scripts"
    )
    assert (families, len(FAMILIES)) == ("Seventeen", 17)
    assert int(pairs) == len(FAMILIES) * (len(FAMILIES) - 1)
    assert (int(num_texts), int(scripts)) == (len(family_texts()), num_scripts)


def test_number_of_texts_that_are_compared_at_run_time_is_that_of_the_code() -> None:
    assert said(r"on (\d+) short texts") == (str(len(PROBES)),)


def test_the_page_says_which_rows_run_only_with_the_slow_tests() -> None:
    assert SLOW - {name for name, row in ROWS.items() if row.package} == {"Gemma 3"}
    said(r"`make test` runs all rows but those whose files npm or pip fetches and Gemma 3\b()")
