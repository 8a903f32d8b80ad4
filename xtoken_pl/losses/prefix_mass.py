"""Gathers a teacher's probabilities into the groups of the byte-prefix KL."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xtoken_pl.losses.base import SideRows
from xtoken_pl.losses.group_divergence import ColumnSums, Groups
from xtoken_pl.prefix_map import Positions, PrefixMap

# Q teacher rows, R positions, C columns, L levels, G branches, M members, V_s/V_t vocabulary sizes


_LEAST_NATS = -1e4


class PrefixMass(nn.Module):
    """Masses that the teacher's rows give to groups of student tokens; see :class:`xtoken_pl.BytePrefixKL`.

    Args:
        prefix_map: Prefix map of the pair.
        all_positive: Whether a group that the teacher can reach has a mass above zero even if it underflows, and the
            probability that no member of a level continues, 1 minus that of the others, is at least its rounding error:
            for a divergence that reads their logarithms.
    """

    teacher_column: Tensor  # [V_t] the column of a teacher token's mass, -1 for none
    members: Tensor  # [M] student tokens
    order: Tensor  # teacher tokens that have bytes, sorted by them
    offsets: Tensor  # [V_t + 1]
    longest: Tensor  # by byte of every teacher token

    def __init__(self, prefix_map: PrefixMap, *, all_positive: bool = False) -> None:
        super().__init__()
        self.all_positive = all_positive
        teacher_column = torch.from_numpy(prefix_map.column(prefix_map.group))
        self.num_student = prefix_map.num_student
        self.of_student = ColumnSums(torch.from_numpy(prefix_map.column(prefix_map.lead)))
        self.of_teacher = ColumnSums(teacher_column)
        buffers = {
            "teacher_column": teacher_column,
            "members": torch.from_numpy(prefix_map.members),
            "order": torch.from_numpy(prefix_map.order),
            "offsets": torch.from_numpy(prefix_map.offsets),
            "longest": torch.from_numpy(prefix_map.longest),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def at_boundaries(self, positions: Positions, teacher: SideRows) -> Groups:
        """Columns are groups of student tokens with the same leading teacher token."""
        probs = self._positive(teacher.log_probs.index_select(0, positions.teacher).exp_())  # [R, V_t]
        # The observed token's mass has its own way.
        probs.scatter_(1, teacher.labels[positions.teacher][:, None], 0.0)
        column_mass = self.of_teacher(probs)
        # Of the group that it leads the branches take everything, also what members inherit.
        divided = positions.divided_column[:, None]
        left = column_mass.gather(1, divided.clamp_min(0)).masked_fill(divided >= 0, 0.0)
        column_mass.scatter_(1, divided.clamp_min(0), left)
        inherited = self._positive(teacher.log_probs[positions.heir_teacher, positions.heir_token].exp())
        branch_mass = column_mass.new_zeros(positions.count("branches"))
        branch_mass.index_add_(0, positions.heir_branch, inherited)
        self._follow_path(positions, teacher, column_mass, branch_mass)
        return Groups(positions.row, column_mass, self.of_student, branch_mass, *self._members(positions))

    def inside_tokens(self, positions: Positions, teacher: SideRows) -> Groups:
        """Columns are student tokens; what cannot follow the bytes that are there already has no mass."""
        position, place = _expand(positions.low, positions.high - positions.low, positions.count("extending"))
        token, row = self.order[place], positions.teacher[position]
        heir = self.longest[self.offsets[token] + positions.consumed[position]]
        mass = self._positive(teacher.log_probs[row, token].exp())
        mass.masked_fill_((heir < 0) | (token == teacher.labels[row]), 0.0)
        column_mass = mass.new_zeros(len(positions.row), self.num_student)
        flat = column_mass.view(-1)
        flat.index_add_(0, position * self.num_student + heir.clamp_min(0), mass)
        # Branches take what their members have.
        branch_position, member_branch, member = self._members(positions)
        branch_mass = column_mass.new_zeros(positions.count("branches"))
        branch_mass.index_add_(0, member_branch, flat[member])
        flat[member] = 0.0
        self._follow_path(positions, teacher, column_mass, branch_mass)
        return Groups(positions.row, column_mass, None, branch_mass, branch_position, member_branch, member)

    def _members(self, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """``[G]`` position of each branch; ``[M]`` branch of each member, and its place in the rows ``[R, V_s]``."""
        branch, place = _expand(positions.branch_start, positions.branch_length, positions.count("members"))
        branch_position = positions.level_position[positions.branch_level]
        return branch_position, branch, branch_position[branch] * self.num_student + self.members[place]

    def _positive(self, mass: Tensor) -> Tensor:
        """Raises masses to the smallest normal number; all of a row's together stay far below ``smallest_prob``."""
        return mass.clamp_min_(torch.finfo(mass.dtype).tiny) if self.all_positive else mass

    def _follow_path(self, positions: Positions, teacher: SideRows, column_mass: Tensor, branch_mass: Tensor) -> None:
        """Adds the mass of the observed teacher tokens, and of what leaves their path behind the first."""

        def add_to_columns(mass: Tensor, position: Tensor, column: Tensor) -> None:
            place = position * column_mass.shape[1] + column.clamp_min(0)
            column_mass.view(-1).index_add_(0, place, self._positive(mass).masked_fill(column < 0, 0.0))

        def add_to_branches(mass: Tensor, branch: Tensor) -> None:
            branch_mass.index_add_(0, branch.clamp_min(0), self._positive(mass).masked_fill(branch < 0, 0.0))

        # Finite, or one row would spoil the path of all behind it.
        observed = teacher.token_log_probs().clamp_min(_LEAST_NATS)  # [Q]
        everyone = torch.arange(len(positions.row), device=column_mass.device)
        add_to_columns(observed[positions.teacher].exp(), everyone, positions.observed_column)
        # In double precision, since long sums are subtracted.
        path = torch.cat((observed.new_zeros(1, dtype=torch.float64), observed.double().cumsum(0)))  # [Q + 1]
        first = positions.teacher[positions.level_position]
        reached = (path[positions.level_teacher] - path[first]).exp().to(observed.dtype)  # [L], M_d
        stays = observed[positions.level_teacher].exp()  # [L]
        token, level = positions.branch_token, positions.branch_level
        leaves = teacher.log_probs[positions.level_teacher[level], token.clamp_min(0)].exp().masked_fill(token < 0, 0.0)
        branch_mass += self._positive(reached[level] * leaves).masked_fill(token < 0, 0.0)
        least = torch.finfo(stays.dtype).eps if self.all_positive else 0.0
        residual = reached * (1 - stays.index_add(0, level, leaves)).clamp_min(least)
        add_to_branches(residual, positions.residual_branch)
        add_to_columns(residual, positions.level_position, positions.residual_column)
        add_to_branches(reached * stays, positions.last_branch)
        add_to_columns(reached * stays, positions.level_position, positions.last_column)


def _expand(start: Tensor, length: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """For every range its index, and start, start + 1, ..., ``length`` numbers; ``total`` of all, known on the host."""
    index = torch.arange(len(start), device=start.device).repeat_interleave(length, output_size=total)
    offset = start - (length.cumsum(0) - length)
    return index, torch.arange(total, device=start.device) + offset[index]
