"""Weights by confidence against slow references from the models' own logits."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from reference_weights import confidence_weights, confidence_weights_per_row
from transformers import AutoModelForCausalLM
from weighted_teachers import ALPHAS, NAMES, MakeModule, batch_for, views_of, weights_of

from xtoken_pl import ConfidenceWeighting, MostConfidentTeacher, MultiTeacherDistillModule
from xtoken_pl.batch import DistillBatch
from xtoken_pl.weighting import span_alphas
from xtoken_pl.weighting.confidence import Measure, Unit


def test_batch_has_spans_of_all_kinds(make: MakeModule) -> None:
    module = make(ConfidenceWeighting())
    batch = batch_for(module)
    spans = batch.teachers["other"].spans
    assert (spans.student_length > 1).sum() > 5
    assert (spans.teacher_length > 1).sum() > 5
    assert (module.student_num_bytes[batch.student.labels] == 0).sum() == 1


def slow_sums(
    module: MultiTeacherDistillModule, batch: DistillBatch, name: str, measure: Measure, unit: Unit
) -> tuple[list[float], list[float]]:
    """The confidence of every span and its units, from the teacher's own logits, token by token."""
    view = batch.teachers[name]
    model = AutoModelForCausalLM.from_pretrained(module.teachers[name].model, dtype=torch.float64)
    with torch.no_grad():
        logits = model(view.tokens.input_ids, attention_mask=view.tokens.attention_mask).logits
    rows = logits.flatten(0, 1)[view.tokens.rows][:, : len(module.teacher_vocabularies[name])].softmax(-1)
    token_bytes = module.student_vocabulary.token_bytes
    sums: list[float] = []
    units: list[float] = []
    for span in range(len(view.spans)):
        first, length = int(view.spans.teacher_first[span]), int(view.spans.teacher_length[span])
        total = 0.0
        for row in range(first, first + length):
            p = rows[row]
            if measure == "cross_entropy":
                total += float(p[view.tokens.labels[row]].log())
            elif measure == "entropy":
                total += float((p * p.log()).sum())
            else:
                total += float(p.max().log() if unit == "byte" else p.max())
        first, num = int(view.spans.student_first[span]), int(view.spans.student_length[span])
        num_bytes = sum(len(token_bytes[token]) for token in batch.student.labels[first : first + num].tolist())
        sums.append(total)
        units.append(max(1, num_bytes) if unit == "byte" else length)
    return sums, units


@pytest.mark.parametrize("unit", get_args(Unit))
@pytest.mark.parametrize("measure", get_args(Measure))
@pytest.mark.parametrize("hard", [False, True])
def test_batch_weights_agree_with_the_slow_reference(
    make: MakeModule, measure: Measure, unit: Unit, *, hard: bool
) -> None:
    weighting = (
        MostConfidentTeacher(measure, unit=unit) if hard else ConfidenceWeighting(measure, unit=unit, sharpness=1.5)
    )
    module = make(weighting)
    batch = batch_for(module)
    ours = weights_of(module, batch)
    sums = [slow_sums(module, batch, name, measure, unit) for name in NAMES]
    if measure == "max_probability" and unit == "byte":
        scores = [[float(torch.tensor(sum(s) / sum(u)).exp())] for s, u in sums]
        theirs = confidence_weights(scores, [[1.0], [1.0]], list(ALPHAS.values()), 1.5, hard)
    else:
        theirs = confidence_weights([s for s, _ in sums], [u for _, u in sums], [0.3, 0.6], 1.5, hard)
    assert [float(ours[name]) for name in NAMES] == pytest.approx(theirs, abs=1e-6)
    assert sum(theirs) == pytest.approx(1.0)


@pytest.mark.parametrize("measure", get_args(Measure))
def test_sequence_weights_agree_with_the_slow_reference(make: MakeModule, measure: Measure) -> None:
    module = make(ConfidenceWeighting(measure, scope="sequence", unit="token", sharpness=2.0))
    batch = batch_for(module)
    ours, views = weights_of(module, batch), views_of(module, batch)
    sums = [slow_sums(module, batch, name, measure, "token") for name in NAMES]
    sequence_of_row = views["same"].sequence
    seen = set()
    for sequence in range(3):
        chosen = [
            (sequence_of_row[batch.teachers[name].spans.student_first] == sequence).nonzero().squeeze(1).tolist()
            for name in NAMES
        ]
        theirs = confidence_weights(
            [[s[k] for k in spans] for (s, _), spans in zip(sums, chosen, strict=True)],
            [[u[k] for k in spans] for (_, u), spans in zip(sums, chosen, strict=True)],
            list(ALPHAS.values()),
            2.0,
        )
        assert all(len(spans) > 3 for spans in chosen)
        rows = (sequence_of_row == sequence).nonzero().squeeze(1)
        for name, weight in zip(NAMES, theirs, strict=True):
            assert ours[name][rows].tolist() == pytest.approx([weight] * len(rows), abs=1e-6)
            seen.add(round(weight, 4))
    assert len(seen) == 6


@pytest.mark.parametrize("hard", [False, True])
def test_span_weights_agree_with_the_slow_reference(make: MakeModule, *, hard: bool) -> None:
    weighting = MostConfidentTeacher(scope="span") if hard else ConfidenceWeighting(scope="span", sharpness=0.7)
    module = make(weighting)
    batch = batch_for(module)
    ours = weights_of(module, batch)
    num_rows = len(batch.student.rows)
    row_scores: list[list[float | None]] = []
    for name in NAMES:
        sums, units = slow_sums(module, batch, name, "cross_entropy", "byte")
        spans = batch.teachers[name].spans
        row_scores.append(
            [
                sums[k] / units[k] if (k := int(spans.student_span[row])) < len(spans) else None
                for row in range(num_rows)
            ]
        )
    theirs = confidence_weights_per_row(row_scores, list(ALPHAS.values()), 0.7, hard)
    by_span = span_alphas(ours, batch)
    for m, name in enumerate(NAMES):
        assert ours[name].tolist() == pytest.approx(theirs[m], abs=1e-6)
        assert len(set(theirs[m])) > (1 if hard else 20)
        spans = batch.teachers[name].spans
        expected = []
        for first, length in zip(spans.student_first.tolist(), spans.student_length.tolist(), strict=True):
            expected.append(sum(theirs[m][first : first + length]) / length)
        assert by_span[name].tolist() == pytest.approx(expected, abs=1e-6)
