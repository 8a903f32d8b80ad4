"""A training step from the models' own logits, window by window, with losses in loops over tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import reference_losses as reference
import torch
from fake_vocabularies import dense
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from xtoken_pl import ULD, MultiTeacherDistillModule, ProjectionKL, TokenKL, build_projection
from xtoken_pl.batch import teacher_columns
from xtoken_pl.losses.partitioned import PartitionedLoss


def slow_step(
    module: MultiTeacherDistillModule,
    windows: Sequence[dict[str, Any]],
    temperature: float,
    running: Callable[[], AbstractContextManager[Any]] = nullcontext,
    batches: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Window by window, the models' own logits, loops over tokens: nothing of the package but windows, W and C.

    Args:
        module: The module.
        windows: The windows of the step.
        temperature: Of the teacher ``other``.
        running: Context in which the models run.
        batches: Windows that the student reads as one padded batch; by default each window is read alone.
    """
    size = len(module.student_vocabulary)
    models = {
        name: AutoModelForCausalLM.from_pretrained(teacher.model, dtype=module.student.dtype)
        for name, teacher in module.teachers.items()
    }
    nats: list[Tensor] = []
    kd: dict[str, list[Tensor]] = {"other": [], "same": []}
    sequences = [torch.as_tensor(np.asarray(window["student_ids"])) for window in windows]
    with running():
        students = _logits(module.student, sequences, batches or [[i] for i in range(len(windows))])
    for window, ids, student in zip(windows, sequences, students, strict=True):
        logits = student[:-1, :size]
        nats.append(reference.cross_entropy(logits.log_softmax(-1), ids[1:]))
        for name, losses in kd.items():
            ids_column, spans_column = teacher_columns(name)
            teacher_ids = torch.as_tensor(np.asarray(window[ids_column]))
            with torch.no_grad(), running():
                teacher = models[name](teacher_ids[None]).logits[0, :-1]
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


def _logits(model: Any, sequences: Sequence[Tensor], batches: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits ``[T, V]`` of each sequence."""
    found: dict[int, Tensor] = {}
    for batch in batches:
        rows = [sequences[i] for i in batch]
        mask = pad_sequence([torch.ones_like(ids) for ids in rows], batch_first=True)
        logits = model(pad_sequence(rows, batch_first=True), attention_mask=mask).logits
        found |= {i: row[: len(ids)] for i, row, ids in zip(batch, logits, rows, strict=True)}
    return [found[i] for i in range(len(sequences))]


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
