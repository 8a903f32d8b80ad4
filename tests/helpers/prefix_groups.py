"""The groups of one position of the byte-prefix KL, as lists of tokens."""

from __future__ import annotations

import torch
from prefix_pairs import Pair

from xtoken_pl.losses.group_divergence import Groups


def listed(pair: Pair, groups: Groups, place: int) -> list[tuple[float, list[int]]]:
    """The groups of a position: mass and student tokens."""
    size = len(pair.student)
    column = torch.arange(size) if groups.sums is None else groups.sums.column
    inside = torch.nonzero(groups.branch_position[groups.member_branch] == place).flatten()
    members = (groups.member[inside] - place * size).tolist()
    found: list[tuple[float, list[int]]] = []
    for c, mass in enumerate(groups.column_mass[place].tolist()):
        tokens = [s for s in torch.nonzero(column == c).flatten().tolist() if s not in members]
        found.append((mass, tokens))
    for g in torch.nonzero(groups.branch_position == place).flatten().tolist():
        tokens = [s for s, m in zip(members, groups.member_branch[inside].tolist(), strict=True) if m == g]
        if groups.others is not None and (z := g - len(groups.branch_mass) + len(groups.others)) >= 0:
            tokens = torch.nonzero(groups.others[z]).flatten().tolist()
            found = [(mass, [s for s in others if s not in tokens]) for mass, others in found]
        found.append((float(groups.branch_mass[g]), tokens))
    return found
