"""Texts and families for the tests of all tokenizers, whose numbers docs/tokenizers.md states."""

from __future__ import annotations

from original_tokenizers import texts
from scripts import texts_of_scripts
from tokenizer_table import ROWS

#: Rows of the table of tokenizers whose vocabularies differ from each other in ordinary tokens.
FAMILIES = (
    "GPT-2",
    "GPT-4 (cl100k)",
    "GPT-4o (o200k)",
    "Llama 3.1",
    "DeepSeek-V3",
    "Qwen2.5",
    "Command R+",
    "Claude",
    "Whisper, code",
    "Pixtral, tekken.json",
    "Mistral 7B v0.1",
    "Yi",
    "InternLM2",
    "Baichuan 2",
    "ChatGLM3",
    "Gemma 2",
    "ByT5",
)

#: Rows that run with `make test-slow` alone: their files are fetched, or the tokenizer takes seconds to load.
SLOW = {"Gemma 3", *(name for name, row in ROWS.items() if row.package)}


def family_texts() -> list[str]:
    """Texts that are aligned between all families."""
    return texts_of_scripts(30)


def row_texts() -> list[str]:
    """Texts whose tokens are compared with their bytes, for each row of the table."""
    return [*texts_of_scripts(20), *texts(1000)]
