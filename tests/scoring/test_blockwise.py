"""The whole path from hidden states to a gradient does not depend on how rows are cut, padded or ordered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from asks_the_device import AsksTheDevice
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from two_teachers import CROSS_LOSSES, NAMES, assert_same, gradients, make_module

from xtoken_pl import BytePrefixKL, ConfidenceWeighting, SpanLoss
from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks import DynamicLossScaling
from xtoken_pl.data import collate
from xtoken_pl.models.causal_lm import states_of_body
from xtoken_pl.prefix_map import PrefixPlanner

every_cross_loss = pytest.mark.parametrize("loss", CROSS_LOSSES, ids=repr)


@every_cross_loss
@pytest.mark.parametrize("memory", [1e-9, 1e-4, 6e-3, 1.0])
def test_memory_does_not_change_loss_or_gradient(
    folders: dict[str, str], windows: list[dict[str, Any]], loss: SpanLoss, memory: float
) -> None:
    batch = collate(windows, NAMES)
    assert_same(
        gradients(make_module(folders, loss, memory=memory), batch),
        gradients(make_module(folders, loss), batch),
    )


def test_memory_does_not_change_the_gradient_of_a_learned_projection(
    folders: dict[str, str], windows: list[dict[str, Any]]
) -> None:
    batch = collate(windows, NAMES)
    whole = gradients(make_module(folders, learn=True, memory=1.0), batch)
    parts = gradients(make_module(folders, learn=True, memory=1e-4), batch)
    name = "losses.other.learned.logits"  # in single precision
    torch.testing.assert_close(parts[1].pop(name), whole[1].pop(name), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(parts[0], whole[0], rtol=0, atol=1e-7)


def test_batch_order_does_not_change_loss_or_gradient(folders: dict[str, str], windows: list[dict[str, Any]]) -> None:
    module = make_module(folders)
    assert_same(gradients(module, collate(windows, NAMES)), gradients(module, collate(windows[::-1], NAMES)))


@every_cross_loss
def test_padding_does_not_change_loss_or_gradient(
    folders: dict[str, str], windows: list[dict[str, Any]], loss: SpanLoss
) -> None:
    module = make_module(folders, loss)
    batch = collate(windows, NAMES)
    assert_same(gradients(module, batch), gradients(module, _padded(batch, 5)))


def _padded(batch: DistillBatch, extra: int) -> DistillBatch:
    """The same batch with more columns of padding, holding other ids."""

    def pad(tokens: Any) -> Any:
        old, new = tokens.input_ids.shape[1], tokens.input_ids.shape[1] + extra
        rows = tokens.rows // old * new + tokens.rows % old
        ids = torch.nn.functional.pad(tokens.input_ids, (0, extra), value=3)
        mask = torch.nn.functional.pad(tokens.attention_mask, (0, extra))
        return replace(tokens, input_ids=ids, attention_mask=mask, rows=rows)

    views = {name: replace(view, tokens=pad(view.tokens)) for name, view in batch.teachers.items()}
    return replace(batch, student=pad(batch.student), teachers=views)


def test_blocks_hold_whole_spans_and_every_row_once(folders: dict[str, str], windows: list[dict[str, Any]]) -> None:
    batch = collate(windows, NAMES)
    cuts = batch.cuts.student
    for max_rows in (1, 5, 64):
        blocks = batch.cuts.blocks(max_rows, max(1, max_rows // 3))
        assert [row for block in blocks for row in range(len(batch.student.rows))[block.student_rows]] == list(
            range(len(batch.student.rows))
        )
        for name, view in batch.teachers.items():
            spans = view.spans
            assert [k for block in blocks for k in range(len(spans))[block.spans[name]]] == list(range(len(spans)))
            for block in blocks:
                own = range(len(spans))[block.spans[name]]
                for k in own:
                    first, last = int(spans.student_first[k]), int(spans.student_first[k] + spans.student_length[k])
                    assert block.student_rows.start <= first < last <= block.student_rows.stop
                    first, last = int(spans.teacher_first[k]), int(spans.teacher_first[k] + spans.teacher_length[k])
                    assert block.teacher_rows[name].start <= first < last <= block.teacher_rows[name].stop
                inside = (cuts > block.student_rows.start) & (cuts < block.student_rows.stop)
                if inside.any():  # more than the smallest piece that can be cut off
                    assert block.teacher_rows[name].stop - block.teacher_rows[name].start <= max_rows


def test_no_full_logits_are_held(folders: dict[str, str], windows: list[dict[str, Any]]) -> None:
    """Between forward and backward no saved tensor is as large as the rows' logits."""
    module = make_module(folders, memory=1e-4)
    batch = collate(windows, NAMES)
    largest = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        if tensor.grad_fn is not None:  # results, not parameters
            largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module.training_step(batch, 0)
    assert 0 < largest < len(batch.student.rows) * len(module.student_vocabulary) / 4


def test_a_batch_is_planned_once(
    folders: dict[str, str], windows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = make_module(folders, BytePrefixKL()), collate(windows, NAMES)
    planned = collate(windows, NAMES, module.planners())
    assert planned.teachers["other"].plan is not None
    assert planned.teachers["same"].plan is None
    assert batch.teachers["other"].plan is None
    # It reads behind spans, so that there are fewer places to cut, and all of them are places of the batch.
    assert 10 < len(planned.cuts.student) < len(batch.cuts.student)
    assert {*planned.cuts.student.tolist()} < {*batch.cuts.student.tolist()}
    expected = module.training_step(batch, 0)
    monkeypatch.setattr(PrefixPlanner, "plan", None)
    assert torch.equal(cast(Any, module.training_step(planned, 0))["loss"], cast(Any, expected)["loss"])


@pytest.mark.parametrize("memory", [1e-4, 1.0])
def test_a_step_never_asks_the_device(
    folders: dict[str, str], windows: list[dict[str, Any]], memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the models, which are not ours."""

    def unwatched(*arguments: Any) -> Tensor:
        with _disable_current_modes():
            return states_of_body(*arguments)

    monkeypatch.setattr("xtoken_pl.models.causal_lm.states_of_body", unwatched)
    for loss in CROSS_LOSSES:
        module = make_module(folders, loss, memory=memory)
        batch = collate(windows, NAMES, module.planners())
        module.weighting = ConfidenceWeighting()
        module.kd_scale = DynamicLossScaling.scale
        module.train()
        with AsksTheDevice() as watch:
            step: Any = module.training_step(batch, 0)
            step["loss"].backward()
        assert watch.asked == []
