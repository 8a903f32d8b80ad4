"""Tables of positions some of whose groups are divided along the teacher's own continuations."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from xtoken_pl.prefix_map.positions import Positions
from xtoken_pl.prefix_map.prefix_map import PrefixMap
from xtoken_pl.prefix_map.row_tables import entries_before
from xtoken_pl.utilities.ranges import Ints, expand, not_among

# X inherited packets of mass, A starts, E entries

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Arrays:
    @classmethod
    def concatenate(cls, *parts: Self) -> Self:
        """Joins the arrays of all parts, one by one."""
        return cls(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)))


@dataclass(frozen=True)
class Starts(_Arrays):
    """Teacher tokens that the text does not have and whose groups are divided: ``[A]`` each.

    Attributes:
        position: Position.
        row: Teacher row that predicts the token.
        token: The token.
        node: Its node in the map's trie.
        root: Node of depth one above it.
        level, branch: Level and branch of the position that it divides, -1 if it leads the group.
        column: Column of the group that it leads, or else -1.
        mass: Probability of the observed tokens before it, and of the token.
    """

    position: Ints
    row: Ints
    token: Ints
    node: Ints
    root: Ints
    level: Ints
    branch: Ints
    column: Ints
    mass: Floats

    def select(self, which: NDArray[Any]) -> Starts:
        """Returns some of the starts."""
        return Starts(*(getattr(self, item.name)[which] for item in fields(self)))


@dataclass(frozen=True)
class Division(_Arrays):
    """How the teacher's continuations divide the groups of starts.

    Attributes:
        branch_start: ``[E]`` start of each new branch.
        first, length: ``[E]`` range of its members.
        share: ``[E]`` its part of the start's mass; -1 for students' tokens that end, which get residuals alone.
        residual_start: ``[E']`` start of each residual, with which no member continues.
        residual_token: ``[E']`` student token that gets it, -1 for none.
        residual: ``[E']`` its part of the start's mass.
    """

    branch_start: Ints
    first: Ints
    length: Ints
    share: Floats
    residual_start: Ints
    residual_token: Ints
    residual: Floats


def with_starts(positions: Positions, prefix_map: PrefixMap, starts: Starts, division: Division) -> Positions:
    """Returns positions at boundaries whose groups are divided further; the given ones, on the CPU, have no starts."""
    return _Tables(positions, prefix_map, starts, division).positions()


class _Tables:
    def __init__(self, positions: Positions, prefix_map: PrefixMap, starts: Starts, division: Division) -> None:
        self.before, self.map, self.division = positions.before, prefix_map, division
        self.columns: dict[str, NDArray[Any]] = {
            name: getattr(positions, name).numpy() for name in Positions.column_names()
        }
        self.starts = starts.select(np.argsort(starts.position))
        self.number = np.argsort(np.argsort(starts.position))  # of each start, in this order

    def positions(self) -> Positions:
        heirs = self._heirs()  # by what the levels are before
        level = self._add_levels()
        new_branch = self._replace_branches(level)
        self._add_heirs(*heirs)
        self._add_starts(level, new_branch)
        return Positions(
            **{name: torch.from_numpy(column) for name, column in self.columns.items()}, before=self._before(heirs[0])
        )

    def _add_levels(self) -> Ints:
        """Gives a start at a position a level without mass, to which its branches belong; the level of each start."""
        columns, starts = self.columns, self.starts
        leads = np.flatnonzero(starts.level < 0)
        level = starts.level.copy()
        level[leads] = len(columns["level_position"]) + np.arange(len(leads))
        added = {"level_position": starts.position, "level_teacher": starts.row, "level_node": starts.node}
        for name in _LEVELS:
            more = added[name][leads] if name in added else np.full(len(leads), -1)
            columns[name] = np.append(columns[name], more)
        order = np.argsort(columns["level_position"], kind="stable")
        for name in _LEVELS:
            columns[name] = columns[name][order]
        place = np.argsort(order)
        columns["branch_level"] = place[columns["branch_level"]]
        return place[level]

    def _replace_branches(self, level: Ints) -> Ints:
        """Replaces the branches that starts divide by others; returns the number of each new one."""
        columns, division = self.columns, self.division
        stays = np.ones(len(columns["branch_level"]), dtype=bool)
        stays[self.starts.branch[self.starts.branch >= 0]] = False
        added = {
            "branch_level": level[self.number[division.branch_start]],
            "branch_token": np.full(len(division.first), -1),
            "branch_start": division.first,
            "branch_length": division.length,
        }
        for name, more in added.items():
            columns[name] = np.append(columns[name][stays], more)
        order = np.lexsort((columns["branch_start"], self._branch_position))
        for name in added:
            columns[name] = columns[name][order]
        place = np.argsort(order)
        renumbered = np.full(len(stays) + 1, -1)  # the last one is of -1
        renumbered[:-1][stays] = place[: stays.sum()]
        for name in ("residual_branch", "last_branch"):
            columns[name] = renumbered[columns[name]]
        return place[stays.sum() :]

    @property
    def _branch_position(self) -> Ints:
        return self.columns["level_position"][self.columns["branch_level"]]

    def _find(self, position: Ints, member: Ints) -> Ints:
        """Finds the branch of a position that contains a member; -1 for member -1."""
        num_members = len(self.map.members) + 1
        keys = self._branch_position * num_members + self.columns["branch_start"]
        found = np.searchsorted(keys, position * num_members + member, side="right") - 1
        return np.where(member >= 0, found, -1)

    def _heirs(self) -> tuple[Ints, Ints, Ints]:
        """``[X]`` position, teacher token and place of the receiving member of what all divided groups inherit."""
        columns, leads = self.columns, self.starts.select(self.starts.level < 0)
        num_heirs = np.diff(self.before["heirs"])  # by student row
        position = np.repeat(np.searchsorted(columns["row"], np.arange(len(num_heirs))), num_heirs)
        root = np.full(len(columns["row"]), -1)
        divided, first_level = np.unique(columns["level_position"], return_index=True)
        root[divided] = columns["level_node"][first_level]
        member = self.map.place(root[position], self.map.heir[columns["heir_token"]])
        first, tokens, members = self.map.inherited
        index, entry = expand(first[leads.root], first[leads.root + 1])
        excluded = columns["excluded_position"], columns["excluded_token"]
        may_follow = not_among(leads.position[index], tokens[entry], *excluded)
        index, entry = index[may_follow], entry[may_follow]
        position = np.append(position, leads.position[index])
        order = np.argsort(position, kind="stable")
        token, member = np.append(columns["heir_token"], tokens[entry]), np.append(member, members[entry])
        return position[order], token[order], member[order]

    def _add_heirs(self, position: Ints, token: Ints, member: Ints) -> None:
        self.columns["heir_branch"] = self._find(position, member)
        self.columns["heir_teacher"], self.columns["heir_token"] = self.columns["teacher"][position], token

    def _add_starts(self, level: Ints, new_branch: Ints) -> None:
        """Adds the starts, and where their masses go."""
        columns, starts, division = self.columns, self.starts, self.division
        columns["start_position"], columns["start_teacher"] = starts.position, starts.row
        columns["start_token"], columns["start_column"] = starts.token, starts.column
        columns["start_level"] = np.where(starts.level < 0, -1, level)
        residual_start, token = self.number[division.residual_start], division.residual_token
        branch = self._find(starts.position[residual_start], self.map.place(starts.root[residual_start], token))
        column = np.where((branch < 0) & (token >= 0), self.map.column(self.map.lead[token]), -1)
        has_share = division.share >= 0
        new_branch, share = new_branch[has_share], division.share[has_share]
        start = np.append(self.number[division.branch_start[has_share]], residual_start)
        order = np.argsort(start, kind="stable")
        columns["share_start"] = start[order]
        columns["share_branch"] = np.append(new_branch, branch)[order]
        columns["share_column"] = np.append(np.full(len(new_branch), -1), column)[order]
        columns["share"] = np.append(share, division.residual)[order]

    def _before(self, heir_position: Ints) -> dict[str, Ints]:
        columns, row = self.columns, self.columns["row"]
        owner = {
            "levels": row[columns["level_position"]],
            "branches": row[self._branch_position],
            "heirs": row[heir_position],
            "starts": row[columns["start_position"]],
            "shares": row[columns["start_position"][columns["share_start"]]],
        }
        before = entries_before(owner, len(self.before["positions"]) - 1)
        before["members"] = np.append(0, np.cumsum(columns["branch_length"]))[before["branches"]]
        return {**self.before, **before}


_LEVELS = (
    *("level_position", "level_teacher", "level_node"),
    *("residual_branch", "residual_column", "last_branch", "last_column"),
)
