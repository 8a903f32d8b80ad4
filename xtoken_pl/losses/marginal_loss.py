"""Base of the losses that sum a teacher's row over byte prefixes: BPM and ESCD."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from xtoken_pl.batch import Planner
from xtoken_pl.losses.base import SpanBlock, SpanScores
from xtoken_pl.losses.byte_prefix_marginal import BytePrefixMarginal
from xtoken_pl.losses.divergence import Divergence
from xtoken_pl.losses.teacher_tokens import TopKLoss
from xtoken_pl.prefix_map import MarginalPlanner, PrefixMap, prefix_map_for
from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_choice
from xtoken_pl.utilities.errors import UserError


class MarginalLoss(TopKLoss):
    """Base of the losses whose boundary term is that of :class:`xtoken_pl.BPM`.

    Args:
        prefix_map: File written by ``python -m xtoken_pl prefix_map``; None compiles the map from the two tokenizers.
        divergence: Divergence of the two sides; ``forward`` is KL(teacher || student).
        teacher_top_k: Number of tokens kept in each teacher row; see :class:`xtoken_pl.BPM`.

    Raises:
        UserError: If ``teacher_top_k`` is not an integer >= 1.
    """

    #: Bound of the bytes of a bound loss per token of both vocabularies.
    bytes_per_token: ClassVar[int] = 16 * torch.int64.itemsize

    def __init__(
        self, *, prefix_map: str | None = None, divergence: Divergence = "forward", teacher_top_k: int | None = None
    ) -> None:
        super().__init__(teacher_top_k=teacher_top_k)
        self.prefix_map = prefix_map
        self.divergence: Divergence = check_choice("divergence", divergence, Divergence)
        self._planner: MarginalPlanner | None = None
        self._summary = ""

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        """Loads or compiles the map.

        Raises:
            UserError: If the map belongs to other tokenizers, or no teacher token begins with a student token.
        """
        prefix_map = prefix_map_for(self.prefix_map, student, teacher)
        self.mass = BytePrefixMarginal(prefix_map, student, teacher, all_positive=self.divergence != "forward")
        if not self.mass.num_heirs:
            raise UserError(
                f"{type(self).__name__} needs tokens of {teacher.name!r} that begin with a token of {student.name!r}, "
                "got none; use ULD"
            )
        self._planner = self.make_planner(prefix_map, student, teacher)
        self._summary = f"{self.mass.num_heirs:,} student tokens that teacher tokens count for"

    def make_planner(
        self, prefix_map: PrefixMap, student: CanonicalVocabulary, teacher: CanonicalVocabulary
    ) -> MarginalPlanner:
        """Makes the planner of a loss whose masses are there."""
        return MarginalPlanner(prefix_map, student, teacher, self.mass.own_column.numpy() >= 0)

    def extra_repr(self) -> str:
        kept = [] if self.teacher_top_k is None else [f"teacher_top_k={self.teacher_top_k}"]
        return ", ".join([f"divergence={self.divergence}", *kept, *filter(None, [self._summary])])

    @property
    def planner(self) -> Planner:
        assert self._planner is not None, "bind comes first"
        return self._planner.plan

    def state_bytes(self, student_size: int, teacher_size: int, *, learned: bool = False) -> int:
        """Upper bound for the columns of both sides, their sums, and the bytes of teacher tokens."""
        return self.bytes_per_token * (student_size + teacher_size)

    def scores(self, block: SpanBlock, row_nats: Tensor) -> SpanScores:
        """Adds up the nats of student rows, ``[P]``, by span."""
        first = block.student.first_rows().detach()
        unmapped_mass = first.index_select(1, self.mass.rest).exp().sum(-1).clamp(0, 1)
        return SpanScores(block.student.sum_by_span(row_nats), unmapped_mass, self._agreement(block))

    @torch.no_grad()
    def _agreement(self, block: SpanBlock) -> Tensor | None:
        """1 where the teacher's most probable token counts for the student's."""
        if self.training:
            return None
        ours = self.mass.own_column[block.student.first_rows().argmax(-1)]
        theirs = self.mass.teacher_column[block.teacher.first_rows().argmax(-1)]
        return ((ours == theirs) & (ours >= 0)).float()
