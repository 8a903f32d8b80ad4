"""Exact match on problems that were never learned from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import lightning.pytorch as pl
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from experiments.problems import Problem
from xtoken_pl import MultiTeacherDistillModule


class HeldOutProblems(pl.Callback):
    """Logs ``held_out/exact_match`` after every validation, the mean over files, and the same for every file.

    A problem is right if greedy generation gives its answer, to the end of the line and without a change. For runs of
    one process: each of several would generate all of them.

    Args:
        paths: Files with a JSON object for every problem; the name of a file is its tag, ``held_out/exact_match/NAME``.
        limit: The first so many problems of each file; None for all.

    Raises:
        ValueError: If two files have the same name.
    """

    def __init__(self, paths: list[str], limit: int | None = None) -> None:
        if len({Path(path).stem for path in paths}) < len(paths):
            raise ValueError(f"paths must have different names, which are their tags, got {paths}; rename one")
        self.sets = {Path(path).stem: read_problems(Path(path))[:limit] for path in paths}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        module = cast(MultiTeacherDistillModule, pl_module)
        tokenizer = AutoTokenizer.from_pretrained(module.student_source.model)
        matches = {name: exact_match(module.student, tokenizer, problems) for name, problems in self.sets.items()}
        pl_module.log("held_out/exact_match", sum(matches.values()) / len(matches))
        pl_module.log_dict({f"held_out/exact_match/{name}": value for name, value in matches.items()})


@torch.no_grad()
def exact_match(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> float:
    """The share of problems whose answer, and nothing else, is generated greedily up to the end of the line."""
    by_length: dict[int, list[tuple[list[int], str]]] = {}  # a batch needs no padding
    for problem in problems:
        ids = tokenizer(problem.prompt)["input_ids"]
        by_length.setdefault(len(ids), []).append((ids, problem.answer))
    most = 1 + max(len(tokenizer(problem.answer)["input_ids"]) for problem in problems)
    num_right = 0
    for length, prompts in by_length.items():
        ids = torch.tensor([prompt for prompt, _ in prompts])  # [B, T]
        generated = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False
        )
        texts = tokenizer.batch_decode(generated[:, length:])
        num_right += sum(text.startswith(answer) for text, (_, answer) in zip(texts, prompts, strict=True))
    return num_right / len(problems)


def read_problems(path: Path) -> list[Problem]:
    """The problems of a file."""
    return [Problem(**json.loads(line)) for line in path.read_text().splitlines()]
