"""Divides groups off the observed path along the teacher's own continuations, once its rows of a batch are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.prefix_map.lookahead_tables import Division, Starts, with_starts
from xtoken_pl.prefix_map.positions import Positions
from xtoken_pl.prefix_map.prefix_map import PrefixMap
from xtoken_pl.utilities.ranges import Ints, expand

# Q teacher rows, V_t teacher's vocabulary size, R positions, L levels, A starts, K rows at a time

_NUMBERS_AT_ONCE = 2**25
Floats = NDArray[np.float64]


class BranchReader(Protocol):
    """A teacher that reads tokens that the text does not have.

    Rows are numbered: those of the batch come first, then those that were appended.
    """

    @property
    def labels(self) -> Tensor:
        """``[Q]`` tokens that the rows of the batch predict."""

    @property
    def vocabulary_size(self) -> int:
        """V_t."""

    def append(self, behind: Tensor, tokens: Tensor) -> Tensor:
        """Reads one token behind each of some rows, ``[K], [K] -> [K]``: numbers of the rows that follow them."""

    def log_probs(self, rows: Tensor) -> Tensor:
        """``[K] -> [K, V_t]`` log-probabilities of rows."""


@dataclass(frozen=True)
class Lookahead:
    """Finds the groups that the text leaves undivided although most of the teacher's probability is in one of them.

    At a boundary position the group of one teacher token that the text does not have is divided: the heaviest one that
    leads longer student tokens, whether it leaves the observed path at the position or below, if its mass exceeds
    ``share``, given that the teacher's token before the position has ended there. The teacher reads this token and
    then, as long as their mass exceeds ``share``, its own most probable continuations.

    Attributes:
        prefix_map: Prefix map of the pair.
        share: Probability from which a group is divided.
        num_tokens: Largest number of tokens that are read at a position.
        least: Smallest probability, > 0 if logarithms are read, that no member continues.
    """

    prefix_map: PrefixMap
    share: float
    num_tokens: int
    least: float = 0.0

    def extend(self, positions: Positions, reader: BranchReader) -> Positions:
        """Returns positions at boundaries with what the teacher's continuations divide of them."""
        starts = self._starts(positions, reader)
        if not len(starts.position):
            return positions
        division = self._read(starts, reader, positions.row.device)
        return with_starts(positions.to("cpu"), self.prefix_map, starts, division).to(positions.row.device)

    # Where -----------------------------------------------------------------------------------------------------------

    def _starts(self, positions: Positions, reader: BranchReader) -> Starts:
        """Finds the start of every position that has one."""
        at_position, stays = self._at_positions(positions, reader)
        starts = Starts.concatenate(at_position, self._at_levels(positions, reader, stays))
        starts = starts.select(starts.mass > self.share)
        # The heaviest of each position.
        order = np.lexsort((-starts.mass, starts.position))
        is_first = np.diff(starts.position[order], prepend=-1) != 0
        return starts.select(order[is_first])

    def _at_positions(self, positions: Positions, reader: BranchReader) -> tuple[Starts, Floats]:
        """Finds the heaviest group of each position besides the observed token's.

        Returns:
            These groups, and ``[R]`` the probability of the observed token at each position.
        """
        prefix_map, device = self.prefix_map, positions.row.device
        tokens = torch.from_numpy(np.flatnonzero(prefix_map.node_of_token >= 0)).to(device)
        columns = torch.from_numpy(prefix_map.column_of_lead).to(device)[tokens]
        excluded_position = positions.excluded_position
        best, mass, stays = [], [], []
        for chunk in _chunks(torch.arange(len(positions.row), device=device), reader):
            rows = positions.teacher[chunk]
            log_probs = reader.log_probs(rows)
            observed = reader.labels[rows][:, None]
            excluded = (excluded_position >= chunk[0]) & (excluded_position <= chunk[-1])
            log_probs[excluded_position[excluded] - chunk[0], positions.excluded_token[excluded]] = -torch.inf
            # The observed token's group is divided along the text, or its mass is in a column of its own.
            is_observed = (tokens == observed) | (columns == positions.observed_column[chunk][:, None])
            heaviest, place = log_probs[:, tokens].masked_fill(is_observed, -torch.inf).max(-1)
            best.append(tokens[place])
            mass.append(heaviest.exp())
            stays.append(log_probs.gather(1, observed).squeeze(1).exp())
        token = _numpy(best, np.int64)
        position = np.arange(len(token))
        column = prefix_map.column_of_lead[token]
        is_used = np.zeros(len(token), dtype=bool)  # by what leaves the path
        level_position = positions.level_position.numpy(force=True)
        for receiver in (positions.residual_column, positions.last_column):
            np.logical_or.at(is_used, level_position, receiver.numpy(force=True) == column[level_position])
        starts = Starts(
            position=position,
            row=positions.teacher.numpy(force=True),
            token=token,
            node=prefix_map.node_of_token[token],
            root=prefix_map.node_of_token[token],
            level=np.full(len(token), -1),
            branch=np.full(len(token), -1),
            column=column,
            mass=_numpy(mass, np.float64),
        )
        return starts.select(~is_used), _numpy(stays, np.float64)

    def _at_levels(self, positions: Positions, reader: BranchReader, stays: Floats) -> Starts:
        """The branches of levels that a further teacher token would divide, with their masses."""
        prefix_map, trie = self.prefix_map, self.prefix_map.trie
        level, token = positions.branch_level.numpy(force=True), positions.branch_token.numpy(force=True)
        position, row, node = (
            column.numpy(force=True)
            for column in (positions.level_position, positions.level_teacher, positions.level_node)
        )
        reached = stays[position]  # [L], of each position's first level
        child = np.where(token >= 0, trie.child(node[level], token), -1)
        is_divisible = (child >= 0) & trie.continues[child] & (reached[level] > self.share)
        for receiver in (positions.residual_branch, positions.last_branch):
            used = receiver.numpy(force=True)
            is_divisible[used[used >= 0]] = False
        branch = np.flatnonzero(is_divisible)
        # Probabilities of the observed tokens at the levels above, and of the tokens of the branches.
        above = np.flatnonzero((np.diff(position, append=-1) == 0) & (reached > self.share))
        labels = reader.labels.numpy(force=True)
        probs = _probs(
            reader,
            np.concatenate((row[above], row[level[branch]])),
            np.concatenate((labels[row[above]], token[branch])),
            positions.row.device,
        )
        for place, prob in zip(above, probs[: len(above)], strict=True):
            reached[place + 1] = reached[place] * prob
        level = level[branch]
        return Starts(
            position=position[level],
            row=row[level],
            token=token[branch],
            node=child[branch],
            root=prefix_map.node_of_token[labels[positions.teacher.numpy(force=True)[position[level]]]],
            level=level,
            branch=branch,
            column=np.full(len(branch), -1),
            mass=reached[level] * probs[len(above) :],
        )

    # What ------------------------------------------------------------------------------------------------------------

    def _read(self, starts: Starts, reader: BranchReader, device: torch.device) -> Division:
        """Divides the groups of starts along the tokens that the teacher reads."""
        trie = self.prefix_map.trie
        start, node = np.arange(len(starts.position)), starts.node
        rows, token = torch.from_numpy(starts.row).to(device), starts.token
        ratio = np.ones(len(start))  # of a start's mass, at the node
        parts: list[Division] = []
        for num_read in range(1, self.num_tokens + 1):
            rows = reader.append(rows, torch.from_numpy(token).to(device))
            index, child = expand(trie.first_child[node], trie.first_child[node + 1])
            probs = _probs(reader, rows.numpy(force=True)[index], trie.symbol[child], device)
            residual = np.maximum(1 - np.bincount(index, probs, minlength=len(node)), self.least)
            order = np.lexsort((np.where(trie.continues[child], probs, -1), index))
            best = order[np.diff(index[order], append=-1) != 0]  # [K], the most probable child that continues
            descends = trie.continues[child[best]] & (starts.mass[start] * ratio * probs[best] > self.share)
            descends &= num_read < self.num_tokens
            stops = np.ones(len(child), dtype=bool)
            stops[best[descends]] = False
            ends = np.flatnonzero(trie.num_equal[node])
            parts.append(
                Division(
                    branch_start=np.concatenate((start[index[stops]], start[ends])),
                    first=np.concatenate((trie.start[child[stops]], trie.start[node[ends]])),
                    length=np.concatenate(
                        ((trie.end - trie.start)[child[stops]], trie.num_equal[node[ends]]),
                    ),
                    share=np.concatenate((ratio[index[stops]] * probs[stops], np.full(len(ends), -1.0))),
                    residual_start=start,
                    residual_token=self.prefix_map.fallback[node],
                    residual=ratio * residual,
                )
            )
            best = best[descends]
            start, node, ratio = start[descends], child[best], ratio[descends] * probs[best]
            rows, token = rows[torch.from_numpy(np.flatnonzero(descends)).to(device)], trie.symbol[node]
            if not len(start):
                break
        return Division.concatenate(*parts)


