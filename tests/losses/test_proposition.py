"""Why a partition fails where the teacher splits what the student packs: Proposition 1 on real vocabularies."""

from __future__ import annotations

import pytest
import torch
from span_rows import block_of
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl import GOLD, CanonicalVocabulary, MatchedRowLoss, ProjectionKL, build_projection


@pytest.fixture(scope="module")
def vocabularies(
    llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast
) -> tuple[CanonicalVocabulary, CanonicalVocabulary]:
    return CanonicalVocabulary.from_tokenizer(llama3), CanonicalVocabulary.from_tokenizer(qwen3)


@pytest.fixture(scope="module")
def rows(
    vocabularies: tuple[CanonicalVocabulary, CanonicalVocabulary], qwen3: PreTrainedTokenizerFast
) -> tuple[Tensor, Tensor]:
    """A student without an opinion, and a teacher that expects a number that begins with 1."""
    student, teacher = (
        torch.randn(1, len(vocabulary), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed, vocabulary in enumerate(vocabularies)
    )
    teacher[0, qwen3.convert_tokens_to_ids("1")] = 15.0
    return student, teacher


def gradient(loss: MatchedRowLoss, student: Tensor, teacher: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    labels = torch.tensor([0])
    (found,) = torch.autograd.grad(
        loss(block_of(student, teacher, (labels, labels), [(0, 1, 0, 1)])).loss.sum(), student
    )
    return found[0]


def numerals(student: CanonicalVocabulary) -> list[int]:
    """The student's tokens of two and three digits that begin with 1."""
    tokens = enumerate(student.token_bytes)
    return [ident for ident, text in tokens if text.isdigit() and len(text) in (2, 3) and text.startswith(b"1")]


def test_golds_common_term_pushes_every_uncommon_token_down(
    vocabularies: tuple[CanonicalVocabulary, CanonicalVocabulary], rows: tuple[Tensor, Tensor]
) -> None:
    """The gradient on an uncommon logit j is p_S[j] times the teacher's mass on C: never negative."""
    loss = GOLD(uld_weight=0.0)
    loss.bind(*vocabularies, None)
    found = gradient(loss, *rows)[loss.student_rest]
    student, teacher = (side.softmax(-1)[0] for side in rows)
    expected = student[loss.student_rest] * teacher[loss.teacher_common].sum()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-16)
    assert (found >= 0).all()
    assert set(numerals(vocabularies[0])) <= set(loss.student_rest.tolist())


def test_projection_kl_raises_the_numerals_that_begin_with_the_teachers_digit(
    vocabularies: tuple[CanonicalVocabulary, CanonicalVocabulary],
    rows: tuple[Tensor, Tensor],
    llama3: PreTrainedTokenizerFast,
    qwen3: PreTrainedTokenizerFast,
) -> None:
    loss = ProjectionKL()
    loss.bind(*vocabularies, build_projection(llama3, qwen3))
    found = gradient(loss, *rows)
    assert len(numerals(vocabularies[0])) == 110
    assert (found[numerals(vocabularies[0])] < 0).all()
