"""BPM and ESCD bound to two tokenizers, and the worked example of ESCD's paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from prefix_pairs import TEXT, Pair
from split_tokenizers import STUDENT_TOKENS, TEACHER_TOKENS, split_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl import BPM, ESCD, CanonicalVocabulary


def marginal_pair(
    kind: type[BPM | ESCD],
    student: PreTrainedTokenizerFast,
    teacher: PreTrainedTokenizerFast,
    text: str = TEXT,
    *,
    masked: Sequence[int] = (),
    **options: Any,
) -> Pair:
    """The loss bound to two tokenizers, and one window of a text."""
    loss: Any = kind(**options)
    loss.bind(*(CanonicalVocabulary.from_tokenizer(tokenizer) for tokenizer in (student, teacher)), None)
    return Pair.of(student, teacher, text, masked=masked, loss=loss)


def worked_example(kind: type[BPM | ESCD], **after: float) -> list[float]:
    """The loss of the spans ``Bread`` and ``Cat`` of the paper's example, whose student rows are these.

    Args:
        after: The student's probabilities of ead, eads and eak after Br.
    """
    student, teacher = split_tokenizer(["x", *STUDENT_TOKENS]), split_tokenizer(["x", *TEACHER_TOKENS])
    pair = marginal_pair(kind, student, teacher, "xBreadCat")  # nothing predicts the first token
    first = {"Br": 0.5, "Cat": 0.2}
    rows = [_row(pair.student, probs) for probs in (first, after, first, {})]
    teacher_rows = [_row(pair.teacher, probs) for probs in (TEACHER_TOKENS, TEACHER_TOKENS, {})]
    assert [pair.student.token_bytes[s] for s in pair.batch.student.labels[:3]] == [b"Br", b"ead", b"Cat"]
    loss: list[float] = pair.loss(pair.block(torch.stack(rows), torch.stack(teacher_rows))).loss.tolist()
    return loss[:2]


def _row(vocabulary: CanonicalVocabulary, probs: dict[str, float]) -> Tensor:
    """Log-probabilities of some tokens; all others have next to none."""
    row = torch.full((len(vocabulary),), 1e-300, dtype=torch.float64)
    for text, prob in probs.items():
        row[vocabulary.token_bytes.index(text.encode())] = prob
    return row.log()
