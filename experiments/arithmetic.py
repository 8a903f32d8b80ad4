"""Addition learned from noisy lines, with and without a teacher: which loss brings numbers across tokenizers?

``python -m experiments.arithmetic --loss ProjectionKL --teacher splitting --seeds '[0,1,2,3,4]'``

The student's tokenizer packs numbers up to three digits into one token. It learns from 6,000 lines ``a+b=c`` of numbers
below 100, of which 30% carry a wrong sum drawn at random, by cross-entropy and, optionally, from one of two teachers:

- ``splitting``: its tokenizer writes digits one by one;
- ``packing``: its tokenizer packs numbers as the student's does, under other ids.

Of the 10,000 pairs (a, b), 1,500 are held out, the same in every run; the metric is exact match on their sums,
generated greedily. Neither student nor teacher sees a held-out pair: a teacher learns by cross-entropy from a correct
line of each of the other 8,500. Teachers are trained once and kept in the folder, with their own exact match. A seed
decides the student's lines and their errors, its first weights, and the order of the lines. Finished runs are kept in
``results.jsonl``; what is there already with the same settings is not run again.
"""

from __future__ import annotations

import importlib
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import LambdaCallback
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from xtoken_pl import MultiTeacherDistillModule, OptimizerRecipe, SpanLoss, Student, Teacher
from xtoken_pl.callbacks import DynamicLossScaling
from xtoken_pl.data import DistillDataModule, TextSource
from xtoken_pl.files import atomic_path
from xtoken_pl.tokenization.vocabulary import BYTE_TO_UNICODE

TeacherName = Literal["splitting", "packing"]

