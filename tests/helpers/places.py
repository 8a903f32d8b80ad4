"""A tensor-parallel group of which one process runs at a time: what it does not send can be added up by a test."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest


class Place(NamedTuple):
    """Stands for the group of a process."""

    number: int
    num_processes: int

    def rank(self) -> int:
        return self.number

    def size(self) -> int:
        return self.num_processes


def alone_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes processes send nothing, so that each keeps the results of its own share."""

    def nothing(tensor: Any, group: Place) -> None:
        assert group.size() > 1

    monkeypatch.setattr("torch.distributed.all_reduce", nothing)
    monkeypatch.setattr("xtoken_pl.scoring.shares.gather", lambda own, group: [own] * group.size())
