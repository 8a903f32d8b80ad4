"""The result of an optimizer step does not depend on how its windows are cut into batches, nor on interruptions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from xtoken_pl import (
    BytePrefixKL,
    DistillDataModule,
    MultiTeacherDistillModule,
    OptimizerRecipe,
    ProjectionKL,
    Student,
    Teacher,
    TextSource,
)
from xtoken_pl.callbacks import AlignmentMonitor, DynamicLossScaling, TeacherMonitor
from xtoken_pl.checkpoints.io import AtomicCheckpointIO
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import is_accumulating

#: Windows of a batch, and batches of a step.
Cut = tuple[int, int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and texts of uneven lengths, some of which have no span with the teacher that splits."""
    folder = tmp_path_factory.mktemp("accumulation")
    tokenizer = packing_tokenizer()
    for name, dropout in (("student", 0.0), ("with_dropout", 0.1)):
        # Llama's normalization layers compute in float32, whatever the precision of the model; GPT-2's do not.
        torch.manual_seed(1)
        size = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        config = GPT2Config(**size, resid_pdrop=dropout, embd_pdrop=0, attn_pdrop=0)
        GPT2LMHeadModel(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    backend = Tokenizer.from_str(splitting_tokenizer().backend_tokenizer.to_str())
    # Without an eos, a text of one of its tokens has none with a predecessor.
    without_eos = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|end_of_text|>")
    write_model(folder / "split", without_eos, seed=2)
    write_model(folder / "same", packing_tokenizer(), seed=3)
    lengths = [3, 48, 17, 40, 1, 29, 44]
    for step in (8, 32):
        # Twenty steps are two epochs, each of which ends with half a step.
        texts = [TEXTS[index % 40][: lengths[index % 7]] for index in range(9 * step + step // 2)]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"texts{step}.jsonl").write_text("".join(lines))
    return folder


@dataclass(eq=False)
class Recorder(pl.Callback):
    """The logged values of every optimizer step."""

    steps: list[dict[str, Tensor]] = field(default_factory=list)
    without_span: int = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self.without_span += len(batch.teachers["split"].spans) == 0
        if not is_accumulating(trainer):
            self.steps.append({tag: value.clone() for tag, value in trainer.callback_metrics.items()})


def module_of(folder: Path, dtype: Any, student: str) -> MultiTeacherDistillModule:
    pl.seed_everything(0, verbose=False)
    teachers = {
        "split": Teacher(
            model=str(folder / "split"),
            loss=ProjectionKL(),
            learn_projection=dtype == "float32",  # the weights of W are
            alpha=0.3,
            dtype=dtype,
        ),
        "same": Teacher(model=str(folder / "same"), loss=BytePrefixKL(), alpha=0.7, dtype=dtype),
    }
    recipe = OptimizerRecipe(learning_rate=3e-3)
    specification = Student(model=str(folder / student), dtype=dtype)
    return MultiTeacherDistillModule(specification, teachers, optimizer=recipe)


def fit(
    folder: Path,
    cut: Cut,
    *callbacks: pl.Callback,
    dtype: Any = "float32",
    ckpt_path: Path | None = None,
    student: str = "student",
    streaming: bool = False,
    **options: Any,
) -> tuple[MultiTeacherDistillModule, Recorder]:
    batch_size, num_batches = cut
    module, recorder = module_of(folder, dtype, student), Recorder()
    source = TextSource(path=str(folder / f"texts{batch_size * num_batches}.jsonl"))
    data = DistillDataModule(
        source, sequence_length=48, batch_size=batch_size, num_workers=0, seed=3, streaming=streaming, shuffle_buffer=20
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        accumulate_grad_batches=num_batches,
        gradient_clip_val=1.0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, TeacherMonitor(), AlignmentMonitor(), recorder],
        plugins=[AtomicCheckpointIO()],
        **{"max_epochs": 2, "logger": False, "log_every_n_steps": 1, **options},
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, recorder


def parameters(module: MultiTeacherDistillModule) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def with_gradients(module: MultiTeacherDistillModule) -> dict[str, Tensor]:
    """The parameters without the biases of keys, on which attention does not depend.

    Their gradients are rounding errors, which differ from CPU to CPU, and which Adam scales to steps of any size.
    """
    found = parameters(module)
    for name in [name for name in found if name.endswith("c_attn.bias")]:
        queries, _, values = found[name].chunk(3)
        found[name] = torch.cat((queries, values))
    return found


WHOLE: dict[tuple[int, str], tuple[MultiTeacherDistillModule, Recorder]] = {}


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("cut", "dtype"),
    [
        ((4, 2), "float64"),
        ((1, 8), "float64"),
        ((1, 8), "float32"),
        *(slow(cut, dtype) for cut in ((16, 2), (4, 8), (1, 32)) for dtype in ("float64", "float32")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[1]} x {value[0]}",
)
def test_losses_and_parameters_do_not_depend_on_the_cut(folder: Path, cut: Cut, dtype: str) -> None:
    size = cut[0] * cut[1]
    if (size, dtype) not in WHOLE:
        WHOLE[size, dtype] = fit(folder, (size, 1), dtype=dtype)
    whole, expected = WHOLE[size, dtype]
    split, found = fit(folder, cut, dtype=dtype)
    precision = {"rtol": 0, "atol": 1e-5 if dtype == "float32" else 1e-10}
    assert split.global_step == whole.global_step == 20
    assert expected.without_span == 0
    assert found.without_span > 0 or cut[0] > 1
    torch.testing.assert_close(found.steps, expected.steps, **precision)
    torch.testing.assert_close(with_gradients(split), with_gradients(whole), **precision)
    assert {"train/kd/same", "train/alpha/split", "train/spans_per_token/same"} < expected.steps[0].keys()
    assert expected.steps[-1]["train/loss"] < expected.steps[0]["train/loss"]


class Interrupting(pl.Callback):
    """Saves a checkpoint after every batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[Path] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.saved.append(self.folder / f"{len(self.saved):02d}.ckpt")
        trainer.save_checkpoint(self.saved[-1])


class Noted(Logger):
    """Notes what is logged, and at which step."""

    name, version = "noted", 0

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[int, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "train/loss" in metrics:
            assert step is not None
            self.losses[step] = metrics["train/loss"]

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
def test_a_run_that_is_resumed_within_a_step_computes_what_it_would_have_computed(
    folder: Path, tmp_path: Path, streaming: bool
) -> None:
    # Epochs of a step of four batches, and a step of the two that are left.
    options: dict[str, Any] = {"limit_train_batches": 6, "max_epochs": 2, "max_steps": 4}
    options |= {"student": "with_dropout", "streaming": streaming}

    def run(*callbacks: pl.Callback, ckpt_path: Path | None = None) -> tuple[Any, Recorder, dict[int, float]]:
        logger = Noted()
        module, steps = fit(
            folder, (2, 4), DynamicLossScaling(), *callbacks, ckpt_path=ckpt_path, logger=logger, **options
        )
        return module, steps, logger.losses

    interrupting = Interrupting(tmp_path)
    whole, expected, logged = run(interrupting)
    assert list(logged) == [0, 1, 2, 3]
    for place, num_steps in ((1, 0), (3, 1), (4, 1), (5, 2), (8, 2), (10, 3)):
        resumed, found, logged_again = run(ckpt_path=interrupting.saved[place])
        assert resumed.global_step == whole.global_step == 4
        torch.testing.assert_close(found.steps, expected.steps[num_steps:], rtol=0, atol=0)
        torch.testing.assert_close(parameters(resumed), parameters(whole), rtol=0, atol=0)
        assert logged_again == {step: loss for step, loss in logged.items() if step >= num_steps}


@pytest.mark.parametrize("num_batches", [2, 6], ids=["first step", "later step"])
def test_a_run_that_stopped_within_a_step_resumes_with_that_step(
    folder: Path, tmp_path: Path, num_batches: int
) -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(
            self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            trainer.should_stop = batch_idx + 1 == num_batches

        def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "stopped.ckpt")

    whole, expected = fit(folder, (2, 4), max_steps=4)
    _, before = fit(folder, (2, 4), Stop(), max_steps=4)
    resumed, after = fit(folder, (2, 4), max_steps=4, ckpt_path=tmp_path / "stopped.ckpt")
    assert len(before.steps) == num_batches // 4
    torch.testing.assert_close(before.steps + after.steps, expected.steps, rtol=0, atol=0)
    torch.testing.assert_close(parameters(resumed), parameters(whole), rtol=0, atol=0)


def test_batches_without_the_counts_of_their_step_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"batch 1 of 1 does not end a step of the trainer \(.*=4\); use DistillData"):
        fit(folder, (2, 4), WithoutCounts())


class WithoutCounts(pl.Callback):
    """Removes the counts."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        batch.step = None


def test_an_epoch_shorter_than_a_step_is_said(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"an epoch of 2 batches has fewer than trainer.accumulate_grad_batches=4"):
        module, _ = fit(folder, (2, 4), limit_train_batches=2, max_epochs=1)
    assert module.global_step == 1