_BOS, _EOS = "<|begin_of_text|>", "<|end_of_text|>"
_NUM_HELD_OUT = 1500
_MOST_NEW_TOKENS = 4  # three digits and the end of the line
# Upper 2.5% points of Student's t for 1, 2, ... degrees of freedom.
_T_POINTS = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained: all that decides its weights, but for the seed."""

    loss: str = "none"
    options: dict[str, Any] = field(default_factory=dict)
    teacher: str = "none"
    steps: int = 2000
    ce_weight: float = 1.0
    kd_weight: float = 1.0
    dynamic_scaling: bool = False
    learning_rate: float = 5e-3
    batch_size: int = 64
    num_lines: int = 6000
    wrong_share: float = 0.3
    hidden_size: int = 64
    num_layers: int = 2


_TEACHER_TRAINING = Training(steps=4000, learning_rate=3e-3, num_lines=8500, wrong_share=0, num_layers=3)


def main(
    loss: str = "none",
    teacher: TeacherName = "splitting",
    seeds: Sequence[int] = (0,),
    steps: int = 2000,
    folder: str = "runs/arithmetic",
    *,
    options: dict[str, Any] | None = None,
    ce_weight: float = 1.0,
    kd_weight: float = 1.0,
    dynamic_scaling: bool = True,
    summary: bool = False,
) -> None:
    """Train a student for every seed, and print the table of all results.

    Args:
        loss: A loss of xtoken_pl by name, or any other by its class path; none is cross-entropy alone.
        teacher: Which teacher.
        seeds: One run each.
        steps: Of the optimizer.
        folder: Where teachers and results are kept.
        options: What the loss is made with.
        ce_weight: Fixed weight of the cross-entropy.
        kd_weight: Fixed weight of the distillation loss.
        dynamic_scaling: Scale the distillation loss to the cross-entropy, step by step, as the paper does.
        summary: Only print the table.
    """
    torch.set_num_threads(1)  # more of them slow models of this size down
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    root = Path(folder)
    if not summary:
        training, specification = Training(steps=steps), None
        if loss != "none":
            made = make_loss(loss, options or {})
            specification = Teacher(model=str(prepare_teacher(teacher, root)), loss=made)
            training = replace(training, loss=type(made).__name__, options=options or {}, teacher=teacher)
            training = replace(training, ce_weight=ce_weight, kd_weight=kd_weight, dynamic_scaling=dynamic_scaling)
        for seed in seeds:
            run(training, specification, seed, root)
    print(summarize(read_results(root)))


def make_loss(name: str, options: dict[str, Any]) -> SpanLoss:
    """The loss of a name in xtoken_pl, or of a class path."""
    module, _, attribute = name.rpartition(".")
    made = getattr(importlib.import_module(module or "xtoken_pl"), attribute, None)
    if not (isinstance(made, type) and issubclass(made, SpanLoss)):
        raise ValueError(f"loss must be none, a loss of xtoken_pl, or the class path of one, got {name!r}")
    return made(**options)


def run(training: Training, teacher: Teacher | None, seed: int, root: Path) -> None:
    """Trains a student, evaluates it, and adds a line to the results; does nothing where they hold it already."""
    settings = {**asdict(training), "seed": seed}
    if any(result["settings"] == settings for result in read_results(root)):
        print(f"{training.loss}, {training.teacher}, seed {seed}: there already")
        return
    start = time.perf_counter()
    tokenizer = make_tokenizer("student")
    model, losses = train(training, tokenizer, teacher, seed)
    score = exact_match(model, tokenizer, split_pairs()[1])
    result = {"settings": settings, "exact_match": score, **losses, "seconds": round(time.perf_counter() - start, 1)}
    root.mkdir(parents=True, exist_ok=True)
    with (root / "results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)


def prepare_teacher(name: TeacherName, root: Path) -> Path:
    """The folder of a teacher, which is trained where it is not there yet."""
    target = root / name
    if not target.exists():
        print(f"{target}: training the teacher, once", flush=True)
        tokenizer = make_tokenizer(name)
        model, _ = train(_TEACHER_TRAINING, tokenizer, None, seed=0)
        score = exact_match(model, tokenizer, split_pairs()[1])
        with atomic_path(target, kind="folder") as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            (folder / "exact_match.json").write_text(json.dumps(score))
    print(f"teacher {name}: exact match {json.loads((target / 'exact_match.json').read_text()):.3f}", flush=True)
    return target


def make_tokenizer(name: TeacherName | Literal["student"]) -> PreTrainedTokenizerFast:
    """A byte-level BPE; all but the splitting one have a token for every number below 1,000."""
    numbers = [] if name == "splitting" else list(map(str, range(10, 1000)))
    tokens = [_BOS, _EOS, *BYTE_TO_UNICODE.values(), *numbers]
    if name != "student":
        np.random.default_rng(0).shuffle(tokens)
    vocabulary, bos = {token: index for index, token in enumerate(tokens)}, tokens.index(_BOS)
    merges = [(number[:-1], number[-1]) for number in numbers]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    pattern = Regex(r"\p{N}|\P{N}" if name == "splitting" else r"\p{N}{1,3}|\P{N}")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, behavior="isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_BOS} $A", special_tokens=[(_BOS, bos)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=_BOS, eos_token=_EOS, pad_token=_EOS)


def split_pairs() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The pairs to learn from, and those that are held out; the same at every call."""
    pairs = [divmod(index, 100) for index in np.random.default_rng(0).permutation(100**2).tolist()]
    return pairs[_NUM_HELD_OUT:], pairs[:_NUM_HELD_OUT]


