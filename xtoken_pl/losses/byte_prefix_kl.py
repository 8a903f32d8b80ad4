r"""Byte-prefix KL: the teacher's pass over the text divides the student's vocabulary into groups of known mass."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from xtoken_pl.batch import TeacherBatch, TokenBatch
from xtoken_pl.losses.base import SpanBlock, SpanLoss, SpanScores
from xtoken_pl.losses.group_kl import group_kl
from xtoken_pl.losses.prefix_mass import PrefixMass
from xtoken_pl.prefix_map import PrefixMap, PrefixPlan, PrefixPlanner, build_prefix_map
from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary


class BytePrefixKL(SpanLoss):
    r"""KL(teacher || student) over groups of student tokens whose mass the teacher's pass determines.

    Args:
        prefix_map: A file of ``python -m xtoken_pl prefix_map``; None compiles the map from the two tokenizers.
    """

    unwritten: Tensor  # student tokens that the teacher cannot write

    def __init__(self, *, prefix_map: str | None = None) -> None:
        super().__init__()
        self.prefix_map = prefix_map
        self._planner: PrefixPlanner | None = None

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        """Loads or compiles the map.

        Raises:
            ValueError: If the map belongs to other tokenizers, or the teacher can write none of the student's tokens.
        """
        if self.prefix_map is None:
            prefix_map = build_prefix_map(student.tokenizer, teacher.tokenizer)
        else:
            prefix_map = PrefixMap.load(self.prefix_map)
            prefix_map.check_belongs_to(student, teacher)
        if not prefix_map.leads.any():
            raise ValueError(f"BytePrefixKL needs student tokens that {teacher.name!r} can write, got none; use ULD")
        self._planner = PrefixPlanner(prefix_map, student, teacher)
        self.mass = PrefixMass(prefix_map)
        unwritten = torch.from_numpy(prefix_map.lead < 0).nonzero().squeeze(1)
        self.register_buffer("unwritten", unwritten, persistent=False)

    def plan(self, student: TokenBatch, teacher: TeacherBatch) -> PrefixPlan:
        assert self._planner is not None, "bind comes first"
        return self._planner.plan(student, teacher)

    def forward(self, block: SpanBlock) -> SpanScores:
        plan, student = cast(PrefixPlan, block.plan), block.student
        groups = (
            self.mass.at_boundaries(plan.boundary, block.teacher),
            self.mass.inside_tokens(plan.inside, block.teacher),
        )
        row_nats = group_kl(student.log_probs, *groups)  # [P]
        first = student.first_rows()
        unmapped_mass = first.detach().index_select(1, self.unwritten).exp().sum(-1).clamp(0, 1)
        return SpanScores(student.sum_by_span(row_nats), unmapped_mass, self._agreement(block))

    @torch.no_grad()
    def _agreement(self, block: SpanBlock) -> Tensor | None:
        """1 where the most probable tokens of both sides belong to the same group."""
        if self.training:
            return None
        ours = self.mass.student_column[block.student.first_rows().argmax(-1)]
        return (ours == self.mass.teacher_column[block.teacher.first_rows().argmax(-1)]).float()
