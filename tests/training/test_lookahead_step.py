"""The byte-prefix KL with lookahead in a training step: the teacher reads tokens that the text does not have."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from module_steps import MakeModule, step_of
from torch import Tensor

from xtoken_pl import BytePrefixKL, MultiTeacherDistillModule, Teacher
from xtoken_pl.batch import DistillBatch, TeacherBatch
from xtoken_pl.data import Windower, collate
from xtoken_pl.losses.base import SideRows, SpanBlock
from xtoken_pl.models import hidden_states
from xtoken_pl.prefix_map import PrefixPlan

TEXT = "12 + 345 = 357, 77 of 1986 and 130 more: " * 6
SHARE = 0.004  # the models are random, so that no probability is large


def module_of(make: MakeModule, folder: str, lookahead: float | None = SHARE, **options: Any) -> Any:
    loss = BytePrefixKL(lookahead=lookahead)
    return make(teachers={"split": Teacher(model=folder, loss=loss, temperature=2.0)}, **options)


def batch_of(module: MultiTeacherDistillModule) -> DistillBatch:
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([TEXT, TEXT[7:60]])
    rows = [{key: column[index] for key, column in columns.items()} for index in (0, 1, -1)]
    return collate(rows, list(module.teachers), module.planners())


class TextReader:
    """Reads every token in a text of its own."""

    def __init__(self, module: MultiTeacherDistillModule, view: TeacherBatch) -> None:
        self.teacher, self.labels = module.loaded_teachers["split"], view.tokens.labels
        self.vocabulary_size = self.teacher.head.vocabulary_size
        length = view.tokens.input_ids.shape[1]
        rows = view.tokens.rows.tolist()
        self.texts = [view.tokens.input_ids[row // length, : row % length + 1].tolist() for row in rows]

    def append(self, behind: Tensor, tokens: Tensor) -> Tensor:
        first = len(self.texts)
        self.texts += [[*self.texts[row], token] for row, token in zip(behind.tolist(), tokens.tolist(), strict=True)]
        return torch.arange(first, len(self.texts))

    @torch.no_grad()
    def log_probs(self, rows: Tensor) -> Tensor:
        found = []
        for row in rows.tolist():
            ids = torch.tensor([self.texts[row]])
            states = hidden_states(self.teacher.model, ids, torch.ones_like(ids))
            found.append(self.teacher.head.log_probs(states[0, -1:], 2.0))
        return torch.cat(found)


def test_a_step_has_the_loss_of_a_teacher_that_reads_every_token_in_a_text_of_its_own(
    make: MakeModule, teacher_folder: str
) -> None:
    module = module_of(make, teacher_folder)
    batch = batch_of(module)
    found = module.score(batch).spans["split"].loss
    view, loss = batch.teachers["split"], cast(BytePrefixKL, module.losses["split"])
    reader = TextReader(module, view)
    plan = cast(PrefixPlan, loss.look_ahead(cast(PrefixPlan, view.plan), reader))
    assert plan.boundary.count("starts") > 5
    student = module.student_rows(batch.student)
    log_probs = student.head.log_probs(student.hidden, 2.0)
    spans = view.spans
    block = SpanBlock(
        SideRows(log_probs, batch.student.labels, spans.student_first, spans.student_length, spans.student_span),
        SideRows(
            reader.log_probs(torch.arange(len(reader.labels))),
            reader.labels,
            spans.teacher_first,
            spans.teacher_length,
            spans.teacher_span,
        ),
        plan,
    )
    torch.testing.assert_close(found, loss(block).loss * 4, atol=1e-4, rtol=1e-4)
    without = module_of(make, teacher_folder, None)
    assert not torch.allclose(found, without.score(batch).spans["split"].loss, atol=1e-4)


def test_blocks_of_few_rows_have_the_same_losses_and_gradients(make: MakeModule, teacher_folder: str) -> None:
    results = []
    for memory in (0.5, 1e-6):
        module = module_of(make, teacher_folder, logits_memory=memory)
        step = step_of(module, batch_of(module))
        step["loss"].backward()
        results.append((step["kd"], *(parameter.grad for parameter in module.student.parameters())))
    for whole, cut in zip(*results, strict=True):
        torch.testing.assert_close(whole, cut, atol=1e-5, rtol=1e-4)


def test_what_lookahead_cannot_have_is_refused(make: MakeModule, teacher_folder: str) -> None:
    module = module_of(make, teacher_folder, ready=False)
    module.setup("fit")
    module.separates_documents = True
    with pytest.raises(ValueError, match=r"lookahead \(teacher 'split'\) reads windows of one document"):
        module.configure_model()
    with pytest.raises(ValueError, match=r"lookahead must be between 0 and 1, got 1\.5"):
        BytePrefixKL(lookahead=1.5)
    with pytest.raises(ValueError, match="lookahead_tokens must be"):
        BytePrefixKL(lookahead=0.5, lookahead_tokens=0)
    with pytest.raises(ValueError, match="whole rows of the teacher, got teacher_top_k=8"):
        BytePrefixKL(lookahead=0.5, teacher_top_k=8)
