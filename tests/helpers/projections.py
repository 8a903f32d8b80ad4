"""Projections with their vocabularies, and small ones given by their rows."""

import torch
from transformers import PreTrainedTokenizerFast

from xtoken_pl.projection import Projection, ProjectionParameters, build_projection
from xtoken_pl.tokenization import CanonicalVocabulary

# V_s/V_t vocabulary sizes (student/teacher)


class Built:
    """A projection with its two vocabularies, whose rows can be read by the bytes of the tokens."""

    def __init__(self, student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, **parameters: float) -> None:
        self.projection = build_projection(student, teacher, ProjectionParameters(**parameters))
        self.student = CanonicalVocabulary.from_tokenizer(student)
        self.teacher = CanonicalVocabulary.from_tokenizer(teacher)
        self.ids = {text: ident for ident, text in enumerate(self.student.token_bytes) if text}

    def rows(self) -> dict[int, dict[int, float]]:
        """{student id: {teacher id: weight}} without zeros, the form of the reference."""
        listed = zip(self.projection.indices.tolist(), self.projection.weights.tolist(), strict=True)
        rows = ({t: w for t, w in zip(*places, strict=True) if w} for places in listed)
        return {s: row for s, row in enumerate(rows) if row}

    def row(self, text: bytes) -> dict[bytes, float]:
        indices, weights = self.projection.indices[self.ids[text]], self.projection.weights[self.ids[text]]
        named = zip(indices.tolist(), weights.tolist(), strict=True)
        return {self.teacher.token_bytes[t]: w for t, w in named if w}

    def num_exact(self, texts: list[bytes]) -> int:
        assert {*texts} <= self.ids.keys(), "the student must have all these tokens"
        return sum(bool(self.projection.is_exact[self.ids[text]]) for text in texts)


def sparse(rows: list[dict[int, float]], num_teacher: int) -> Projection:
    """A small projection with the given rows."""
    width = max(1, *map(len, rows))
    padded = torch.tensor([[*row.items(), *[(0, 0.0)] * (width - len(row))] for row in rows], dtype=torch.float64)
    is_exact = torch.tensor([[*row.values()] == [1.0] for row in rows])
    return Projection(padded[..., 0].long(), padded[..., 1].float(), is_exact, num_teacher, "s", "t", {"beta": 0.9})
