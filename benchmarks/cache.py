"""What a cache of a teacher costs, and how far it moves loss and gradient: ``python -m benchmarks.cache``.

The quickstart's models: SmolLM2-135M (49,152 tokens, pretrained) teaches a small Llama (8,192 tokens). P-KL reads the
rows of span starts, the byte-prefix KL reads every row. The student is random, or the export of a run whose folder the
environment's ``XTOKEN_PL_STUDENT`` names.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.measure import Figure, run
from xtoken_pl import (
    BytePrefixKL,
    DistillDataModule,
    MultiTeacherDistillModule,
    ProjectionKL,
    SpanLoss,
    Student,
    Teacher,
    TextSource,
)
from xtoken_pl.cli.cache import CacheOptions, build_cache
from xtoken_pl.cli.prepare import prepare
from xtoken_pl.losses.row_content import RowKind
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.teachers.cache.manifest import TopK

#: k and the bits of a log-probability.
_FORMATS: tuple[tuple[TopK, int], ...] = (
    (16, 16),
    (64, 16),
    (64, 32),
    (256, 16),
    (1024, 16),
    ("all", 32),
)
_LOSSES: dict[RowKind, Callable[[], SpanLoss]] = {"span_starts": ProjectionKL, "all": BytePrefixKL}
#: Largest number of bytes per student token with the options' defaults.
_TARGETS: dict[RowKind, float] = {"span_starts": 300, "all": 350}
_NUM_TEXTS, _LENGTH = 4, 256
#: An export of the quickstart's run; without it the student is random.
_EXPORT = os.environ.get("XTOKEN_PL_STUDENT")


def figures() -> Iterator[Figure]:
    """Bytes per student token; relative change of the mean loss, and of its gradient by the student's hidden states."""
    prepare()
    for rows in _LOSSES:
        live_loss, live_gradient = _evaluate(rows, None)
        for top_k, precision in _FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                options = CacheOptions(teacher="t", output=folder, top_k=top_k, precision=precision)
                manifest = build_cache(_module(rows, None), _data(), options)
                assert manifest.identity.rows == rows
                loss, gradient = _evaluate(rows, folder)
            entries = manifest.entries
            size = sum(entry.num_bytes for entry in entries) / sum(entry.num_tokens for entry in entries)
            moved = (gradient - live_gradient).norm() / live_gradient.norm()
            kind = f"cache of {'span starts, P-KL' if rows == 'span_starts' else 'every row, byte-prefix KL'}"
            label = f"{kind}, k = {top_k if top_k == 'all' else format(top_k, ',')}, {precision} bits"
            note = f"{loss:.4f} against {live_loss:.4f} nats per span"
            target = _TARGETS[rows] if (top_k, precision) == (64, 16) else None
            yield Figure(f"{label}: bytes per student token", size, "bytes", target)
            yield Figure(f"{label}: change of the loss", 100 * (loss / live_loss - 1), "%", note=note)
            yield Figure(f"{label}: change of the gradient", 100 * moved.item(), "%")


def _evaluate(rows: RowKind, cache: str | None) -> tuple[float, Tensor]:
    """The mean loss of all spans, and its gradient by the hidden states ``[N, H]`` of all student rows."""
    torch.manual_seed(0)
    module, data = _module(rows, cache), _data()
    module.connect(data)
    data.setup("fit")
    module.configure_model()
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    for batch in data.train_dataloader():
        with torch.no_grad():
            student = module.student_rows(batch.student)
        student.hidden.requires_grad_()
        tasks = {"t": module.teacher_task("t", batch.teachers["t"])}
        loss = evaluate_rows(student, tasks, batch.cuts, module.logit_memory).spans["t"].loss
        gradients += torch.autograd.grad(loss.sum(), student.hidden)
        losses.append(loss.detach())
    return torch.cat(losses).mean().item(), torch.cat(gradients)


def _module(rows: RowKind, cache: str | None) -> MultiTeacherDistillModule:
    student = Student(model=_EXPORT) if _EXPORT else Student(model="quickstart/student", weights="random")
    teacher = Teacher(model="quickstart/teacher-smollm2", loss=_LOSSES[rows](), cache=cache)
    return MultiTeacherDistillModule(student, {"t": teacher})


def _data() -> DistillDataModule:
    texts = TextSource(path="quickstart/corpus/val.jsonl", split=f"train[:{_NUM_TEXTS}]")
    return DistillDataModule(texts, sequence_length=_LENGTH, batch_size=4, num_workers=0)


if __name__ == "__main__":
    run(figures)
