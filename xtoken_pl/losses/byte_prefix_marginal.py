"""Sums a teacher's probabilities over byte prefixes: every teacher token counts for one student token."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xtoken_pl.losses.base import SideRows
from xtoken_pl.losses.group_divergence import ColumnSums, Groups
from xtoken_pl.losses.group_sums import GroupMasses, GroupSums
from xtoken_pl.losses.prefix_mass import LEAST_NATS
from xtoken_pl.losses.teacher_tokens import KeptTokens
from xtoken_pl.prefix_map import MarginalPositions, PrefixMap, byte_classes
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.ranges import Ints, expand_ranges

# R positions, K paths, C columns, V_s/V_t vocabulary sizes (student/teacher)


class BytePrefixMarginal(GroupMasses):
    r"""Masses that a teacher's row gives to student tokens by the map :math:`\varphi`; see :class:`xtoken_pl.BPM`.

    Args:
        prefix_map: Prefix map of the pair.
        student, teacher: Vocabularies of the pair.
        all_positive: Whether a group that the teacher can reach has a mass above zero even if it underflows, for a
            divergence that reads its logarithm.
    """

    student_column: Tensor  # [V_s] column of each student token at a boundary, -1 for none
    teacher_column: Tensor  # [V_t] the same of a teacher token's mass
    own_column: Tensor  # [V_s] the same without the column of all the rest
    rest: Tensor  # student tokens without a column of their own
    byte_class: Tensor  # [V_s] number of the tokens of equal bytes
    longest_class: Tensor  # that of the longest student token, by byte of every teacher token
    order: Tensor  # teacher tokens that have bytes, sorted by them
    offsets: Tensor  # [V_t + 1]

    def __init__(
        self,
        prefix_map: PrefixMap,
        student: CanonicalVocabulary,
        teacher: CanonicalVocabulary,
        *,
        all_positive: bool = False,
    ) -> None:
        super().__init__(all_positive=all_positive)
        byte_class = byte_classes(student)
        heir = _heirs(prefix_map, teacher)
        image = np.unique(byte_class[heir[heir >= 0]])
        column_of_class = np.full(byte_class.max() + 1, -1)
        column_of_class[image] = np.arange(len(image))
        own_column = column_of_class[byte_class]
        # The rest is a group only if both sides have something in it.
        has_rest = bool((teacher.exists & (heir < 0)).any() and (student.exists & (own_column < 0)).any())
        rest = len(image) if has_rest else -1
        student_column = torch.from_numpy(np.where(own_column >= 0, own_column, rest))
        teacher_column = torch.from_numpy(np.where(heir >= 0, own_column[heir], rest))
        self.num_classes = len(column_of_class)
        self.num_heirs = len(image)
        self.of_student, self.of_teacher = ColumnSums(student_column), ColumnSums(teacher_column)
        self.of_classes = None if self.num_classes == len(byte_class) else ColumnSums(torch.from_numpy(byte_class))
        buffers = {
            "student_column": student_column,
            "teacher_column": teacher_column,
            "own_column": torch.from_numpy(own_column),
            "rest": torch.from_numpy(np.flatnonzero(own_column < 0)),
            "byte_class": torch.from_numpy(byte_class),
            "longest_class": torch.from_numpy(np.where(prefix_map.longest >= 0, byte_class[prefix_map.longest], -1)),
            "order": torch.from_numpy(prefix_map.order),
            "offsets": torch.from_numpy(prefix_map.offsets),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def at_boundaries(self, positions: MarginalPositions, teacher: SideRows, kept: KeptTokens | None = None) -> Groups:
        """Columns are the byte classes that some teacher token counts for, and all the rest as one.

        Args:
            positions: Positions at a boundary of both sides.
            teacher: Rows of the teacher.
            kept: Tokens that are kept of each row; groups that none of them reaches are merged. None for all.
        """
        probs = teacher.log_probs.index_select(0, positions.teacher).exp_()  # [R, V_t]
        stays, moves = self._paths(positions, teacher)
        everyone = torch.arange(len(probs), device=probs.device)
        observed = teacher.labels[positions.teacher]
        probs[everyone, observed] *= stays
        sums = GroupSums(
            self.of_teacher(self._positive(probs)), positions.count("branches"), has_marks=kept is not None
        )
        sums.add_to_columns(moves, positions.path_position, self.own_column[positions.path_token])
        branch_position = positions.path_position[positions.branch_path]
        branch = torch.arange(len(branch_position), device=probs.device)
        sums.add_to_branches(moves[positions.branch_path], branch)
        if kept is not None:
            sums.mark_columns(everyone[:, None], self.teacher_column[kept.ids.index_select(0, positions.teacher)])
            sums.mark_columns(everyone, self.teacher_column[observed])
            sums.mark_positions(~kept.has_tail[positions.teacher])
        member = branch_position * len(self.byte_class) + positions.path_token[positions.branch_path]
        branches = sums.branches, branch_position, branch, member
        return Groups(positions.row, sums.columns, self.of_student, *branches, sums.merged())

    def inside_tokens(self, positions: MarginalPositions, teacher: SideRows, kept: KeptTokens | None = None) -> Groups:
        """Columns are byte classes; only teacher tokens that begin with the bytes there, and are longer, count."""
        position, place = expand_ranges(positions.low, positions.high - positions.low, positions.count("extending"))
        token, row = self.order[place], positions.teacher[position]
        heir = self.longest_class[self.offsets[token] + positions.consumed[position]]
        stays, moves = self._paths(positions, teacher)
        mass = teacher.log_probs[row, token].exp()
        mass = self._positive(torch.where(token == teacher.labels[row], mass * stays[position], mass))
        sums = GroupSums(mass.new_zeros(len(positions.row), self.num_classes), 0, has_marks=kept is not None)
        sums.add_to_columns(mass, position, heir, None if kept is None else kept.is_kept[row, token])
        sums.add_to_columns(moves, positions.path_position, self.byte_class[positions.path_token])
        none = position[:0]
        return Groups(positions.row, sums.columns, self.of_classes, sums.branches, none, none, none, sums.merged())

    def _paths(self, positions: MarginalPositions, teacher: SideRows) -> tuple[Tensor, Tensor]:
        """``[R]`` share of the observed teacher token's mass that stays; ``[K]`` the mass that follows each path."""
        observed = teacher.token_log_probs().clamp_min(LEAST_NATS)
        log_share = observed.new_zeros(len(positions.path_position))
        log_share.index_add_(0, positions.step_path, observed[positions.step_teacher])
        moves = (observed[positions.teacher[positions.path_position]] + log_share).exp()
        left = -log_share.expm1()
        if self.all_positive:
            left.clamp_min_(torch.finfo(left.dtype).eps)
        stays = observed.new_ones(len(positions.row)).index_copy_(0, positions.path_position, left)
        return stays, self._positive(moves)


def _heirs(prefix_map: PrefixMap, teacher: CanonicalVocabulary) -> Ints:
    """``[V_t]`` student token that each teacher token counts for, -1 for none."""
    has_bytes = teacher.num_bytes > 0
    heir = np.full(prefix_map.num_teacher, -1)
    heir[has_bytes] = prefix_map.longest[prefix_map.offsets[:-1][has_bytes]]
    # A special token counts for that of the same role, of several the one with the lowest id.
    student = np.flatnonzero(prefix_map.lead >= 0)[::-1]
    of_role = np.full(prefix_map.num_teacher, -1)
    of_role[prefix_map.lead[student]] = student
    return np.where(has_bytes, heir, of_role)
