"""The module connects the data module by one call, and needs nothing else of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from torch.utils.data import DataLoader

from xtoken_pl import DistillDataModule, LoRA, MultiTeacherDistillModule, Student, Teacher, TextSource
from xtoken_pl.data import Windower, collate
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_model(root / "student", packing_tokenizer(), seed=1)
    write_model(root / "split", splitting_tokenizer(), seed=2)
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text[:80]}) + "\n" for text in TEXTS[:4]))
    return root


def module_of(root: Path, *teachers: str, kind: Any = MultiTeacherDistillModule) -> MultiTeacherDistillModule:
    named = {name: Teacher(model=str(root / name)) for name in teachers}
    return kind(Student(model=str(root / "student")), named)


def data_of(root: Path, **options: Any) -> DistillDataModule:
    source = TextSource(path=str(root / "texts.jsonl"))
    return DistillDataModule(source, source, sequence_length=64, batch_size=2, num_workers=0, **options)


def trainer(**options: Any) -> pl.Trainer:
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(accelerator="cpu", max_steps=1, **dict.fromkeys(quiet, False), **options)


def test_a_plain_trainer_needs_no_call(root: Path) -> None:
    module, data = module_of(root, "split"), data_of(root)
    trainer().fit(module, data)
    assert list(data.windower.teachers) == ["split"]
    assert data.windower.student is module.student_vocabulary
    (metrics,) = trainer().validate(module, data, verbose=False)
    assert metrics["val/bits_per_byte"] > 0


def test_the_test_stage_connects_the_data_module_too(root: Path) -> None:
    module, data = module_of(root, "split"), data_of(root, test=TextSource(path=str(root / "texts.jsonl")))
    (metrics,) = trainer().test(module, data, verbose=False)
    assert metrics["test/bits_per_byte"] > 0
    assert data.windower.student is module.student_vocabulary


def test_connecting_draws_nothing_from_the_random_generator(root: Path) -> None:
    """An adapter's initial weights would otherwise differ between one process and several, which are seeded later."""
    module = MultiTeacherDistillModule(
        Student(model=str(root / "student"), adapter=LoRA(rank=2)), {"split": Teacher(model=str(root / "split"))}
    )
    before = torch.get_rng_state()
    module.connect(data_of(root))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("packing", "expected"), [("none", False), ("joined", False), ("separate", True)])
def test_the_module_is_told_whether_packed_documents_stay_apart(root: Path, packing: Any, expected: bool) -> None:
    module = module_of(root, "split")
    module.connect(data_of(root, packing=packing))
    assert module.separates_documents is expected


def test_a_data_module_of_ones_own_needs_batches_only(root: Path) -> None:
    class Own(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            windower = Windower(module.student_vocabulary, module.teacher_vocabularies, 64)
            columns = windower([TEXTS[0][:80]])
            rows = [{key: column[0] for key, column in columns.items()}] * 2
            return DataLoader(rows, batch_size=2, collate_fn=lambda windows: collate(windows, ["split"]))  # type: ignore[arg-type]

    module = module_of(root, "split")
    run = trainer(limit_val_batches=0)
    run.fit(module, Own())
    assert run.global_step == 1


def test_a_data_module_makes_new_windows_for_a_module_with_other_tokenizers(root: Path) -> None:
    data = data_of(root)
    trainer().validate(module_of(root, "split"), data, verbose=False)
    first = data.datasets["val"]
    trainer().validate(module_of(root, "split"), data, verbose=False)
    assert data.datasets["val"] is first
    trainer().validate(module_of(root, "student"), data, verbose=False)
    assert "student/ids" in data.datasets["val"].column_names
    assert "split/ids" not in data.datasets["val"].column_names


def test_a_subclass_that_hides_the_connection_is_told_so(root: Path) -> None:
    class Hides(MultiTeacherDistillModule):
        def configure_callbacks(self) -> list[pl.Callback]:
            return []

    with pytest.raises(UserError, match=r"call connect\(\) first .* must call super\(\)\.configure_callbacks\(\)"):
        trainer().fit(module_of(root, "split", kind=Hides), data_of(root))


def test_a_subclass_adds_callbacks_of_its_own(root: Path) -> None:
    class Noted(pl.Callback):
        steps = 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.steps += 1

    noted = Noted()

    class Adds(MultiTeacherDistillModule):
        def configure_callbacks(self) -> list[pl.Callback]:
            super().configure_callbacks()
            return [noted]

    trainer().fit(module_of(root, "split", kind=Adds), data_of(root))
    assert noted.steps == 1


def test_a_subclass_with_a_backbone_may_finetune_it(root: Path) -> None:
    class HasBackbone(MultiTeacherDistillModule):
        backbone = torch.nn.Linear(1, 1)

    def fit(kind: Any) -> None:
        trainer(callbacks=[BackboneFinetuning()]).fit(module_of(root, "split", kind=kind), data_of(root))

    fit(HasBackbone)
    assert not HasBackbone.backbone.weight.requires_grad
    with pytest.raises(UserError, match=r"BackboneFinetuning needs a module with an attribute `backbone`"):
        fit(MultiTeacherDistillModule)
