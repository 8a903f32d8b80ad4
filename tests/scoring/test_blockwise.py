"""The whole path from hidden states to a gradient does not depend on how rows are cut, padded or ordered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import reference_losses as reference
import torch
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, write_model
from test_losses import dense
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from xtoken_pl import (
    GOLD,
    ULD,
    BytePrefixKL,
    ConfidenceWeighting,
    HybridKL,
    MultiTeacherDistillModule,
    ProjectionKL,
    SpanLoss,
    Student,
    Teacher,
    TokenKL,
    build_projection,
)
from xtoken_pl.batch import DistillBatch, teacher_columns
from xtoken_pl.callbacks import DynamicLossScaling
from xtoken_pl.data import Windower, collate
from xtoken_pl.losses import PartitionedLoss
from xtoken_pl.models.causal_lm import states_of_body
from xtoken_pl.prefix_map import PrefixPlanner
from xtoken_pl.utilities.segments import even_segments, greedy_segments

NAMES = ["other", "same"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        # Heads padded beyond the tokenizer, as real ones are.
        "student": write_model(
            root / "student", packing_tokenizer(), seed=1, num_head_rows=len(packing_tokenizer()) + 7
        ),
        "other": write_model(
            root / "other", reversing_tokenizer(), seed=2, num_head_rows=len(reversing_tokenizer()) + 4
        ),
        "same": write_model(root / "same", packing_tokenizer(), seed=3),
    }


def make_module(
    folders: dict[str, str],
    loss: SpanLoss | None = None,
    *,
    memory: float = 2e-4,
    temperature: float = 1.0,
    learn: bool = False,
) -> MultiTeacherDistillModule:
    """``loss`` is that of the teacher with another tokenizer."""
    other = Teacher(
        model=folders["other"],
        loss=loss or ProjectionKL(),
        dtype="float64",
        alpha=0.7,
        temperature=temperature,
        learn_projection=learn,
    )
    same = Teacher(model=folders["same"], loss=TokenKL(), dtype="float64", alpha=0.3)
    teachers = {"other": other, "same": same}
    module = MultiTeacherDistillModule(
        Student(model=folders["student"], dtype="float64"),
        teachers,
        kd_weight=0.6,
        ce_weight=0.9,
        logits_memory=memory,
    )
    module.setup("fit")
    module.configure_model()
    return module


@pytest.fixture(scope="module")
def windows(folders: dict[str, str]) -> list[dict[str, Any]]:
    module = make_module(folders)
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([text[:300] for text in TEXTS[:3]])
    rows = [{key: column[index] for key, column in columns.items()} for index in range(len(columns["student_ids"]))]
    spans = np.concatenate([np.asarray(row[teacher_columns("other")[1]]).reshape(-1, 4) for row in rows])
    lengths = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
    assert all((length > 1).sum() > 10 for length in lengths)  # many-to-one and one-to-many
    # Windows of different lengths, so that there is something to pad.
    return sorted(rows, key=lambda row: len(row["student_ids"]))[:3] + rows[:3]


def gradients(module: MultiTeacherDistillModule, batch: DistillBatch) -> tuple[Tensor, dict[str, Tensor]]:
    module.zero_grad()
    step: Any = module.training_step(batch, 0)
    step["loss"].backward()
    grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return step["loss"].detach(), grads


def assert_same(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-10)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


CROSS_LOSSES: list[SpanLoss] = [
    ProjectionKL(),
    ProjectionKL(merge="mean", divergence="reverse"),
    GOLD(),
    GOLD(merge="mean", divergence="jensen_shannon"),
    HybridKL(kl_weight=0.5),
    ULD(),
    BytePrefixKL(),
]
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
    from dataclasses import replace

    def pad(tokens: Any) -> Any:
        old, new = tokens.input_ids.shape[1], tokens.input_ids.shape[1] + extra
        rows = tokens.rows // old * new + tokens.rows % old
        ids = torch.nn.functional.pad(tokens.input_ids, (0, extra), value=3)
        mask = torch.nn.functional.pad(tokens.attention_mask, (0, extra))
        return replace(tokens, input_ids=ids, attention_mask=mask, rows=rows)

    views = {name: replace(view, tokens=pad(view.tokens)) for name, view in batch.teachers.items()}
    return replace(batch, student=pad(batch.student), teachers=views)


@pytest.mark.parametrize(
    ("loss", "temperature"),
    [
        (ProjectionKL(), 1.0),
        pytest.param(ProjectionKL(divergence="reverse"), 2.5, marks=pytest.mark.slow),
        pytest.param(ProjectionKL(merge="mean"), 1.0, marks=pytest.mark.slow),
        pytest.param(GOLD(), 1.0, marks=pytest.mark.slow),
        (HybridKL(divergence="jensen_shannon", uld_weight=0.5), 2.5),
        pytest.param(ULD(merge="mean"), 1.0, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_step_agrees_with_full_logits_and_slow_losses(
    folders: dict[str, str], windows: list[dict[str, Any]], loss: SpanLoss, temperature: float
) -> None:
    module = make_module(folders, loss, temperature=temperature)
    windows = windows[1:5]  # the references are slow
    ours = gradients(module, collate(windows, NAMES))
    module.zero_grad()
    slow = _slow_loss(module, windows, temperature)
    slow.backward()
    theirs = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    assert_same(ours, (slow.detach(), theirs))


def _slow_loss(module: MultiTeacherDistillModule, windows: Sequence[dict[str, Any]], temperature: float) -> Tensor:
    """Window by window, the models' own logits, loops over tokens: nothing of the package but windows, W and C."""
    size = len(module.student_vocabulary)
    nats: list[Tensor] = []
    kd: dict[str, list[Tensor]] = {"other": [], "same": []}
    for window in windows:
        ids = torch.as_tensor(np.asarray(window["student_ids"]))
        logits = module.student(ids[None]).logits[0, :-1, :size]
        nats.append(reference.cross_entropy(logits.log_softmax(-1), ids[1:]))
        for name, losses in kd.items():
            ids_column, spans_column = teacher_columns(name)
            teacher_ids = torch.as_tensor(np.asarray(window[ids_column]))
            with torch.no_grad():
                teacher = module._loaded_teachers[name].model(teacher_ids[None]).logits[0, :-1]
            teacher = teacher[:, : len(module.teacher_vocabularies[name])]
            # Rows predict the next token: token i belongs to row i - 1.
            spans = [
                (a - 1, b - 1, c - 1, d - 1)
                for a, b, c, d in np.asarray(window[spans_column]).reshape(-1, 4).tolist()
                if a >= 1 and c >= 1
            ]
            tau = temperature if name == "other" else 1.0
            rows = ((logits / tau).log_softmax(-1), (teacher / tau).log_softmax(-1), ids[1:], teacher_ids[1:], spans)
            losses.append(tau**2 * _slow_spans(module, name, rows))
    other, same = (torch.cat(losses).mean() for losses in kd.values())
    return 0.9 * torch.cat(nats).mean() + 0.6 * (0.7 * other + 0.3 * same)


