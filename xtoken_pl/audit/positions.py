"""Statistics of the positions at which the byte-prefix KL compares a text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xtoken_pl.data import Windower, collate
from xtoken_pl.prefix_map import build_prefix_map
from xtoken_pl.prefix_map.planner import PrefixPlanner
from xtoken_pl.prefix_map.positions import Positions
from xtoken_pl.prefix_map.prefix_map import PrefixMap
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.ranges import Ints, expand


@dataclass(frozen=True)
class PositionStatistics:
    """Counts of the student's positions in one text.

    Attributes:
        single: Positions at a boundary of both sides where the observed token's own mass is known.
        grouped: Positions at a boundary where only the mass of a group of tokens is known.
        inside: Positions inside a teacher token.
        skipped: Positions in no span, or without any mass.
    """

    single: int
    grouped: int
    inside: int
    skipped: int

    @classmethod
    def from_text(cls, student: CanonicalVocabulary, teacher: CanonicalVocabulary, text: str) -> PositionStatistics:
        """Counts the positions of a whole text, which is not cut into windows."""
        prefix_map = build_prefix_map(student.tokenizer, teacher.tokenizer)
        longest = max(len(side.prefix_ids) + len(side.encode([text])[0]) + 1 for side in (student, teacher))
        columns = Windower(student, {"teacher": teacher}, longest)([text])
        batch = collate([{name: column[0] for name, column in columns.items()}], ["teacher"])
        plan = PrefixPlanner(prefix_map, student, teacher).plan(batch.student, batch.teachers["teacher"])
        sizes = _group_sizes(prefix_map, plan.boundary, batch.student.labels.numpy())
        single, num_inside = int(np.sum(sizes == 1)), plan.inside.count("positions")
        return cls(single, len(sizes) - single, num_inside, len(batch.student.labels) - len(sizes) - num_inside)


def _group_sizes(prefix_map: PrefixMap, positions: Positions, labels: Ints) -> Ints:
    """``[R]`` number of student tokens in the group of the observed one."""
    observed = labels[positions.row.numpy()]
    lead = prefix_map.lead
    sizes = np.bincount(lead[lead >= 0], minlength=prefix_map.num_teacher)[lead[observed]]
    start, length = positions.branch_start.numpy(), positions.branch_length.numpy()
    branch, place = expand(start, start + length)
    position = positions.level_position.numpy()[positions.branch_level.numpy()][branch]
    is_observed = prefix_map.members[place] == observed[position]
    sizes[position[is_observed]] = length[branch[is_observed]]
    return sizes
