"""Runs of a small student that writes the text it learns from; as a script, on two processes.

python on_policy_runs.py STRATEGY FOLDER, with the folder of :func:`write_models_and_texts`: writes what came out to
FOLDER/STRATEGY.pt.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from accumulated_runs import Cut, parameters
from lightning.pytorch.utilities.types import STEP_OUTPUT
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_neox
from transformers import AutoModelForCausalLM

from xtoken_pl import (
    BytePrefixKL,
    DistillDataModule,
    MultiTeacherDistillModule,
    OptimizerRecipe,
    ProjectionKL,
    Rollouts,
    Student,
    Teacher,
    TextSource,
)
from xtoken_pl.checkpoints.io import AtomicCheckpointIO
from xtoken_pl.rollouts import Rollout
from xtoken_pl.rollouts.written import WrittenStep
from xtoken_pl.utilities.lightning_internals import is_accumulating

#: Windows of a step, and of the epoch, whose last step has one.
NUM_WINDOWS, NUM_ALL = 32, 97


def write_models_and_texts(folder: Path) -> None:
    """Models, and texts of uneven lengths."""
    for name, tokenizer, seed in (("student", packing_tokenizer(), 1), ("split", splitting_tokenizer(), 2)):
        _sharpen(write_neox(folder / name, tokenizer, seed=seed), tokenizer.eos_token_id)
    _sharpen(write_neox(folder / "same", packing_tokenizer(), seed=3), packing_tokenizer().eos_token_id)
    _sharpen(
        write_neox(folder / "with_dropout", packing_tokenizer(), seed=1, dropout=0.1), packing_tokenizer().eos_token_id
    )
    lengths = [40, 1, 25, 37, 33]
    texts = [TEXTS[index % 40][index // 40 :][: lengths[index % 5]] for index in range(NUM_ALL)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def _sharpen(path: str, eos: int) -> None:
    """Makes a model sure of some tokens and often of eos, so that texts end at different lengths."""
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head.mul_(8)
        head[eos] *= 30
    model.save_pretrained(path)


@dataclass(eq=False)
class Recorder(pl.Callback):
    """Outputs of every optimizer step, and what on-policy steps have written."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    written: list[WrittenStep] = field(default_factory=list)

    @property
    def texts(self) -> list[tuple[int, list[Rollout]]]:
        """The rollouts of every on-policy step, with its number."""
        return [(written.step, written.rollouts) for written in self.written]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(outputs, dict)
        assert isinstance(pl_module, MultiTeacherDistillModule)
        if is_accumulating(trainer):
            return
        self.steps.append({key: value for key, value in outputs.items() if key != "loss"})
        if outputs["is_rollout"]:
            assert pl_module.written is not None
            self.written.append(pl_module.written)


def module_of(folder: Path, *, student: str = "student", share: float = 1.0) -> MultiTeacherDistillModule:
    """A module in double precision; at a share of 0 the student writes nothing."""
    pl.seed_everything(0, verbose=False)
    teachers = {
        "split": Teacher(model=str(folder / "split"), loss=ProjectionKL(), alpha=0.3, dtype="float64"),
        "same": Teacher(model=str(folder / "same"), loss=BytePrefixKL(), alpha=0.7, dtype="float64"),
    }
    return MultiTeacherDistillModule(
        Student(model=str(folder / student), dtype="float64"),
        teachers,
        optimizer=OptimizerRecipe(learning_rate=3e-3),
        rollouts=Rollouts(share=share, max_new_tokens=12, prompt_bytes=12) if share > 0 else None,
    )


def fit(
    folder: Path,
    cut: Cut,
    *callbacks: pl.Callback,
    module: MultiTeacherDistillModule,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Recorder:
    """Trains on the texts of the folder, in steps of so many windows and batches on each process."""
    batch_size, num_batches = cut
    recorder = Recorder()
    source = TextSource(path=str(folder / "texts.jsonl"))
    data = DistillDataModule(source, sequence_length=48, batch_size=batch_size, num_workers=0, seed=3)
    trainer = pl.Trainer(
        accelerator="cpu",
        accumulate_grad_batches=num_batches,
        gradient_clip_val=1.0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[*callbacks, recorder],
        plugins=[AtomicCheckpointIO()],
        **{"max_epochs": 2, **options},
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return recorder


if __name__ == "__main__":
    strategy, place = sys.argv[1], Path(sys.argv[2])
    trained = module_of(place)
    seen = fit(place, (4, 4), module=trained, devices=2, strategy=strategy)
    gathered: list[Any] = [None, None]
    torch.distributed.all_gather_object(gathered, seen.texts)
    result = {"steps": seen.steps, "parameters": parameters(trained), "texts": gathered}
    if trained.trainer.is_global_zero:
        torch.save(result, place / f"{strategy}.pt")