def _probs(reader: BranchReader, rows: Ints, tokens: Ints, device: torch.device) -> Floats:
    """Looks up the probabilities of tokens in rows, ``[E], [E] -> [E]``; every row is computed once."""
    found = np.zeros(len(rows))
    order = np.argsort(rows, kind="stable")
    unique, first = np.unique(rows[order], return_index=True)
    bounds = np.append(first, len(rows))
    done = 0
    for chunk in _chunks(torch.from_numpy(unique).to(device), reader):
        entries = order[bounds[done] : bounds[done + len(chunk)]]
        place = np.searchsorted(unique, rows[entries]) - done
        log_probs = reader.log_probs(chunk)
        picked = log_probs[torch.from_numpy(place).to(device), torch.from_numpy(tokens[entries]).to(device)]
        found[entries] = picked.double().exp().numpy(force=True)
        done += len(chunk)
    return found


def _chunks(rows: Tensor, reader: BranchReader) -> Iterator[Tensor]:
    """Cuts rows so that few of their log-probabilities are held at once."""
    return iter(rows.split(max(1, _NUMBERS_AT_ONCE // reader.vocabulary_size))) if len(rows) else iter(())


def _numpy(parts: list[Tensor], dtype: type) -> NDArray:
    return torch.cat(parts).numpy(force=True).astype(dtype) if parts else np.zeros(0, dtype=dtype)
