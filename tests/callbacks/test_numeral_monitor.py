"""NumeralMonitor logs the closed form, or the slope, of each loss."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from numeral_runs import SUMS, Make, batch_for, logged, make_module, write_models
from reference_numerals import known_to, numeral_rows, numerals, probabilities, sequences, starts, texts_of
from small_models import packing_tokenizer, splitting_tokenizer
from torch import Tensor
from torch.utils.data import DataLoader

from xtoken_pl import GOLD, ULD, BytePrefixKL, HybridKL, MultiTeacherDistillModule, ProjectionKL, TokenKL
from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks import NumeralMonitor
from xtoken_pl.losses import Merge
from xtoken_pl.scoring.blockwise import evaluate_rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def make(folders: dict[str, str]) -> Make:
    return partial(make_module, folders)


def test_gold_has_the_gradient_of_proposition_1(make: Make, folders: dict[str, str]) -> None:
    """It is p_S[j] times the teacher's mass on C, times c_T if the teacher writes the numeral in several tokens.

    At the start of a text no teacher token predicts the numeral, so there is no span and no gradient.
    """
    module = make(split=("split", {"loss": GOLD(uld_weight=0.0)}))
    batch = batch_for(module)
    ours, theirs = texts_of(packing_tokenizer()), texts_of(splitting_tokenizer())
    shared = set(ours) - {packing_tokenizer().bos_token}  # the teacher has no bos
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


def test_gradient_of_token_kl_is_the_difference_of_probabilities(make: Make, folders: dict[str, str]) -> None:
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


def test_mass_probability_accuracy_and_cross_entropy_gradient(make: Make, folders: dict[str, str]) -> None:
    """The gradient is computed by autograd from the model's own logits, and equals the mass minus 1."""
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
    """Each teacher's loss over spans of one student numeral, with the student's logits shifted."""
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


def test_gradient_of_every_loss_equals_its_finite_difference(make: Make) -> None:
    """The logits of all numerals are shifted at all rows; every numeral in the text is a span of its own."""
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
def test_rows_in_longer_spans_get_the_gradient_of_their_span(make: Make, merge: Merge) -> None:
    """Reference: autograd with an extra column of the head that shifts the logits of all numerals in a row."""
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


def test_only_numerals_after_the_given_text_are_measured(make: Make, folders: dict[str, str]) -> None:
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
    for tag, value in both.items():  # five and four numerals
        assert value == pytest.approx((5 * apart[0][tag] + 4 * apart[1][tag]) / 9, rel=1e-9)


# Warnings and errors ---------------------------------------------------------------------------------------------


def test_validation_without_numerals_warns_once(make: Make) -> None:
    module = make(same=("same", {"loss": TokenKL()}))
    batch = batch_for(module, ["no number but 5\n"])
    monitor = NumeralMonitor()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[monitor])
    with pytest.warns(
        UserWarning, match=r"no token of two or more digits is learned in the first 1 .*increase num_batches"
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
