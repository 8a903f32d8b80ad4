"""Gathers a teacher's probabilities into the groups of the byte-prefix KL."""

from __future__ import annotations

import torch
from torch import Tensor

from xtoken_pl.losses.base import SideRows
from xtoken_pl.losses.group_divergence import ColumnSums, Groups
from xtoken_pl.losses.group_sums import GroupMasses, GroupSums
from xtoken_pl.losses.teacher_tokens import KeptTokens
from xtoken_pl.prefix_map import Positions, PrefixMap
from xtoken_pl.utilities.ranges import expand_ranges

# Q teacher rows, R positions, Z open ones, C columns, L levels, G branches, M members, X longer teacher tokens
# V_s/V_t vocabulary sizes

#: See :meth:`PrefixMass._members`.
_Members = tuple[Tensor, Tensor, Tensor]

LEAST_NATS = -1e4


class PrefixMass(GroupMasses):
    """Masses that the teacher's rows give to groups of student tokens; see :class:`xtoken_pl.BytePrefixKL`.

    Args:
        prefix_map: Prefix map of the pair.
        is_token: ``[F]`` bool, True if a teacher token's bytes from this one on are one student token.
        all_positive: Whether a group that the teacher can reach has a mass above zero even if it underflows, and the
            probability that no member of a level continues, 1 minus that of the others, is at least its rounding error:
            for a divergence that reads their logarithms.
    """

    teacher_column: Tensor  # [V_t] the column of a teacher token's mass, -1 for none
    members: Tensor  # [M] student tokens
    order: Tensor  # teacher tokens that have bytes, sorted by them
    offsets: Tensor  # [V_t + 1]
    longest: Tensor  # by byte of every teacher token
    is_token: Tensor  # the same
    can_write: Tensor  # [V_s] bool

    def __init__(self, prefix_map: PrefixMap, is_token: Tensor, *, all_positive: bool = False) -> None:
        super().__init__(all_positive=all_positive)
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
            "is_token": is_token,
            "can_write": torch.from_numpy(prefix_map.lead >= 0),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def at_boundaries(self, positions: Positions, teacher: SideRows, kept: KeptTokens | None = None) -> Groups:
        """Columns are groups of student tokens with the same leading teacher token.

        Args:
            positions: Positions at a boundary of both sides.
            teacher: Rows of the teacher.
            kept: Tokens that are kept of each row; groups that none of them reaches are merged. None for all.
        """
        probs = self._positive(teacher.log_probs.index_select(0, positions.teacher).exp_())  # [R, V_t]
        # The observed token's mass has its own way.
        observed = teacher.labels[positions.teacher][:, None]
        probs.scatter_(1, observed, 0.0)
        probs[positions.excluded_position, positions.excluded_token] = 0.0
        column_mass = self.of_teacher(probs)
        # Of the group that it leads the branches take everything, also what members inherit.
        divided = positions.divided_column[:, None]
        left = column_mass.gather(1, divided.clamp_min(0)).masked_fill(divided >= 0, 0.0)
        column_mass.scatter_(1, divided.clamp_min(0), left)
        _clear_columns(column_mass, positions.start_position, positions.start_column)
        sums = GroupSums(column_mass, positions.count("branches"), has_marks=kept is not None)
        heir_row, heir_token = positions.heir_teacher, positions.heir_token
        inherited = self._positive(teacher.log_probs[heir_row, heir_token].exp())
        sums.add_to_branches(inherited, positions.heir_branch, _lookup(kept, heir_row, heir_token))
        if kept is not None:
            ids = kept.ids.index_select(0, positions.teacher)  # [R, k]
            everyone = torch.arange(len(ids), device=ids.device)[:, None]
            sums.mark_columns(everyone, self.teacher_column[ids], probs.gather(1, ids) > 0)
            sums.mark_positions(~kept.has_tail[positions.teacher])
        reached = self._follow_path(positions, teacher, kept, sums)
        self._divide_starts(positions, teacher, reached, sums)
        members = self._members(positions)
        self._add_longer(positions, teacher, kept, sums, members)
        return Groups(positions.row, sums.columns, self.of_student, sums.branches, *members, sums.merged())

    def inside_tokens(self, positions: Positions, teacher: SideRows, kept: KeptTokens | None = None) -> Groups:
        """Columns are student tokens; what cannot follow the bytes that are there, or the last token, has no mass."""
        position, row, token, heir = self._extending(positions, positions.teacher)
        heir = heir.masked_fill(token == teacher.labels[row], -1)
        mass = self._positive(teacher.log_probs[row, token].exp())
        column_mass = mass.new_zeros(len(positions.row), self.num_student)
        num_branches = positions.count("branches") + positions.count("open")
        sums = GroupSums(column_mass, num_branches, has_marks=kept is not None)
        sums.add_to_columns(mass, position, heir, _lookup(kept, row, token))
        # Branches take what their members have.
        members = self._members(positions)
        sums.move_to_branches(*members[1:])
        self._follow_path(positions, teacher, kept, sums)
        others = self._add_ended(positions, teacher, kept, sums, members)
        position = torch.cat((members[0], positions.open_position))
        return Groups(positions.row, sums.columns, None, sums.branches, position, *members[1:], sums.merged(), others)

    def _extending(self, positions: Positions, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Position, teacher row and id of the longer teacher tokens, and the student token that gets the mass of each.

        Args:
            rows: ``[R]`` teacher row of each position that predicts them.
        """
        position, place = expand_ranges(positions.low, positions.high - positions.low, positions.count("extending"))
        token = self.order[place]
        byte = self.offsets[token] + positions.consumed[position]
        excluding = positions.excluding[position]
        is_excluded = (excluding > 0) & self.is_token[byte - excluding]
        return position, rows[position], token, self.longest[byte].masked_fill(is_excluded, -1)

    def _add_ended(
        self, positions: Positions, teacher: SideRows, kept: KeptTokens | None, sums: GroupSums, members: _Members
    ) -> Tensor:
        """Adds, inside tokens, the masses of teacher tokens that end at open positions, to the last Z branches.

        Returns:
            ``[Z, V_s]`` bool, the student tokens of each of these branches: those that get no other mass.
        """
        others = (sums.columns == 0).logical_and_(self.can_write)
        others.view(-1)[members[2]] = False
        others = others.index_select(0, positions.open_position)
        length = positions.low[positions.open_position] - positions.ended_low
        index, place = expand_ranges(positions.ended_low, length, positions.count("ended"))
        row, token = positions.teacher[positions.open_position[index]], self.order[place]
        mass = self._positive(teacher.log_probs[row, token].exp())
        branch = (positions.count("branches") + index).masked_fill(~others.any(-1)[index], -1)
        sums.add_to_branches(mass, branch, _lookup(kept, row, token))
        return others

    def _add_longer(
        self, positions: Positions, teacher: SideRows, kept: KeptTokens | None, sums: GroupSums, members: _Members
    ) -> None:
        """Adds, at boundaries, the masses of teacher tokens longer than the one before, which might have gone on.

        The masses so far are those of what follows if it ended. All are divided by the probability that it ended or
        went on, or those of text that the teacher finds improbable would underflow.
        """
        if not positions.count("open"):
            return
        before = (positions.teacher - 1).clamp_min(0)
        position, row, token, heir = self._extending(positions, before)
        # These underflow in single precision.
        ended = teacher.token_log_probs()[before].double().exp()  # [R]
        longer = teacher.log_probs[row, token].double().exp()  # [X]
        total = ended.index_add(0, position, longer.masked_fill(heir < 0, 0.0))
        weight = torch.where(total > 0, ended / total, 1.0).to(sums.columns)
        sums.scale(weight, members[0], least=torch.finfo(weight.dtype).tiny if self.all_positive else 0.0)
        mass = self._positive((longer / total.clamp_min(torch.finfo(total.dtype).tiny)[position]).to(weight))
        branch, column = self._groups_of(position, heir, members)
        is_kept = _lookup(kept, row, token)
        sums.add_to_branches(mass, branch, is_kept)
        sums.add_to_columns(mass, position, column, is_kept)

    def _groups_of(self, position: Tensor, token: Tensor, members: _Members) -> tuple[Tensor, Tensor]:
        """``[X], [X] -> [X], [X]``: the branch of student tokens at boundaries, or else their column; -1 for none."""
        _, branch, place = members
        end = place.new_full((1,), -1)  # is no place
        place, order = torch.cat((place, end)).sort()
        wanted = position * self.num_student + token
        found = torch.searchsorted(place, wanted).clamp_max(len(place) - 1)
        is_member = (token >= 0) & (place[found] == wanted)
        column = self.of_student.column[token.clamp_min(0)]
        in_column = (token >= 0) & ~is_member & (column < len(self.of_student.first))
        branch = torch.cat((branch, end))[order[found]]
        return branch.masked_fill(~is_member, -1), column.masked_fill(~in_column, -1)

    def _members(self, positions: Positions) -> _Members:
        """``[G]`` position of each branch; ``[M]`` branch of each member, and its place in the rows ``[R, V_s]``."""
        branch, place = expand_ranges(positions.branch_start, positions.branch_length, positions.count("members"))
        branch_position = positions.level_position[positions.branch_level]
        return branch_position, branch, branch_position[branch] * self.num_student + self.members[place]

    def _follow_path(self, positions: Positions, teacher: SideRows, kept: KeptTokens | None, sums: GroupSums) -> Tensor:
        """Adds the mass of the observed teacher tokens, and of what leaves their path behind the first.

        Returns:
            ``[L]`` probability of the observed tokens before each level.
        """
        # Finite, or one row would spoil the path of all behind it.
        observed = teacher.token_log_probs().clamp_min(LEAST_NATS)  # [Q]
        everyone = torch.arange(len(positions.row), device=observed.device)
        first_token = self._positive(observed[positions.teacher].exp())
        sums.add_to_columns(first_token, everyone, positions.observed_column)
        # In double precision, since long sums are subtracted.
        path = torch.cat((observed.new_zeros(1, dtype=torch.float64), observed.double().cumsum(0)))  # [Q + 1]
        first = positions.teacher[positions.level_position]
        reached = (path[positions.level_teacher] - path[first]).exp().to(observed.dtype)  # [L], M_d
        stays = observed[positions.level_teacher].exp()  # [L]
        token, level = positions.branch_token, positions.branch_level
        branch = torch.arange(len(token), device=token.device).masked_fill(token < 0, -1)
        row, token = positions.level_teacher[level], token.clamp_min(0)
        leaves = teacher.log_probs[row, token].exp().masked_fill(branch < 0, 0.0)
        is_kept = _lookup(kept, row, token)
        sums.add_to_branches(self._positive(reached[level] * leaves), branch, is_kept)
        least = torch.finfo(stays.dtype).eps if self.all_positive else 0.0
        continues = self._add_starts_of_levels(stays.index_add(0, level, leaves), positions, teacher)
        residual = self._positive(reached * (1 - continues).clamp_min(least))
        if kept is not None and is_kept is not None:
            is_kept = kept.others_than(is_kept & (branch >= 0), level, positions.level_teacher)
        sums.add_to_branches(residual, positions.residual_branch, is_kept)
        sums.add_to_columns(residual, positions.level_position, positions.residual_column, is_kept)
        ending = self._positive(reached * stays)
        sums.add_to_branches(ending, positions.last_branch)
        sums.add_to_columns(ending, positions.level_position, positions.last_column)
        return reached

    @staticmethod
    def _add_starts_of_levels(probs: Tensor, positions: Positions, teacher: SideRows) -> Tensor:
        """Adds to ``[L]`` the probabilities of tokens whose branch at a level starts replace."""
        if not positions.count("starts"):
            return probs
        of_start = teacher.log_probs[positions.start_teacher, positions.start_token].exp()
        level = positions.start_level
        return probs.index_add(0, level.clamp_min(0), of_start.masked_fill(level < 0, 0.0))

    def _divide_starts(self, positions: Positions, teacher: SideRows, reached: Tensor, sums: GroupSums) -> None:
        """Adds the masses of groups that the teacher's own continuations divide, if it looks ahead."""
        if not positions.count("starts"):
            return
        before = reached[positions.start_level.clamp_min(0)].masked_fill(positions.start_level < 0, 1.0)
        mass = before * teacher.log_probs[positions.start_teacher, positions.start_token].exp()  # [A]
        parts = self._positive(mass[positions.share_start] * positions.share.to(mass.dtype))
        sums.add_to_branches(parts, positions.share_branch)
        sums.add_to_columns(parts, positions.start_position[positions.share_start], positions.share_column)


def _clear_columns(column_mass: Tensor, position: Tensor, column: Tensor) -> None:
    """Sets one column of some positions to 0, none for -1."""
    place = position * column_mass.shape[1] + column.clamp_min(0)
    flat = column_mass.view(-1)
    flat[place] = flat[place].masked_fill(column >= 0, 0.0)


def _lookup(kept: KeptTokens | None, row: Tensor, token: Tensor) -> Tensor | None:
    return None if kept is None else kept.is_kept[row, token]
