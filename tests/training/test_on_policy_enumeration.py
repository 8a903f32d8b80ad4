"""Languages small enough to write every rollout: gradients of all of them are that of the expected loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from plain_divergences import grouped_divergence
from reference_byte_prefix import BytePrefixReference
from reference_losses import projection_divergence, token_divergence
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from written_steps import prompt_of, tiny_tokenizer, write_double, written_step

from xtoken_pl import (
    BytePrefixKL,
    MultiTeacherDistillModule,
    ProjectionKL,
    SpanLoss,
    Student,
    Teacher,
    TokenKL,
    build_projection,
)
from xtoken_pl.rollouts import Rollouts

PROMPT = "ba"
MAX_NEW_TOKENS = 3
STUDENT = tiny_tokenizer("ab", ("a", "b"))
OTHER = tiny_tokenizer("ba", ("b", "a"), ("ba", "b"))


def rollouts(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[int, ...]]:
    """Every text that the student can write, as its token ids."""
    end = tokenizer.eos_token_id
    others = [token for token in range(len(tokenizer)) if token != end]
    for length in range(MAX_NEW_TOKENS):
        yield from ((*ids, end) for ids in product(others, repeat=length))
    yield from product(others, repeat=MAX_NEW_TOKENS)


def lengths(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[int]:
    """Letters of every token; the end of a text is one symbol."""
    return [1 if token == tokenizer.eos_token_id else len(tokenizer.decode([token])) for token in ids]


def ends(sizes: list[int]) -> list[int]:
    return [sum(sizes[:count]) for count in range(len(sizes) + 1)]


def log_probs(model: PreTrainedModel, prompt: list[int], ids: list[int]) -> Tensor:
    """``[n, V]``, the rows that predict ``ids`` behind the prompt."""
    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)


def spans_of(student: list[int], teacher: list[int]) -> list[tuple[int, int, int, int]]:
    """Spans between the ends that both sides share, of tokens of these lengths."""
    ours, theirs = ends(student), ends(teacher)
    shared = [end for end in ours if end in theirs]
    return [
        (ours.index(low), ours.index(high), theirs.index(low), theirs.index(high)) for low, high in pairwise(shared)
    ]


class Enumeration:
    """The loss of every rollout, computed without the package's losses."""

    def __init__(
        self, loss: SpanLoss, student: PreTrainedModel, teacher: PreTrainedModel, other: PreTrainedTokenizerFast
    ) -> None:
        self.loss, self.student, self.teacher, self.other = loss, student, teacher, other

    def rows(self, ids: tuple[int, ...]) -> Tensor:
        return log_probs(self.student, STUDENT.encode(PROMPT), list(ids))

    def probability(self, ids: tuple[int, ...]) -> float:
        return float(self.rows(ids).detach().gather(1, torch.tensor(ids)[:, None]).sum().exp())

    def span_losses(self, ids: tuple[int, ...]) -> tuple[Tensor, int]:
        """Sum of the losses of all spans, and their number."""
        theirs = self.other.encode(STUDENT.decode(ids, skip_special_tokens=True), add_special_tokens=False)
        theirs += [self.other.eos_token_id] * (ids[-1] == STUDENT.eos_token_id)
        spans = spans_of(lengths(STUDENT, list(ids)), lengths(self.other, theirs))
        rows, labels = self.rows(ids), torch.tensor(ids)
        with torch.no_grad():
            teacher = log_probs(self.teacher, self.other.encode(PROMPT), theirs)
        if isinstance(self.loss, BytePrefixKL):
            return self._byte_prefix(list(ids), theirs, rows, teacher), len(spans)
        sides = (rows, teacher, labels, torch.tensor(theirs), spans)
        if isinstance(self.loss, TokenKL):
            return token_divergence(*sides, kind=self.loss.options["divergence"]).sum(), len(spans)
        projection = build_projection(STUDENT, self.other)
        dense = projection.to_teacher(torch.eye(len(STUDENT), dtype=torch.float64))
        kind = self.loss.options["divergence"]
        return projection_divergence(*sides, dense, kind=kind).sum(), len(spans)

    def _byte_prefix(self, ids: list[int], theirs: list[int], rows: Tensor, teacher: Tensor) -> Tensor:
        texts = [
            [b"" if token == side.eos_token_id else side.decode([token]).encode() for token in range(len(side))]
            for side in (STUDENT, self.other)
        ]
        reference = BytePrefixReference(
            *texts,
            lambda text: tuple(self.other.encode(text.decode())),
            {STUDENT.eos_token_id: self.other.eos_token_id},
        )
        total = torch.zeros((), dtype=torch.float64)
        probs, last = teacher.exp().tolist(), PROMPT[-1:].encode()
        for position in range(len(ids)):
            groups = reference.groups(position, ids, theirs, probs, behind=last)
            total = total + grouped_divergence(groups, rows[position].exp(), self.loss.divergence)
        return total


LOSSES: list[SpanLoss] = [
    *(BytePrefixKL(divergence=kind) for kind in ("forward", "reverse", "jensen_shannon")),
    *(ProjectionKL(divergence=kind) for kind in ("forward", "reverse")),
    *(TokenKL(divergence=kind) for kind in ("forward", "reverse", "jensen_shannon")),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{type(loss).__name__}({loss.extra_repr()})")
def test_gradients_of_all_rollouts_are_the_gradient_of_the_expected_loss(loss: SpanLoss, tmp_path: Path) -> None:
    other = STUDENT if isinstance(loss, TokenKL) else OTHER
    student = Student(model=write_double(tmp_path / "student", STUDENT, seed=1), dtype="float64")
    teacher = Teacher(model=write_double(tmp_path / "teacher", other, seed=2), dtype="float64", loss=loss)
    module = MultiTeacherDistillModule(student, {"judge": teacher}, rollouts=Rollouts(max_new_tokens=MAX_NEW_TOKENS))
    module.setup("fit")
    module.configure_model()
    module.train()
    model = module.student
    enumeration = Enumeration(loss, model, module.loaded_teachers["judge"].model, other)

    # What the module computes for each rollout.
    found = [torch.zeros_like(parameter) for parameter in model.parameters()]
    total = 0.0
    for ids in rollouts(STUDENT):
        probability, (_, num_spans) = enumeration.probability(ids), enumeration.span_losses(ids)
        written_step(module, [ids], [prompt_of(module, PROMPT)])
        total += probability
        for sum_, parameter in zip(found, model.parameters(), strict=True):
            sum_ += probability * num_spans * parameter.grad
    assert total == pytest.approx(1, abs=1e-12)

    module.zero_grad()
    sum(enumeration.probability(ids) * enumeration.span_losses(ids)[0] for ids in rollouts(STUDENT)).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
