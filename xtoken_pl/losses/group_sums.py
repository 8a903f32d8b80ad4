"""Adds up the masses of the byte-prefix KL's groups, and marks the groups that a kept token of the teacher reaches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xtoken_pl.losses.group_divergence import GroupValues

# R positions, C columns, G branches


class GroupMasses(nn.Module):
    """Base of the modules that gather a teacher's probabilities into groups of student tokens.

    Args:
        all_positive: Whether a group that the teacher can reach has a mass above zero even if it underflows, for a
            divergence that reads its logarithm.
    """

    def __init__(self, *, all_positive: bool) -> None:
        super().__init__()
        self.all_positive = all_positive

    def _positive(self, mass: Tensor) -> Tensor:
        """Raises masses to the smallest normal number; all of a row's together stay far below ``smallest_prob``."""
        return mass.clamp_min_(torch.finfo(mass.dtype).tiny) if self.all_positive else mass


class GroupSums:
    """Masses of the groups of some positions while they are added up.

    Args:
        columns: ``[R, C]`` masses of the columns so far; it is changed.
        num_branches: G.
        has_marks: Whether groups are marked; without marks none is merged.
    """

    def __init__(self, columns: Tensor, num_branches: int, *, has_marks: bool) -> None:
        self.columns = columns
        self.branches = columns.new_zeros(num_branches)
        self._column_marks = _marks(columns) if has_marks else None
        self._branch_marks = _marks(self.branches) if has_marks else None

    def add_to_columns(self, mass: Tensor, position: Tensor, column: Tensor, is_kept: Tensor | None = None) -> None:
        """Adds masses to columns of positions, -1 for none; ``is_kept`` says which are of kept tokens, None for all."""
        place = position * self.columns.shape[1] + column.clamp_min(0)
        self.columns.view(-1).index_add_(0, place, mass.masked_fill(column < 0, 0.0))
        self.mark_columns(position, column, is_kept)

    def add_to_branches(self, mass: Tensor, branch: Tensor, is_kept: Tensor | None = None) -> None:
        """Adds masses to branches, -1 for none; ``is_kept`` says which are of kept tokens, None for all."""
        if not len(self.branches):
            return
        self.branches.index_add_(0, branch.clamp_min(0), mass.masked_fill(branch < 0, 0.0))
        if self._branch_marks is not None:
            _mark(self._branch_marks, branch, branch >= 0, is_kept)

    def mark_columns(self, position: Tensor, column: Tensor, is_kept: Tensor | None = None) -> None:
        """Marks columns of positions, -1 for none, where ``is_kept``."""
        if self._column_marks is not None:
            _mark(self._column_marks, position * self.columns.shape[1] + column, column >= 0, is_kept)

    def mark_positions(self, is_kept: Tensor) -> None:
        """Marks all columns of the positions for which ``is_kept``, ``[R]`` bool."""
        if self._column_marks is not None:
            self._column_marks[:-1].view_as(self.columns).logical_or_(is_kept[:, None])

    def scale(self, weight: Tensor, branch_position: Tensor, *, least: float) -> None:
        """Multiplies the masses of each position by a weight, ``[R]``; what is above 0 stays at ``least`` or above.

        Args:
            branch_position: ``[G]`` position of each branch.
        """
        for masses, weights in ((self.columns, weight[:, None]), (self.branches, weight[branch_position])):
            no_mass = masses == 0 if least else None
            masses.mul_(weights)
            if no_mass is not None:
                masses.clamp_min_(least).masked_fill_(no_mass, 0.0)

    def move_to_branches(self, branch: Tensor, place: Tensor) -> None:
        """Moves the masses at ``place``, counted over the columns of all positions, and their marks to branches."""
        flat = self.columns.view(-1)
        is_kept = None if self._column_marks is None else self._column_marks[place]
        self.add_to_branches(flat[place], branch, is_kept)
        flat[place] = 0.0

    def merged(self) -> GroupValues | None:
        """``[R, C], [G]`` bool: the groups that have mass and no mark; None without marks."""
        if self._column_marks is None or self._branch_marks is None:
            return None
        marks = self._column_marks[:-1].view_as(self.columns), self._branch_marks[:-1]
        return (self.columns > 0) & ~marks[0], (self.branches > 0) & ~marks[1]


def _marks(masses: Tensor) -> Tensor:
    """Makes a mark for every group; the last one is of no group."""
    return torch.zeros(masses.numel() + 1, dtype=torch.bool, device=masses.device)


def _mark(marks: Tensor, place: Tensor, exists: Tensor, is_kept: Tensor | None) -> None:
    exists = exists if is_kept is None else exists & is_kept
    marks.index_fill_(0, place.masked_fill(~exists, len(marks) - 1).flatten(), value=True)
