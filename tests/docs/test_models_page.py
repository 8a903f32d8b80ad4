"""The table of architectures is that of the tests."""

from __future__ import annotations

import re
from pathlib import Path

from architectures import ARCHITECTURES, BALANCED, LEAKY, LOGITS, MULTIMODAL
from quantized_checkpoints import FORMATS

PAGE = (Path(__file__).parents[2] / "docs/models.md").read_text()


def test_each_architecture_has_a_row_that_says_what_the_tests_say() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]*?) *\| (\w+) \| (\w*) *\|$", PAGE, flags=re.MULTILINE)
    expected = [
        (name, LOGITS.get(name, ""), "refused" if name in LEAKY else "yes", "yes" if name in BALANCED else "")
        for name in sorted(ARCHITECTURES)
    ]
    assert rows == expected


def test_the_multimodal_checkpoints_are_named() -> None:
    section = PAGE.split("## Multimodal checkpoints")[1].split("##")[0]
    assert [name for name in re.findall(r"`(\w+)`", section) if name in MULTIMODAL] == sorted(MULTIMODAL)


def test_the_formats_of_quantized_checkpoints_are_those_of_the_tests() -> None:
    rows = re.findall(r"^\| .*\| CPU.*\|$", PAGE.split("## Quantized checkpoints")[1], flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"\(`([\w-]+)`\)", row)}
    bits = {"bitsandbytes"}  # tests/models/test_quantized_files.py
    assert named == {form.settings["quant_method"] for _, form in FORMATS.values()} | bits
