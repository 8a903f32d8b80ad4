"""Rows of teachers behind a server, which are asked for when a batch is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from xtoken_pl.batch import DistillBatch, KnownRows, TokenBatch


class RowServer(Protocol):
    """A server of one teacher; see :class:`xtoken_pl.teachers.served.teacher.ServedTeacher`."""

    def ask(self, batches: Sequence[TokenBatch]) -> Sequence[KnownRows]:
        """Returns all rows of each batch."""


def add_served_rows(batches: Sequence[DistillBatch], servers: Mapping[str, RowServer]) -> None:
    """Adds the rows of some batches, which the servers of all teachers are asked for at the same time.

    Args:
        batches: Batches on the CPU, changed in place.
        servers: Server of each served teacher, by name.
    """

    def ask(name: str) -> None:
        views = [view for batch in batches if len((view := batch.teachers[name]).spans)]
        for view, known in zip(views, servers[name].ask([view.tokens for view in views]), strict=True):
            view.known = known

    if servers:
        with ThreadPoolExecutor(len(servers)) as threads:
            list(threads.map(ask, servers))
