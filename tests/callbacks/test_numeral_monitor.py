"""What NumeralMonitor logs is the closed form, or the slope, of each loss, and training goes on as without it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from reference_numerals import known_to, numeral_rows, numerals, probabilities, sequences, starts, texts_of
from small_models import packing_tokenizer, splitting_tokenizer, write_model
from tokenizers import Regex, Tokenizer, pre_tokenizers
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from xtoken_pl import (
    GOLD,
    ULD,
    BytePrefixKL,
    DistillDataModule,
    HybridKL,
    MultiTeacherDistillModule,
    OptimizerRecipe,
    ProjectionKL,
    Student,
    Teacher,
    TextSource,
    TokenKL,
)
from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks import DynamicLossScaling, NumeralMonitor
from xtoken_pl.data import Windower, collate
from xtoken_pl.losses import Merge
from xtoken_pl.scoring.blockwise import evaluate_rows

SUMS = ["12+34=46\n7+15=22\n", "100+23=123 or 9+1=10", "two and 3 are 5; 17=17"]


def pairing_tokenizer() -> PreTrainedTokenizerFast:
    """The student's tokens, but two digits at a time, so that spans of numbers hold several tokens of both sides."""
    backend = Tokenizer.from_str(packing_tokenizer().backend_tokenizer.to_str())
    in_pairs = pre_tokenizers.Split(Regex(r"\d{1,2}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([in_pairs, backend.pre_tokenizer])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end_of_text|>", pad_token="<|end_of_text|>")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    tokenizers = {"student": packing_tokenizer(), "same": packing_tokenizer(), "split": splitting_tokenizer()}
    tokenizers["pairs"] = pairing_tokenizer()
    return {
        name: write_model(root / name, tokenizer, seed=seed, scale=4.0)
        for seed, (name, tokenizer) in enumerate(tokenizers.items())
    }


Make = Callable[..., MultiTeacherDistillModule]


@pytest.fixture
def make(folders: dict[str, str]) -> Make:
    """A module in double precision; of each teacher its folder and its options."""

    def make(student: str = "student", **teachers: tuple[str, dict[str, Any]]) -> MultiTeacherDistillModule:
        chosen = {
            name: Teacher(model=folders[folder], dtype="float64", **options)
            for name, (folder, options) in teachers.items()
        }
        return MultiTeacherDistillModule(Student(model=folders[student], dtype="float64"), chosen)

    return make


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


def test_gold_has_the_gradient_of_proposition_1(make: Make, folders: dict[str, str]) -> None:
    """p_S[j] times the teacher's mass on C, and c_T where the teacher writes the numeral in several tokens.

    At the start of a text no teacher's token predicts the numeral: there is no span, and no gradient.
    """
    module = make(split=("split", {"loss": GOLD(uld_weight=0.0)}))
    batch = batch_for(module)
    ours, theirs = texts_of(packing_tokenizer()), texts_of(splitting_tokenizer())
    shared = set(ours) - {packing_tokenizer().bos_token}  # the teacher begins texts with none, and uses it for nothing
    common = [token for token, text in enumerate(theirs) if text in shared]
    assert not {ours[token] for token in numerals()} & set(theirs)
    sums, on_label = [], []
    for ids, teacher_ids in zip(sequences(batch), sequences(batch, "split"), strict=True):
        p_s, p_t = probabilities(folders["student"], ids), probabilities(folders["split"], teacher_ids)
        places, teacher_places = starts(ids, packing_tokenizer()), starts(teacher_ids, splitting_tokenizer())
        for row in numeral_rows(ids):
            label = int(ids[row + 1])
            first = teacher_places.index(places[row + 1])
            digits = [int(teacher_ids[first + k]) for k in range(len(ours[label]))]
            assert "".join(theirs[token] for token in digits) == ours[label]
            factors = [p_t[first + k - 1, token] for k, token in enumerate(digits) if k]
            c = torch.stack(factors).prod()
            mass = c * p_t[first - 1, common].sum() if first else 0 * c
            sums.append(mass * p_s[row, numerals()].sum())
            on_label.append(mass * p_s[row, label])
    found = logged(module, batch)
    assert len(sums) == 11
    assert found["kd_gradient/split"] == pytest.approx(torch.stack(sums).mean().item(), rel=1e-9)
    assert found["kd_gradient_on_label/split"] == pytest.approx(torch.stack(on_label).mean().item(), rel=1e-9)
    assert found["kd_gradient_on_label/split"] > 0


def test_kl_of_the_same_tokenizer_has_the_difference_of_probabilities(make: Make, folders: dict[str, str]) -> None:
    module = make(same=("same", {"loss": TokenKL()}))
    batch = batch_for(module)
    sums, on_label = [], []
    for ids in sequences(batch):
        difference = probabilities(folders["student"], ids) - probabilities(folders["same"], ids)
        sums += [difference[row, numerals()].sum() for row in numeral_rows(ids)]
        on_label += [difference[row, ids[row + 1]] for row in numeral_rows(ids)]
    found = logged(module, batch)
    assert found["kd_gradient/same"] == pytest.approx(torch.stack(sums).mean().item(), rel=1e-9)
    assert found["kd_gradient_on_label/same"] == pytest.approx(torch.stack(on_label).mean().item(), rel=1e-9)


def test_mass_probability_accuracy_and_the_gradient_of_the_cross_entropy(make: Make, folders: dict[str, str]) -> None:
    """The gradient by autograd, from the model's own logits; it is the mass less one."""
    module = make(split=("split", {"loss": ULD()}))
    batch = batch_for(module, [*SUMS, *known_to(folders["student"])])
    probs, labels, gradients = [], [], []
    for ids in sequences(batch):
        rows = numeral_rows(ids)
        p = probabilities(folders["student"], ids)[rows]
        logits = p.log().requires_grad_()
        F.cross_entropy(logits, ids[1:][rows], reduction="sum").backward()
        probs.append(p)
        labels.append(ids[1:][rows])
        gradients.append(cast(Tensor, logits.grad)[:, numerals()].sum(-1))
    p, label = torch.cat(probs), torch.cat(labels)
    found = logged(module, batch)
    assert found["ce_gradient"] == pytest.approx(torch.cat(gradients).mean().item(), rel=1e-9)
    assert found["ce_gradient"] == pytest.approx(found["mass"] - 1, rel=1e-9)
    assert found["mass"] == pytest.approx(p[:, numerals()].sum(-1).mean().item(), rel=1e-9)
    assert found["probability"] == pytest.approx(p.gather(1, label[:, None]).mean().item(), rel=1e-9)
    assert 0 < found["accuracy"] < 1
    assert found["accuracy"] == pytest.approx((p.argmax(-1) == label).double().mean().item())


def scores(module: MultiTeacherDistillModule, batch: DistillBatch, shift: Tensor) -> dict[str, Tensor]:
    """Every teacher's losses of the spans that are one numeral of the student, with its logits shifted."""
    module.student_head.layer.bias = torch.nn.Parameter(shift, requires_grad=False)
    found = {}
    with torch.no_grad():
        for name, of_spans in module.score(batch).spans.items():
            spans = batch.teachers[name].spans
            is_one = torch.isin(batch.student.labels[spans.student_first], torch.tensor(numerals()))
            assert (spans.student_length[is_one] == 1).all()
            found[name] = of_spans.loss[is_one].sum()
    module.student_head.layer.bias = None
    return found


EVERY_LOSS: dict[str, dict[str, Any]] = {
    "gold": {"loss": GOLD()},
    "gold_mean": {"loss": GOLD(merge="mean", divergence="jensen_shannon"), "temperature": 2.0},
    "uld": {"loss": ULD()},
    "h_kl": {"loss": HybridKL(divergence="reverse", teacher_top_k=50)},
    "p_kl": {"loss": ProjectionKL(), "temperature": 0.5},
    "p_kl_learned": {"loss": ProjectionKL(), "learn_projection": True},
    "byte_prefix_kl": {"loss": BytePrefixKL()},
}


def test_the_gradient_of_every_loss_is_its_slope(make: Make) -> None:
    """By differences: all numerals' logits are shifted, at all rows; a numeral of the text is a span."""
    teachers = {name: ("split", options) for name, options in EVERY_LOSS.items()}
    module = make(**teachers, token_kl=("same", {"loss": TokenKL(), "alpha": 0.1}))
    batch = batch_for(module)
    found = logged(module, batch, num_batches=2)
    assert len(found) == 4 + 2 * len(module.teachers)
    assert all(parameter.grad is None for parameter in module.parameters())
    module.eval()
    step, count = 1e-5, 11
    shift = torch.zeros(len(packing_tokenizer()), dtype=torch.float64)
    shift[numerals()] = step
    higher, lower = scores(module, batch, shift), scores(module, batch, -shift)
    for name in module.teachers:
        slope = (higher[name] - lower[name]).item() / (2 * step) / count
        assert found[f"kd_gradient/{name}"] == pytest.approx(slope, rel=1e-4, abs=1e-8), name


@pytest.mark.parametrize("merge", ["chain_rule", "mean"])
def test_rows_of_longer_spans_are_measured_with_their_spans(make: Make, merge: Merge) -> None:
    """Read at all rows at once, from a column of the head that shifts all numerals' logits of a row."""
    module = make(pairs=("pairs", {"loss": ProjectionKL(merge=merge)}))
    batch = batch_for(module, ["no. 1234 5", "a 12345 1"])
    found = logged(module, batch)
    spans, is_wanted = batch.teachers["pairs"].spans, torch.isin(batch.student.labels, torch.tensor(numerals()))
    of_row = spans.student_span[is_wanted]
    assert spans.student_length[of_row].tolist() == [2, 2, 2]
    assert len(set(of_row.tolist())) == 2  # one is not the first of its span

    module.eval()
    student = module.student_rows(batch.student)
    weight = student.head.layer.weight.detach()
    column = weight.new_zeros(len(weight), 1).index_fill(0, torch.tensor(numerals()), 1.0)
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight = torch.nn.Parameter(torch.cat((weight, column), 1), requires_grad=False)
    shifts = weight.new_zeros(len(student.labels), 1, requires_grad=True)
    hidden = torch.cat((student.hidden.detach(), shifts), 1)
    rows = replace(student, hidden=hidden, head=replace(student.head, layer=layer))
    tasks = {"pairs": module.teacher_task("pairs", batch.teachers["pairs"])}
    loss = evaluate_rows(rows, tasks, batch.cuts, module.logit_memory).spans["pairs"].loss.sum()
    (expected,) = torch.autograd.grad(loss, shifts)
    assert found["kd_gradient/pairs"] == pytest.approx(expected[is_wanted].mean().item(), rel=1e-9)


def test_only_numerals_behind_the_given_text_are_measured(make: Make, folders: dict[str, str]) -> None:
    module = make(same=("same", {"loss": TokenKL()}))
    batch = batch_for(module)
    of_all, of_results = [], []
    for ids in sequences(batch):
        p = probabilities(folders["student"], ids)
        for row in numeral_rows(ids):
            of_all.append(p[row, ids[row + 1]].item())
            if texts_of(packing_tokenizer())[ids[row]].endswith("="):
                of_results.append(of_all[-1])
    assert (len(of_all), len(of_results)) == (11, 5)
    found = logged(module, batch, preceded_by="=")
    assert found["probability"] == pytest.approx(sum(of_results) / 5, rel=1e-9)
    assert found["probability"] != pytest.approx(sum(of_all) / 11, rel=1e-3)


def test_means_are_over_the_rows_of_the_first_batches(make: Make) -> None:
    module = make(same=("same", {"loss": TokenKL()}))
    one, two, three = (batch_for(module, [text]) for text in SUMS)
    apart = [logged(module, batch) for batch in (one, two)]
    both = logged(module, one, two, three, num_batches=2)
    assert both.keys() == apart[0].keys()
    for tag, value in both.items():  # five numerals, and four
        assert value == pytest.approx((5 * apart[0][tag] + 4 * apart[1][tag]) / 9, rel=1e-9)


# Training --------------------------------------------------------------------------------------------------------


class Recorder(pl.Callback):
    """Losses of the steps, and the state of every source of randomness at their ends."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, bytes, Any]] = []
        self.validations: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        state = torch.get_rng_state().numpy().tobytes()
        self.steps.append((outputs["total"].item(), state, random.getstate()))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        values = trainer.callback_metrics.items()
        self.validations.append({tag: value.item() for tag, value in values if tag.startswith(("val/", "numerals/"))})


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_is_the_same_with_and_without(tmp_path: Path, folders: dict[str, str], precision: Any) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(SUMS * 4))

    def run(*callbacks: pl.Callback) -> tuple[Recorder, list[Tensor]]:
        pl.seed_everything(1, verbose=False)
        teachers = {
            "learned": Teacher(model=folders["split"], loss=ProjectionKL(), learn_projection=True),
            "prefix": Teacher(model=folders["split"], loss=BytePrefixKL()),
        }
        recipe = OptimizerRecipe(learning_rate=1e-3, warmup_fraction=0.0)
        module = MultiTeacherDistillModule(Student(model=folders["student"]), teachers, optimizer=recipe)
        source = TextSource(path=str(tmp_path / "texts.txt"))
        data = DistillDataModule(source, source, sequence_length=32, batch_size=2, num_workers=0)
        recorder = Recorder()
        pl.Trainer(
            accelerator="cpu",
            precision=precision,
            max_steps=4,
            limit_val_batches=2,
            val_check_interval=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[DynamicLossScaling(), recorder, *callbacks],
        ).fit(module, data)
        return recorder, [parameter.detach().clone() for parameter in module.parameters()]

    (plain, weights), (watched, same_weights) = run(), run(NumeralMonitor())
    assert watched.steps == plain.steps
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights, same_weights, strict=True))
    assert len(watched.validations) == 3  # the first is the sanity check
    for mine, theirs in zip(watched.validations, plain.validations, strict=True):
        numbers = {tag: value for tag, value in mine.items() if tag.startswith("numerals/")}
        assert {tag: value for tag, value in mine.items() if tag not in numbers} == theirs
        assert len(numbers) == 8
        assert numbers["numerals/ce_gradient"] == pytest.approx(numbers["numerals/mass"] - 1, rel=1e-4)


# What cannot be measured -----------------------------------------------------------------------------------------


def test_validation_texts_without_a_numeral_are_warned_about_once(make: Make) -> None:
    module = make(same=("same", {"loss": TokenKL()}))
    batch = batch_for(module, ["no number but 5\n"])
    monitor = NumeralMonitor()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[monitor])
    with pytest.warns(
        UserWarning, match=r"no token of two or more digits is learned in the first 1 .*raise num_batches"
    ):
        trainer.validate(module, DataLoader([batch], batch_size=None), verbose=False)
    assert not [tag for tag in trainer.callback_metrics if tag.startswith("numerals/")]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*two or more digits")
        trainer.validate(module, DataLoader([batch], batch_size=None), verbose=False)


def test_student_that_splits_numbers_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"two or more digits, but .* has none .*; remove the callback"):
        NumeralMonitor().check_module(make("split", same=("same", {"loss": ULD()})))


def test_options_that_find_nothing_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="num_batches must be >= 1, got 0"):
        NumeralMonitor(num_batches=0)
    with pytest.raises(ValueError, match="preceded_by must be text, got ''"):
        NumeralMonitor(preceded_by="")
    with pytest.raises(ValueError, match=r"no token of .* ends with 'equals twice =='; give its last characters only"):
        NumeralMonitor(preceded_by="equals twice ==").check_module(make(same=("same", {"loss": TokenKL()})))
