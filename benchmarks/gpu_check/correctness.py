"""All losses, and whole steps with each of them, on the device against float64 on the CPU."""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import loss_cases
import torch
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, write_model
from torch import Tensor

from benchmarks.gpu_check.setting import Setting
from benchmarks.measure import Figure
from benchmarks.pair import LOSSES
from xtoken_pl import ULD, MultiTeacherDistillModule, SpanLoss, Student, Teacher, TokenKL
from xtoken_pl.batch import DistillBatch
from xtoken_pl.data import Windower, collate
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.training.binding import bind_loss

Precision = Literal["float32", "bf16 autocast"]

_Result = tuple[Tensor, Tensor]

#: Largest error of a loss and of a gradient, relative to its largest entry. Under autocast the rows of a loss are
#: logits that bfloat16 can hold, so that only the gradient is rounded, once: to half of 2^-7.
_LOSS_BOUNDS: dict[Precision, tuple[float, float]] = {"float32": (1e-5, 1e-4), "bf16 autocast": (1e-5, 5e-3)}
#: Those of whole steps, whose models are rounded, too; the error of the gradient is that of its 2-norm.
_STEP_BOUNDS: dict[Precision, tuple[float, float]] = {"float32": (1e-5, 1e-4), "bf16 autocast": (5e-3, 0.05)}
#: ULD compares sorted probabilities: rounding changes the order, and with it the sign of a part of the gradient.
_ULD_BOUNDS: dict[Precision, tuple[float, float]] = _STEP_BOUNDS | {"bf16 autocast": (5e-3, 0.2)}
#: Memory for logits in bytes: blocks of one row, of some rows, all rows at once with the gradients kept.
_MEMORIES = (1.0, 1e5, 1e9)


def figures(setting: Setting) -> Iterator[Figure]:
    """The largest error of each loss, of a step with it, and of the loss over all of its options."""
    by_kind: dict[str, list[loss_cases.LossCase]] = defaultdict(list)
    for case in [*loss_cases.CASES, *loss_cases.TOP_K_CASES]:
        by_kind[case.kind.__name__].append(case)
    for kind, cases in by_kind.items():
        yield from _losses(setting, kind, cases[:1], _MEMORIES)
    yield from _steps(setting)
    if setting.is_full:
        for kind, cases in by_kind.items():
            if others := cases[1:]:
                yield from _losses(setting, f"{kind}, {len(others)} other options", others, _MEMORIES[1:2])


def _autocast(setting: Setting, precision: Precision) -> AbstractContextManager[Any]:
    return torch.autocast(setting.device.type, torch.bfloat16) if precision == "bf16 autocast" else nullcontext()


