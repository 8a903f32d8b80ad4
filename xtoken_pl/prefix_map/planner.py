"""Finds the positions of a batch and the paths that follow them, in numpy on the CPU, before the forward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from xtoken_pl.batch import SpanBatch, TeacherBatch, TokenBatch
from xtoken_pl.prefix_map.exclusion import Exclusion
from xtoken_pl.prefix_map.positions import Positions, PrefixPlan, no_starts
from xtoken_pl.prefix_map.prefix_map import PrefixMap
from xtoken_pl.prefix_map.row_tables import entries_before
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.ranges import Bools, Ints, expand, not_among

# N/Q student/teacher rows, R positions, Z open ones, L levels, G branches, X inherited packets


class PrefixPlanner:
    """Planner of the byte-prefix KL for a pair of tokenizers.

    Args:
        prefix_map: Prefix map of the pair.
        student, teacher: Vocabularies of the pair.
    """

    def __init__(self, prefix_map: PrefixMap, student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> None:
        self.map = prefix_map
        self.exclusion = Exclusion(prefix_map, student, teacher)
        # A special token counts as one symbol on both sides.
        self.student_symbols = np.maximum(student.num_bytes, 1)
        self.teacher_symbols = np.maximum(teacher.num_bytes, 1)

    def plan(self, student: TokenBatch, teacher: TeacherBatch) -> PrefixPlan:
        """Makes the plan of a batch."""
        labels, teacher_labels = student.labels.numpy(force=True), teacher.tokens.labels.numpy(force=True)
        places = teacher.tokens.rows.numpy(force=True)
        previous = student.input_ids.flatten()[student.rows].numpy(force=True)
        continues = np.zeros(len(places), dtype=bool)  # True if the next row belongs to the next token
        continues[:-1] = places[1:] == places[:-1] + 1
        row, first, consumed = self.locate(labels, teacher_labels, teacher.spans)
        # A token that the teacher cannot write cannot be learned from it.
        can_write = self.map.lead[labels[row]] >= 0
        row, first, consumed = row[can_write], first[can_write], consumed[can_write]
        reach = np.zeros(len(labels), dtype=np.int64)
        reach[row] = first + 1
        parts = []
        for is_kind in (consumed == 0, consumed > 0):
            walk = _Walk(
                self, labels, teacher_labels, continues, previous, row[is_kind], first[is_kind], consumed[is_kind]
            )
            parts.append(walk.positions(len(labels)))
            np.maximum.at(reach, row[is_kind][walk.position], walk.teacher + 1)
        return PrefixPlan(reach, *parts)

    def locate(self, labels: Ints, teacher_labels: Ints, spans: SpanBatch) -> tuple[Ints, Ints, Ints]:
        """Finds the student rows in spans, the teacher row that each lies in, and how many of its bytes precede it.

        A space that only one side has before a text is not counted; a token that consists of this space alone is
        skipped.
        """
        span = spans.student_span.numpy(force=True)
        student_first, teacher_first = spans.student_first.numpy(force=True), spans.teacher_first.numpy(force=True)
        row = np.flatnonzero(span < len(spans))
        span = span[row]
        end = np.append(0, np.cumsum(self.teacher_symbols[teacher_labels]))  # [Q + 1]
        length = self.student_symbols[labels]
        start = np.cumsum(length) - length
        last = teacher_first + spans.teacher_length.numpy(force=True)
        student_last = student_first + spans.student_length.numpy(force=True)
        covered = np.append(0, np.cumsum(length))
        surplus = end[last] - end[teacher_first] - (covered[student_last] - covered[student_first])
        offset = start[row] - start[student_first[span]] + surplus[span]
        assert np.abs(surplus).max(initial=0) <= 1, "both sides of a span differ by at most a leading space"
        row, offset, span = row[offset >= 0], offset[offset >= 0], span[offset >= 0]
        place = end[teacher_first[span]] + offset
        first = np.searchsorted(end, place, side="right") - 1
        return row, first, place - end[first]


class _Branches(NamedTuple):
    """Branches, ranges of neighbouring members, sorted by position and first member: ``[G]`` each."""

    level: Ints
    token: Ints
    start: Ints
    length: Ints


class _Walk:
    """Follows the observed teacher tokens of all positions of one kind through the trie, in parallel."""

    def __init__(
        self,
        planner: PrefixPlanner,
        labels: Ints,
        teacher_labels: Ints,
        continues: Bools,
        previous: Ints,
        row: Ints,
        first: Ints,
        consumed: Ints,
    ) -> None:
        self.map, self.exclusion = planner.map, planner.exclusion
        self.previous = previous[row]  # [R] student tokens
        self.row, self.first = row, first
        self.observed = labels[row]  # [R] student tokens
        self.token = teacher_labels[first]  # [R]
        self.is_inside = consumed > 0
        trie = self.map.trie
        # The byte at which a position lies; clamped for tokens without bytes, which no position is inside.
        byte = np.minimum(self.map.offsets[self.token] + consumed, len(self.map.longest) - 1)
        root = np.where(self.is_inside, self.map.node_of_rest[byte], self.map.node_of_token[self.token])
        self.root = np.where(continues[first], root, -1)  # [R] -1 if there is nothing to divide
        self._look_back(teacher_labels, continues, consumed, byte)
        active = np.flatnonzero(self.root >= 0)
        node, teacher = self.root[active], first[active] + 1
        found: list[tuple[NDArray[Any], ...]] = [(active[:0],) * 4 + (active[:0] > 0,)]
        while len(active):
            child = trie.child(node, teacher_labels[teacher])
            descends = (child >= 0) & trie.continues[child] & continues[teacher]
            found.append((active, node, teacher, child, descends))
            active, node, teacher = active[descends], child[descends], teacher[descends] + 1
        levels = [np.concatenate(column) for column in zip(*found, strict=True)]
        by_position = np.argsort(levels[0], kind="stable")
        self.position, self.node, self.teacher, self.child, self.descends = (column[by_position] for column in levels)

    def _look_back(self, teacher_labels: Ints, continues: Bools, consumed: Ints, byte: Ints) -> None:
        """Finds the teacher token before each position, and the tokens that begin with its bytes there.

        It is the one that the position lies in. At a boundary it is the one that ends there, if a row predicts it; if
        none does, no bytes of it count.
        """
        follows = ~self.is_inside & (self.first > 0) & continues[self.first - 1]
        self.before = np.where(self.is_inside, self.token, teacher_labels[self.first - 1])  # [R]
        num_bytes = self.map.offsets[self.before + 1] - self.map.offsets[self.before]
        self.consumed = np.where(follows, num_bytes, consumed)  # [R] its bytes before the position
        self.extending = np.where(self.is_inside[:, None], self.map.extending[byte], 0)  # [R, 2] longer tokens
        self.extending[follows] = self.map.longer[self.before[follows]]
        num_ended = np.where(self.is_inside, self.map.num_ended[byte], 0)  # [R] tokens that are these bytes
        is_open = np.where(self.is_inside, num_ended > 0, self.extending[:, 0] < self.extending[:, 1])
        self.open = np.flatnonzero(is_open)  # [Z]
        self.num_ended = num_ended[self.open]  # [Z]

    def positions(self, num_rows: int) -> Positions:
        """Builds the tables of the positions, for a batch of ``num_rows`` student rows."""
        branches = self._branches()
        observed = self.observed[self.position]
        fallback = self.map.fallback[self.node]
        residual_branch, residual_column = self._target(np.where(fallback >= 0, fallback, observed), branches)
        last_branch, last_column = self._target(observed, branches)
        last_branch[self.descends] = last_column[self.descends] = -1
        is_refined = self.root >= 0
        observed_column = np.where(is_refined, -1, self._column(self.observed, self.is_inside))
        low, high = np.ascontiguousarray(self.extending.T)
        excluded_position, excluded_token = self._excluded()
        heir_position, heir_place, heir_token = self._inherited(excluded_position, excluded_token)
        columns = {
            "row": self.row,
            "teacher": self.first,
            "observed_column": observed_column,
            "divided_column": np.where(is_refined & ~self.is_inside, self.map.column_of_lead[self.token], -1),
            "consumed": self.consumed,
            "low": low,
            "high": high,
            "open_position": self.open,
            "ended_low": low[self.open] - self.num_ended,
            "level_position": self.position,
            "level_teacher": self.teacher,
            "level_node": self.node,
            "residual_branch": residual_branch,
            "residual_column": residual_column,
            "last_branch": last_branch,
            "last_column": last_column,
            "branch_level": branches.level,
            "branch_token": branches.token,
            "branch_start": branches.start,
            "branch_length": branches.length,
            "heir_branch": self._find(heir_position, heir_place, branches),
            "heir_teacher": self.first[heir_position],
            "heir_token": heir_token,
            "excluding": self._excluding(),
            "excluded_position": excluded_position,
            "excluded_token": excluded_token,
            **no_starts(),
        }
        owner = {
            "positions": self.row,
            "open": self.row[self.open],
            "levels": self.row[self.position],
            "branches": self.row[self.position[branches.level]],
            "heirs": self.row[heir_position],
            "excluded": self.row[excluded_position],
            "starts": self.row[:0],
            "shares": self.row[:0],
        }
        before = entries_before(owner, num_rows)
        before["members"] = np.append(0, np.cumsum(branches.length))[before["branches"]]
        before["extending"] = np.append(0, np.cumsum(high - low))[before["positions"]]
        before["ended"] = np.append(0, np.cumsum(self.num_ended))[before["open"]]
        return Positions(**{name: torch.from_numpy(column) for name, column in columns.items()}, before=before)

    def _branches(self) -> _Branches:
        trie = self.map.trie
        levels = np.arange(len(self.node))
        ends = trie.num_equal[self.node] > 0
        low, high = trie.first_child[self.node], trie.first_child[self.node + 1]
        level, child = expand(low, high)
        divided = self.descends[level] & (child == self.child[level])
        level, child = level[~divided], child[~divided]
        token = np.where(child == self.child[level], -1, trie.symbol[child])
        ended = self.node[ends]
        branches = _Branches(
            level=np.concatenate((levels[ends], level)),
            token=np.concatenate((np.full(len(ended), -1), token)),
            start=np.concatenate((trie.start[ended], trie.start[child])),
            length=np.concatenate((trie.num_equal[ended], trie.end[child] - trie.start[child])),
        )
        order = np.lexsort((branches.start, self.position[branches.level]))
        return _Branches(*(column[order] for column in branches))

    def _target(self, tokens: Ints, branches: _Branches) -> tuple[Ints, Ints]:
        """``[L]`` branch that contains each student token, or else its column; -1 for none."""
        place = self.map.place(self.root[self.position], tokens)
        branch = self._find(self.position, place, branches)
        column = np.where(branch >= 0, -1, self._column(tokens, self.is_inside[self.position]))
        return branch, column

    def _column(self, tokens: Ints, is_inside: Bools) -> Ints:
        return np.where(is_inside, tokens, self.map.column(self.map.lead[tokens]))

    def _find(self, position: Ints, place: Ints, branches: _Branches) -> Ints:
        """Finds the branch of a position that contains the member at ``place``; -1 for none."""
        num_members = len(self.map.members) + 1
        keys = self.position[branches.level] * num_members + branches.start
        found = np.searchsorted(keys, position * num_members + place, side="right") - 1
        return np.where(place >= 0, found, -1)

    def _inherited(self, excluded_position: Ints, excluded_token: Ints) -> tuple[Ints, Ints, Ints]:
        """``[X]`` position, place of the receiving member, and teacher token of all inherited mass."""
        first, tokens, places = self.map.inherited
        heirs = np.flatnonzero((self.root >= 0) & ~self.is_inside)
        root = self.root[heirs]
        index, entry = expand(first[root], first[root + 1])
        position, token = heirs[index], tokens[entry]
        may_follow = not_among(position, token, excluded_position, excluded_token)
        return position[may_follow], places[entry][may_follow], token[may_follow]

    def _excluded(self) -> tuple[Ints, Ints]:
        """Position and teacher token of all that cannot follow the student's last token, at boundaries."""
        at_boundary = np.flatnonzero(~self.is_inside)
        position, token = self.exclusion.at_boundaries(self.previous[at_boundary], self.token[at_boundary])
        return at_boundary[position], token

    def _excluding(self) -> Ints:
        """``[R]`` bytes of the student's last token if it excludes teacher tokens that go on; or 0."""
        return self.exclusion.excluding_bytes(self.previous, self.before, self.consumed, is_inside=self.is_inside)
