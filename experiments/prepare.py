"""Writes what runs read: models without weights but with their tokenizers, lines to learn from, held-out problems.

All of it is made anew each time, and what differs from the file that is there replaces it: a file never belongs to
other code than this. The model that is cut from a pretrained one is large, and its name says what it is made of.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from experiments.problems import Problem, Split, Task, noisy_lines, problems
from experiments.suites import Lines
from experiments.tokenizers import TokenizerName, make_tokenizer
from xtoken_pl.utilities.files import atomic_path

_TASKS: tuple[Task, ...] = ("addition", "words", "letters")
_NUM_HELD_OUT: dict[Split, int] = {"search": 500, "test": 1500}
_NUM_VALIDATION_LINES = 512  # for bits per byte; exact match looks at all
# Folder -> tokenizer, layers, hidden size.
_MODELS: dict[str, tuple[TokenizerName, int, int]] = {
    "student": ("student", 2, 64),
    "teacher_splitting": ("splitting", 3, 64),
    "teacher_packing": ("packing", 3, 64),
    "teacher_student": ("student", 3, 64),
    "student_splitting": ("splitting", 2, 64),
    "student_pairs": ("pairs", 2, 64),
    "teacher_halves": ("halves", 3, 64),
}

# The pretrained student of real text, as `make quickstart` leaves it, and its layers that are kept.
_PRETRAINED = Path("quickstart/teacher-smollm2")
_KEPT_LAYERS = ((0, 15), (26, 29))


def prepare(folder: Path) -> None:
    """Writes models and held-out problems."""
    for name, shape in _MODELS.items():
        _write_model(folder / "models" / name, *shape)
    for split in _NUM_HELD_OUT:
        for task in _TASKS:
            rows = [problem._asdict() for problem in _held_out(task, split)]
            _write_rows(folder / split / f"{task}.jsonl", rows)
            _write_rows(folder / split / f"{task}_lines.jsonl", _validation_lines(task, split))
        both = _validation_lines("addition", split) + _validation_lines("letters", split)
        _write_rows(folder / split / "addition+letters_lines.jsonl", both)


def write_lines(parts: Sequence[Lines], seed: int, folder: Path) -> Path:
    """Writes the lines that a run learns from; the name of the file says what is in it."""
    names = [f"{part.task}_{part.number}_random{part.random_share:g}" for part in parts]
    target = folder / "lines" / f"{'+'.join(names)}_seed{seed}.jsonl"
    texts = [text for part in parts for text in noisy_lines(part.task, part.number, part.random_share, seed)]
    _write_rows(target, [{"text": text} for text in texts])
    return target


def write_pruned(folder: Path, source: Path = _PRETRAINED, kept: Sequence[tuple[int, int]] = _KEPT_LAYERS) -> Path:
    """Writes a Llama without some of its layers: pretrained, but it has to learn again what they did.

    Args:
        folder: Folder of all experiments.
        source: The whole model; nothing is written where it is missing.
        kept: First and last of the layers that stay, range by range.
    """
    made_of = content_fingerprint(source)[:8] if source.is_dir() else "missing"
    target = folder / "models" / f"pruned_{made_of}_{'_'.join(f'{first}-{last}' for first, last in kept)}"
    if source.is_dir() and not target.exists():
        model = AutoModelForCausalLM.from_pretrained(source)
        layers = [model.model.layers[place] for first, last in kept for place in range(first, last + 1)]
        model.model.layers, model.config.num_hidden_layers = nn.ModuleList(layers), len(layers)
        with atomic_path(target, kind="folder") as path:
            model.save_pretrained(path)
            AutoTokenizer.from_pretrained(source).save_pretrained(path)
    return target


def content_fingerprint(path: Path) -> str:
    """Of a file, or of the files in a folder."""
    digest = hashlib.sha256()
    for name in sorted(path.iterdir()) if path.is_dir() else [path]:
        with name.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _write_model(target: Path, tokenizer_name: TokenizerName, num_layers: int, hidden_size: int) -> None:
    tokenizer = make_tokenizer(tokenizer_name)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        config.save_pretrained(made)
        tokenizer.save_pretrained(made)
        if target.exists() and content_fingerprint(target) == content_fingerprint(made):
            return
        with atomic_path(target, kind="folder", overwrite=True) as path:
            path.mkdir()
            for file in made.iterdir():
                (path / file.name).write_bytes(file.read_bytes())


def _held_out(task: Task, split: Split) -> list[Problem]:
    return problems(task, _NUM_HELD_OUT[split], seed=0, split=split)


def _validation_lines(task: Task, split: Split) -> list[dict[str, str]]:
    return [{"text": problem.prompt + problem.answer} for problem in _held_out(task, split)[:_NUM_VALIDATION_LINES]]


def _write_rows(target: Path, rows: list[dict[str, str]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not target.exists() or target.read_text() != text:
        with atomic_path(target, kind="file", overwrite=True) as path:
            path.write_text(text)