def _error(ours: Tensor, exact: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    return float((ours.double().cpu() - exact).abs().max() / exact.abs().max())


# Losses by themselves --------------------------------------------------------------------------------------------


def _losses(
    setting: Setting, what: str, cases: Sequence[loss_cases.LossCase], memories: Sequence[float]
) -> Iterator[Figure]:
    for precision in get_args(Precision):
        errors = [_errors_of_case(setting, case, precision, memories) for case in cases]
        yield from _figures_of(f"{what}, {precision}", errors, _LOSS_BOUNDS[precision])


def _figures_of(what: str, errors: Sequence[tuple[float, float]], bounds: tuple[float, float]) -> Iterator[Figure]:
    """The largest errors of loss and gradient."""
    for side, values, bound in zip(("loss", "gradient"), zip(*errors, strict=True), bounds, strict=True):
        yield Figure(f"{what}: error of the {side}", _largest(values), "", bound)


def _largest(errors: Sequence[float]) -> float:
    """The largest of some errors, and NaN if one is, which the built-in function may leave out."""
    return float(torch.tensor(errors, dtype=torch.float64).max())


def _errors_of_case(
    setting: Setting, case: loss_cases.LossCase, precision: Precision, memories: Sequence[float]
) -> tuple[float, float]:
    rows = case.rows()
    if precision == "bf16 autocast":
        rows = replace(rows, student=_without_ties(rows.student), teacher=_without_ties(rows.teacher))
    exact = _scored(case.loss, rows, _MEMORIES[-1])
    loss = copy.deepcopy(case.loss).to(setting.device)
    there = rows.to(setting.device, torch.float32)
    found: list[_Result] = []
    for memory in memories:
        with _autocast(setting, precision):
            found.append(_scored(loss, there, memory))
    losses, gradients = (_largest([_error(ours[place], exact[place]) for ours in found]) for place in (0, 1))
    return losses, gradients


def _scored(loss: SpanLoss, rows: loss_cases.LossRows, memory: float) -> _Result:
    """The loss of every span, and the gradient of the hidden states, which are the logits, of their weighted sum."""
    leaf = rows.student.clone().requires_grad_()
    losses = rows.evaluate(loss, leaf, memory=memory).spans["t"].loss
    weights = torch.linspace(0.5, 1.5, len(losses), dtype=losses.dtype, device=losses.device)
    (gradient,) = torch.autograd.grad((weights * losses).sum(), leaf)
    return losses.detach(), gradient


def _without_ties(rows: Tensor) -> Tensor:
    """Numbers that bfloat16 can hold in the order of those of each row, all of them different.

    The losses that sort have no unique gradient where two logits are equal.
    """
    positive = torch.arange(0x3D00, 0x4100, dtype=torch.int16).view(torch.bfloat16).double()  # from 2^-5 to 8
    grid = torch.cat((-positive.flip(0), positive))
    chosen = torch.linspace(0, len(grid) - 1, rows.shape[1]).long()
    assert len(chosen.unique()) == rows.shape[1], "more tokens than numbers"
    return grid[chosen][rows.argsort(-1).argsort(-1)]


# Whole steps -----------------------------------------------------------------------------------------------------


def _steps(setting: Setting) -> Iterator[Figure]:
    memories = _MEMORIES[1:] if setting.is_full else _MEMORIES[1:2]
    with tempfile.TemporaryDirectory() as folder:
        models = _write_models(Path(folder), 64 if setting.is_full else 32)
        exact_module = _module(models, "float64")
        module = _module(models, "float32").to(setting.device)
        for name, kind in LOSSES.items():
            exact = _step(exact_module, kind(), _MEMORIES[-1])
            for precision in get_args(Precision):
                errors: list[tuple[float, float]] = []
                for memory in memories:
                    with _autocast(setting, precision):
                        loss, gradient = _step(module, kind(), memory)
                    of_gradient = (gradient.double().cpu() - exact[1]).norm() / exact[1].norm()
                    errors.append((_error(loss, exact[0]), float(of_gradient)))
                bounds = (_ULD_BOUNDS if kind is ULD else _STEP_BOUNDS)[precision]
                yield from _figures_of(f"step with {name} and TokenKL, {precision}", errors, bounds)


def _write_models(folder: Path, hidden_size: int) -> dict[str, str]:
    makers = {"student": packing_tokenizer, "other": reversing_tokenizer, "same": packing_tokenizer}
    return {
        name: write_model(folder / name, make(), seed=seed, hidden_size=hidden_size)
        for seed, (name, make) in enumerate(makers.items())
    }


def _module(models: dict[str, str], dtype: Literal["float32", "float64"]) -> MultiTeacherDistillModule:
    """A module with a teacher of another tokenizer, whose loss is to be set, and one of the student's."""
    teachers = {
        "other": Teacher(model=models["other"], loss=ULD(), dtype=dtype, alpha=0.7),
        "same": Teacher(model=models["same"], loss=TokenKL(), dtype=dtype, alpha=0.3),
    }
    student = Student(model=models["student"], dtype=dtype)
    module = MultiTeacherDistillModule(student, teachers, ce_weight=0.1)
    module.setup("fit")
    module.configure_model()
    return module.train()


def _step(module: MultiTeacherDistillModule, loss: SpanLoss, memory: float) -> _Result:
    """The loss of a step, and the gradient of all weights of the student."""
    student, teachers = module.vocabularies()
    teacher = replace(module.teachers["other"], loss=loss)
    module.losses["other"] = bind_loss("other", teacher, student, teachers["other"]).to(module.device)
    module.logit_memory = LogitMemory(memory)
    module.zero_grad()
    step: Any = module.training_step(_batch(module).to(module.device), 0)
    step["loss"].backward()
    gradients = [weight.grad.flatten() for weight in module.parameters() if weight.grad is not None]
    return step["loss"].detach(), torch.cat(gradients)


def _batch(module: MultiTeacherDistillModule) -> DistillBatch:
    columns = Windower(*module.vocabularies(), 64)([text[:200] for text in TEXTS[:4]])
    windows = [{key: column[place] for key, column in columns.items()} for place in range(4)]
    return collate(windows, list(module.teachers), module.planners())
