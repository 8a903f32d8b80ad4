"""The projection W as data: up to four teacher tokens and weights per student token, and its products with rows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from xtoken_pl.projection.sparse import SparseProduct
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path, read_safetensors

if TYPE_CHECKING:
    from xtoken_pl.tokenization import CanonicalVocabulary

# V_s/V_t vocabulary sizes (student/teacher), E non-zero entries of W

_FORMAT = "xtoken_pl.projection.v1"
_REBUILD = "rebuild it with `python -m xtoken_pl project`"


@dataclass(frozen=True)
class ProjectionCounts:
    """Number of student tokens by the kind of their row in W."""

    exact: int
    multi_token: int
    zero: int


@dataclass(frozen=True)
class Projection:
    """A sparse, row-stochastic matrix W [V_s, V_t].

    Row ``s`` holds at most ``K`` (4) teacher tokens. A row sums to 1, or is zero if the student's token cannot be
    written in at most ``K`` teacher tokens. Unused entries have weight 0 and index 0.

    Attributes:
        indices: ``[V_s, K]`` int64 teacher ids.
        weights: ``[V_s, K]`` float32 weights.
        is_exact: ``[V_s]`` bool, True for rows of pass 1 (equal bytes or equal role).
        num_teacher: Size of the teacher's vocabulary, V_t.
        student_fingerprint: Fingerprint of the student's tokenizer, to which the rows belong.
        teacher_fingerprint: Fingerprint of the teacher's tokenizer, to which the columns belong.
        parameters: Parameters that W was built with (``beta``, ``gamma``, ``max_tokens``, ``top``), saved in the
            file's header.

    Raises:
        UserError: If shapes disagree, a weight is NaN, infinite or negative, an index is outside the teacher's
            vocabulary, or a row sums to neither 0 nor 1.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, projection matrix.
    """

    indices: Tensor
    weights: Tensor
    is_exact: Tensor
    num_teacher: int
    student_fingerprint: str
    teacher_fingerprint: str
    parameters: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.indices.shape != self.weights.shape or self.indices.ndim != 2:
            raise UserError(
                "indices and weights of a projection must both be [V_s, K], "
                f"got {list(self.indices.shape)} and {list(self.weights.shape)}; {_REBUILD}"
            )
        if self.is_exact.shape != self.indices.shape[:1]:
            raise UserError(
                f"is_exact of a projection must be [{len(self.indices)}], got {list(self.is_exact.shape)}; {_REBUILD}"
            )
        if not torch.isfinite(self.weights).all():
            bad = int((~torch.isfinite(self.weights)).any(dim=1).sum())
            raise UserError(f"projection weights must be finite, got NaN or infinity in {bad} rows; {_REBUILD}")
        if (self.weights < 0).any():
            raise UserError(f"projection weights must be >= 0, got {self.weights.min().item():.4g}; {_REBUILD}")
        if self.indices.numel() and (self.indices.min() < 0 or self.indices.max() >= self.num_teacher):
            raise UserError(
                f"projection indices must be in [0, {self.num_teacher}), the teacher's vocabulary, "
                f"got {self.indices.min().item()} to {self.indices.max().item()}; {_REBUILD}"
            )
        sums = self.weights.double().sum(dim=1)
        off = (sums - (sums > 0).double()).abs()
        if self.weights.numel() and off.max() > 1e-4:
            row = int(off.argmax())
            raise UserError(
                f"every row of a projection must sum to 1 or be zero, but row {row} sums to {sums[row]:.6g}; {_REBUILD}"
            )

    @property
    def num_student(self) -> int:
        """Size of the student's vocabulary, V_s."""
        return len(self.indices)

    @property
    def counts(self) -> ProjectionCounts:
        """Number of exact, multi-token and zero rows."""
        exact = int(self.is_exact.sum())
        zero = int((self.weights.sum(dim=1) == 0).sum())
        return ProjectionCounts(exact=exact, multi_token=self.num_student - exact - zero, zero=zero)

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the non-zero entries: student ids ``[E]``, teacher ids ``[E]``, weights ``[E]``."""
        row, column = torch.nonzero(self.weights, as_tuple=True)
        return row, self.indices[row, column], self.weights[row, column]

    def to_teacher(self, student_rows: Tensor) -> Tensor:
        """Applies Wᵀ, ``[..., V_s] -> [..., V_t]``: maps the student's probabilities to the teacher's vocabulary."""
        student_ids, teacher_ids, weights = self.entries()
        return _multiply(student_rows, student_ids, teacher_ids, weights, self.num_student, self.num_teacher)

    def to_student(self, teacher_rows: Tensor) -> Tensor:
        """Applies W, ``[..., V_t] -> [..., V_s]``: the transpose of :meth:`to_teacher`."""
        student_ids, teacher_ids, weights = self.entries()
        return _multiply(teacher_rows, teacher_ids, student_ids, weights, self.num_teacher, self.num_student)

    def check_belongs_to(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> None:
        """Checks that this projection was built for the given tokenizers.

        Raises:
            UserError: If a fingerprint or size differs; the message names the side and both fingerprints.
        """
        for side, vocabulary, fingerprint, size in (
            ("student", student, self.student_fingerprint, self.num_student),
            ("teacher", teacher, self.teacher_fingerprint, self.num_teacher),
        ):
            if fingerprint != vocabulary.fingerprint or size != len(vocabulary):
                raise UserError(
                    f"a projection must belong to the tokenizers that it is used with: its {side} tokenizer has "
                    f"{size} tokens and fingerprint {fingerprint}, but {vocabulary.name!r} has {len(vocabulary)} and "
                    f"{vocabulary.fingerprint}. Rebuild it with `python -m xtoken_pl project`, or leave the path out"
                )

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Writes W, its fingerprints and its parameters as one safetensors file, whole or not at all.

        Raises:
            UserError: If ``path`` exists and ``overwrite`` is False.
        """
        header = {
            "format": _FORMAT,
            "num_teacher": str(self.num_teacher),
            "student_fingerprint": self.student_fingerprint,
            "teacher_fingerprint": self.teacher_fingerprint,
            "parameters": json.dumps(self.parameters),
        }
        tensors = {
            "indices": self.indices.to(torch.int32).contiguous(),
            "weights": self.weights.contiguous(),
            "is_exact": self.is_exact.contiguous(),
        }
        with atomic_path(path, kind="file", overwrite=overwrite) as part:
            save_file(tensors, part, metadata=header)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Projection:
        """Reads and checks a file written by :meth:`save`.

        Raises:
            UserError: If the file does not exist, is not a projection, is damaged, or holds invalid values.
        """
        header, tensors = read_safetensors(
            path,
            framework="pt",
            file_format=_FORMAT,
            names=("indices", "weights", "is_exact"),
            setting="projection",
            verb="project",
        )
        return cls(
            indices=tensors["indices"].long(),
            weights=tensors["weights"],
            is_exact=tensors["is_exact"],
            num_teacher=int(header["num_teacher"]),
            student_fingerprint=header["student_fingerprint"],
            teacher_fingerprint=header["teacher_fingerprint"],
            parameters=json.loads(header["parameters"]),
        )


def _multiply(
    rows: Tensor, source: Tensor, target: Tensor, weights: Tensor, num_sources: int, num_targets: int
) -> Tensor:
    if rows.shape[-1] != num_sources:
        raise UserError(f"rows must have {num_sources} columns to be projected, got {rows.shape[-1]}")
    product = SparseProduct(source, target, num_sources, num_targets, weights).to(rows.device)
    return cast(Tensor, product(rows, weights.to(rows.device)))  # passed again for their gradient
