"""Exact match on problems that were never learned from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import lightning.pytorch as pl
import torch
from transformers import PreTrainedTokenizerBase

from experiments.problems import Problem
from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.tokenization import load_tokenizer


class HeldOutProblems(pl.Callback):
    """Logs ``held_out/exact_match`` after every validation, the mean over files, and the same for every file.

    A problem is right if greedy generation gives its answer, to the end of the line and without a change. For runs of
    one process: each of several would generate all of them.

    Args:
        paths: Files with a JSON object for every problem; the name of a file is its tag, ``held_out/exact_match/NAME``.
        limit: The first so many problems of each file; None for all.
        first_digits: Logs ``held_out/first_digit``, too: the share of problems, of all files, whose answer is the
            first digit of the right one and nothing else, once or repeated, and wrong.

    Raises:
        ValueError: If two files have the same name.
    """

    def __init__(self, paths: list[str], limit: int | None = None, *, first_digits: bool = False) -> None:
        if len({Path(path).stem for path in paths}) < len(paths):
            raise ValueError(f"paths must have different names, which are their tags, got {paths}; rename one")
        self.sets = {Path(path).stem: read_problems(Path(path))[:limit] for path in paths}
        self.first_digits = first_digits

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        module = cast(MultiTeacherDistillModule, pl_module)
        tokenizer = load_tokenizer(module.student_source.model)
        lines = {name: answer_lines(module.student, tokenizer, problems) for name, problems in self.sets.items()}
        matches = {name: exact_match(lines[name], problems) for name, problems in self.sets.items()}
        pl_module.log("held_out/exact_match", sum(matches.values()) / len(matches))
        pl_module.log_dict({f"held_out/exact_match/{name}": value for name, value in matches.items()})
        if self.first_digits:
            answers = [
                (line, asked) for name in lines for line, asked in zip(lines[name], self.sets[name], strict=True)
            ]
            pl_module.log("held_out/first_digit", sum(is_first_digit(*answer) for answer in answers) / len(answers))


@torch.no_grad()
def answer_lines(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[str]:
    """What is generated greedily for each prompt, to the end of the line, or to the end where no line ends."""
    by_length: dict[int, list[tuple[int, list[int]]]] = {}  # a batch needs no padding
    for place, problem in enumerate(problems):
        ids = tokenizer(problem.prompt)["input_ids"]
        by_length.setdefault(len(ids), []).append((place, ids))
    most = 1 + max(len(tokenizer(problem.answer)["input_ids"]) for problem in problems)
    lines = [""] * len(problems)
    for length, prompts in by_length.items():
        ids = torch.tensor([prompt for _, prompt in prompts])  # [B, T]
        generated = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False
        )
        for (place, _), text in zip(prompts, tokenizer.batch_decode(generated[:, length:]), strict=True):
            line, end, _ = text.partition("\n")
            lines[place] = line + end
    return lines


def exact_match(lines: Sequence[str], problems: Sequence[Problem]) -> float:
    """The share of problems whose line is their answer, and nothing else."""
    return sum(line == problem.answer for line, problem in zip(lines, problems, strict=True)) / len(problems)


def is_first_digit(line: str, problem: Problem) -> bool:
    """Whether a line is the right number's first digit, once or repeated, and wrong."""
    said, right = line.removesuffix("\n"), problem.answer.removesuffix("\n")
    return said != right and {*said} == {right[0]}


def read_problems(path: Path) -> list[Problem]:
    """The problems of a file."""
    return [Problem(**json.loads(line)) for line in path.read_text().splitlines()]
