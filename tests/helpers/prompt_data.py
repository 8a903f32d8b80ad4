"""Training data with prompts: small tokenizers, rows, and data modules that are connected to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chats import CHATS, chatml, llama3_like, plain, vocabulary_of
from small_models import TEXTS

from xtoken_pl import DistillDataModule
from xtoken_pl.batch import DistillBatch
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.part_windows import open_windows
from xtoken_pl.specs import PromptSettings

STUDENT = vocabulary_of(chatml())
TEACHERS = {"llama": vocabulary_of(llama3_like()), "plain": vocabulary_of(plain())}
MIXED = PromptSettings(max_new_tokens=20, num_bytes=40)
ONLY = PromptSettings(max_new_tokens=20, num_bytes=40, only=True)
TEXT_ROWS = [{"text": text[:300]} for text in TEXTS[:8]]
CHAT_ROWS = [{"messages": messages} for messages in CHATS * 3]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def data_of(source: Any, prompts: PromptSettings | None, *, setup: bool = True, **options: Any) -> DistillDataModule:
    options = {"sequence_length": 96, "batch_size": 3, "num_workers": 0, "seed": 3, **options}
    data = DistillDataModule(source, **options)
    data.connect(STUDENT, TEACHERS, prompts=prompts)
    if setup:
        data.setup("fit")
    return data


def windows_of(data: DistillDataModule) -> list[Window]:
    windows = open_windows(data.parts("train"))
    return list(windows.__getitems__(list(range(len(windows)))))


def prompts_of(batches: list[DistillBatch]) -> list[Any]:
    """The prompts of all rows, as plain values."""
    prompts = [prompt for batch in batches for prompt in batch.prompts or ["no prompts"]]
    return [repr(prompt) for prompt in prompts]
