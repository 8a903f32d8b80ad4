"""The job of all runs: the quickstart's models and texts as windows in a fixed order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, Student, Teacher, TextSource
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.training.optimization import OptimizerRecipe

_ROOT = Path(__file__).parents[2]
CONFIG = _ROOT / "configs" / "quickstart.yaml"
#: Sentences of many scripts, a window each.
SCRIPTS = Path(__file__).with_name("scripts.txt")


@dataclass(frozen=True)
class JobSettings:
    """What a run reads from ``job.json``; directories are relative to the repository.

    Attributes:
        student: Directory of the student's initial weights and its tokenizer.
        teacher: Directory of the teacher.
        batch_size: Number of windows of a step.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of matrices.
        betas: Coefficients of Adam.
        warmup_fraction: Share of the linear warm-up in all steps; a half cosine to 0 follows.
        clip: Largest norm of the gradient.
        seed: Seed of the order of the windows.
    """

    student: str
    teacher: str
    batch_size: int
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    warmup_fraction: float
    clip: float
    seed: int


def write_job(folder: Path, num_steps: int, scripts: Path | None = None) -> None:
    """Writes ``job.json``, the initial student, and ``windows.jsonl``.

    A window has ``text``; ``ids``, the student's tokens; and ``is_end``, whether eos follows the text.

    Args:
        folder: Output directory.
        num_steps: Number of steps whose windows are written.
        scripts: File with a text on every line, which are the windows in place of the quickstart's.
    """
    config = yaml.safe_load(CONFIG.read_text())
    model, data = config["model"], config["data"]
    student = folder / "student"
    torch.manual_seed(config["seed_everything"])
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model["student"]["model"])).save_pretrained(student)
    add_tokenizer(student, Path(model["student"]["model"]))
    recipe = OptimizerRecipe(**model["optimizer"])
    settings = JobSettings(
        student=str(student),
        teacher=model["teachers"]["smollm2"]["model"],
        batch_size=data["batch_size"],
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        warmup_fraction=recipe.warmup_fraction,
        clip=1.0,  # default of `fit`
        seed=config["seed_everything"],
    )
    (folder / "job.json").write_text(json.dumps(asdict(settings), indent=1))
    vocabulary = CanonicalVocabulary.from_tokenizer(load_tokenizer(settings.student))
    if scripts is None:
        rows: Iterator[Sequence[int]] = _quickstart_windows(settings, data["train"]["path"], data["sequence_length"])
    else:
        texts = vocabulary.encode(scripts.read_text().splitlines())
        rows = ([*vocabulary.prefix_ids, *ids, vocabulary.roles["eos"]] for ids in texts)
    windows = [window_of(vocabulary, ids) for ids in islice(rows, num_steps * settings.batch_size)]
    assert len(windows) == num_steps * settings.batch_size, f"{len(windows)} windows for {num_steps} steps"
    (folder / "windows.jsonl").write_text("".join(json.dumps(window) + "\n" for window in windows))


def add_tokenizer(folder: Path, source: Path) -> None:
    """Copies the files of a tokenizer into the directory of a model."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)


def _quickstart_windows(settings: JobSettings, texts: str, sequence_length: int) -> Iterator[Sequence[int]]:
    """Yields the student's tokens in the order in which ``fit`` reads them."""
    module = MultiTeacherDistillModule(Student(model=settings.student), {"t": Teacher(model=settings.teacher)})
    data = DistillDataModule(
        TextSource(path=texts),
        sequence_length=sequence_length,
        batch_size=settings.batch_size,
        num_workers=0,
        seed=settings.seed,
    )
    module.connect(data)
    data.setup("fit")
    for batch in data.train_dataloader():
        for ids, mask in zip(batch.student.input_ids, batch.student.attention_mask, strict=True):
            yield ids[mask.bool()].tolist()


def window_of(vocabulary: CanonicalVocabulary, ids: Sequence[int]) -> dict[str, object]:
    """Describes a window of ``windows.jsonl`` by the student's tokens, with bos, and eos if it ends a document.

    Args:
        vocabulary: Vocabulary of the student.
        ids: ``[n]`` token ids.
    """
    stream, _ = vocabulary.byte_stream(np.asarray(ids, dtype=np.int64))
    return {"text": stream.tobytes().decode(), "ids": list(ids), "is_end": ids[-1] == vocabulary.roles["eos"]}