def _slow_spans(module: MultiTeacherDistillModule, name: str, rows: tuple[Any, ...]) -> Tensor:
    loss: Any = module.losses[name]
    if isinstance(loss, ULD):
        return reference.uld(*rows, loss.merge)
    if isinstance(loss, TokenKL):
        return reference.token_divergence(*rows, loss.merge, loss.divergence)
    if isinstance(loss, ProjectionKL):
        other = module.teacher_vocabularies[name].tokenizer
        matrix = dense(build_projection(module.student_vocabulary.tokenizer, other))
        return reference.projection_divergence(*rows, matrix, loss.merge, loss.divergence)
    assert isinstance(loss, PartitionedLoss)
    pairs = list(zip(loss.student_common.tolist(), loss.teacher_common.tolist(), strict=True))
    rest = loss.student_rest.tolist(), loss.teacher_rest.tolist()
    return reference.hybrid(*rows, pairs, *rest, loss.kl_weight, loss.uld_weight, loss.merge, loss.divergence)


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


class AsksTheDevice(TorchDispatchMode):
    """Notes operations whose result the CPU has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "bincount")
        name = function.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in waits or name.startswith("_unique") or by_mask:
            self.asked.append(name)
        return function(*args, **(kwargs or {}))


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


def test_greedy_segments_respect_every_limit_and_skip_nothing() -> None:
    bounds = np.array([[0, 0], [3, 1], [4, 9], [6, 10], [20, 11], [21, 12]])
    segments = greedy_segments(bounds, [6, 9])
    assert segments == [(0, 2), (2, 3), (3, 4), (4, 5)]  # the fourth piece is longer than the limit, and stands alone


@pytest.mark.parametrize(("num_pieces", "limit", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [3, 3, 3]), (5, 4, [3, 2])])
def test_even_segments_are_as_few_and_as_small_as_can_be(num_pieces: int, limit: int, sizes: list[int]) -> None:
    bounds = np.arange(num_pieces + 1)[:, None]
    assert [end - start for start, end in even_segments(bounds, limit)] == sizes


def test_even_segments_respect_the_limit_of_every_side_and_skip_nothing() -> None:
    generator = np.random.default_rng(0)
    bounds = np.concatenate((np.zeros((1, 2), int), generator.integers(0, 4, (300, 2)).cumsum(axis=0)))
    for limit in (1, 3, 20, 100, 10_000):
        segments = even_segments(bounds, limit)
        assert len(segments) == len(greedy_segments(bounds, [limit, limit]))
        assert [0, *(end for _, end in segments)] == [*(start for start, _ in segments), 300]
        assert all((bounds[end] - bounds[start]).max() <= limit or end == start + 1 for start, end in segments)
    assert even_segments(bounds[:1], 5) == []
