"""Modules, batches and logged values to test NumeralMonitor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from small_models import packing_tokenizer, splitting_tokenizer, write_model
from tokenizers import Regex, Tokenizer, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from xtoken_pl import MultiTeacherDistillModule, Student, Teacher
from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks import NumeralMonitor
from xtoken_pl.data import Windower, collate

SUMS = ["12+34=46\n7+15=22\n", "100+23=123 or 9+1=10", "two and 3 are 5; 17=17"]
Make = Callable[..., MultiTeacherDistillModule]


def pairing_tokenizer() -> PreTrainedTokenizerFast:
    """The student's tokens, with digits split in pairs, so that spans of numbers have several tokens on both sides."""
    backend = Tokenizer.from_str(packing_tokenizer().backend_tokenizer.to_str())
    in_pairs = pre_tokenizers.Split(Regex(r"\d{1,2}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([in_pairs, backend.pre_tokenizer])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end_of_text|>", pad_token="<|end_of_text|>")


def write_models(root: Path) -> dict[str, str]:
    """Writes models by the names ``student``, ``same`` (the student's tokenizer), ``split`` and ``pairs``."""
    tokenizers = {"student": packing_tokenizer(), "same": packing_tokenizer(), "split": splitting_tokenizer()}
    tokenizers["pairs"] = pairing_tokenizer()
    return {
        name: write_model(root / name, tokenizer, seed=seed, scale=4.0)
        for seed, (name, tokenizer) in enumerate(tokenizers.items())
    }


def make_module(
    folders: dict[str, str], student: str = "student", **teachers: tuple[str, dict[str, Any]]
) -> MultiTeacherDistillModule:
    """Makes a module in float64; each teacher is given as its model's name and its options."""
    chosen = {
        name: Teacher(model=folders[folder], dtype="float64", **options) for name, (folder, options) in teachers.items()
    }
    return MultiTeacherDistillModule(Student(model=folders[student], dtype="float64"), chosen)


def batch_for(module: MultiTeacherDistillModule, texts: list[str] = SUMS) -> DistillBatch:
    columns = Windower(*module.vocabularies(), 64)(texts)
    rows = [{key: column[index] for key, column in columns.items()} for index in range(len(columns["student_ids"]))]
    return collate(rows, list(module.teachers))


def logged(module: MultiTeacherDistillModule, *batches: DistillBatch, **options: Any) -> dict[str, float]:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[NumeralMonitor(**options)],
    )
    trainer.validate(module, dataloaders=DataLoader(list(batches), batch_size=None), verbose=False)
    found = {tag: value.item() for tag, value in trainer.callback_metrics.items()}
    return {tag.removeprefix("numerals/"): value for tag, value in found.items() if tag.startswith("numerals/")}
