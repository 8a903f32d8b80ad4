"""A short run with all monitors, for tests of what they log."""

from __future__ import annotations

from itertools import repeat
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from logged import scalars
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, splitting_tokenizer, write_model
from torch.utils.data import DataLoader

from xtoken_pl import MultiTeacherDistillModule, OptimizerRecipe, ProjectionKL, Student, Teacher, TokenKL
from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks import AlignmentMonitor, ProjectionMonitor, TeacherMonitor, ThroughputMonitor
from xtoken_pl.callbacks.charts import Charts, collect_charts
from xtoken_pl.data import Windower, collate, whole_steps


def write_models(root: Path) -> dict[str, str]:
    tokenizers = {"packs": packing_tokenizer(), "splits": splitting_tokenizer(), "reverses": reversing_tokenizer()}
    return {name: write_model(root / name, tokenizer) for name, tokenizer in tokenizers.items()}


def make_module(
    folders: dict[str, str], kind: type[MultiTeacherDistillModule] = MultiTeacherDistillModule
) -> MultiTeacherDistillModule:
    """Makes a module whose teachers have a learned W, a fixed W and no W."""
    teachers = {
        "splits": Teacher(model=folders["splits"], loss=ProjectionKL(), learn_projection=True),
        "reverses": Teacher(model=folders["reverses"], loss=ProjectionKL()),
        "same": Teacher(model=folders["packs"], loss=TokenKL()),
    }
    recipe = OptimizerRecipe(learning_rate=1e-3, warmup_fraction=0.0)
    return kind(Student(model=folders["packs"]), teachers, optimizer=recipe)


def batches(module: MultiTeacherDistillModule, num: int) -> list[DistillBatch]:
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([*TEXTS[:4]])
    rows = [{key: column[index] for key, column in columns.items()} for index in range(2 * num)]
    return [collate(rows[start : start + 2], list(module.teachers)) for start in range(0, 2 * num, 2)]


class Finished:
    """A run of four steps with two micro-batches each; every other step is logged."""

    def __init__(self, folders: dict[str, str], root: Path) -> None:
        self.module = make_module(folders)
        self.module.setup("fit")
        self.batches = list(whole_steps(batches(self.module, 8), repeat(2)))
        logger = TensorBoardLogger(root, name="", version="run")
        self.trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=4,
            log_every_n_steps=2,
            accumulate_grad_batches=2,
            logger=logger,
            callbacks=[AlignmentMonitor(), TeacherMonitor(), ProjectionMonitor(), ThroughputMonitor()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        self.trainer.fit(self.module, DataLoader(cast(Any, self.batches), batch_size=None, num_workers=0))
        self.folder = root / "run"
        self.scalars = scalars(self.folder)

    def charts(self) -> Charts:
        return collect_charts(cast(Any, self.trainer).callbacks, self.module)