def write_lines(path: Path, num_lines: int, wrong_share: float, seed: int) -> None:
    """Writes lines of different pairs, the given share with a wrong sum, each wrong one as likely as another."""
    generator = np.random.default_rng(seed)
    pairs = generator.permutation(split_pairs()[0])[:num_lines]  # [num_lines, 2]
    shifts = generator.integers(1, 199, len(pairs))  # sums are 0 to 198
    shifts[round(wrong_share * len(pairs)) :] = 0
    lines = (f"{a}+{b}={(a + b + shift) % 199}\n" for (a, b), shift in zip(pairs, shifts, strict=True))
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def train(
    training: Training, tokenizer: PreTrainedTokenizerFast, teacher: Teacher | None, seed: int
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Trains a small Llama from random weights; returns it, and its losses at the end, nats."""
    losses: list[Any] = []
    pl.seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=training.hidden_size,
            intermediate_size=2 * training.hidden_size,
            num_hidden_layers=training.num_layers,
            num_attention_heads=4,
            tie_word_embeddings=True,
        )
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        source = Path(folder) / "lines.jsonl"
        write_lines(source, training.num_lines, training.wrong_share, seed)
        module = MultiTeacherDistillModule(
            Student(model=folder, weights="random"),
            None if teacher is None else {"teacher": teacher},
            optimizer=OptimizerRecipe(learning_rate=training.learning_rate),
            ce_weight=training.ce_weight,
            kd_weight=0.0 if teacher is None else training.kd_weight,
        )
        data = LinesInMemory(
            TextSource(path=str(source)),
            sequence_length=16,  # so that every line is one window, on either side
            batch_size=training.batch_size,
            streaming=True,
            num_workers=0,
        )
        keep = LambdaCallback(on_train_batch_end=lambda *step: losses.append(step[2]))
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=training.steps,
            gradient_clip_val=1.0,
            callbacks=[keep, DynamicLossScaling()] if training.dynamic_scaling else [keep],
            barebones=True,  # neither logger nor checkpoints
        )
        trainer.fit(module, data)
    last = losses[-100:]  # steps
    return module.student.eval(), {name: statistics.fmean(float(step[name]) for step in last) for name in ("ce", "kd")}


class LinesInMemory(DistillDataModule):
    """Keeps what it reads as a list: nothing goes to a cache, and an epoch takes no time to read."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.datasets = {split: cast(Any, list(windows)) for split, windows in self.datasets.items()}


@torch.no_grad()
def exact_match(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[int, int]]) -> float:
    """The share of pairs whose sum, and nothing else, is generated greedily up to the end of the line."""
    by_length: dict[int, list[tuple[list[int], str]]] = {}  # a batch needs no padding
    for a, b in pairs:
        ids = tokenizer(f"{a}+{b}=")["input_ids"]
        by_length.setdefault(len(ids), []).append((ids, f"{a + b}\n"))
    num_right = 0
    for length, prompts in by_length.items():
        ids = torch.tensor([prompt for prompt, _ in prompts])  # [B, T]
        for _ in range(_MOST_NEW_TOKENS):
            following = model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], dim=1)
        answered = zip(tokenizer.batch_decode(ids[:, length:]), prompts, strict=True)
        num_right += sum(text.replace(_EOS, "\n").startswith(answer) for text, (_, answer) in answered)
    return num_right / len(pairs)


def read_results(root: Path) -> list[dict[str, Any]]:
    """All finished runs of a folder."""
    path = root / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summarize(results: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: a row for all runs that differ in their seed alone."""
    usual = asdict(Training())  # in the table only what differs is named
    groups: dict[str, list[float]] = {}
    for result in sorted(results, key=lambda result: result["settings"]["seed"]):
        settings = {name: value for name, value in result["settings"].items() if name != "seed"}
        head = [settings.pop(name) for name in ("loss", "teacher")]
        head.append(", ".join(f"{name} {value}" for name, value in settings.items() if value != usual.get(name)))
        groups.setdefault(" | ".join(head), []).append(result["exact_match"])
    lines = ["| loss | teacher | settings | exact match | 95% interval | all |", "|---|---|---|---|---|---|"]
    for row, values in sorted(groups.items()):
        mean, interval = statistics.fmean(values), ""
        if len(values) > 1:
            point = _T_POINTS[min(len(values), len(_T_POINTS) + 1) - 2]
            half = point * statistics.stdev(values) / len(values) ** 0.5
            interval = f"{mean - half:.3f} to {mean + half:.3f}"
        lines.append(f"| {row} | {mean:.3f} | {interval} | {' '.join(f'{value:.3f}' for value in values)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m experiments.arithmetic")
    parser.add_function_arguments(main, skip={"summary"})
    parser.add_argument("--summary", action="store_true", help="Only print the table.")
    main(**parser.parse_args().as_dict())
