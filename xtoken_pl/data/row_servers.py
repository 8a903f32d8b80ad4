"""Rows of teachers behind a server, which are asked for when a batch is made."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from xtoken_pl.batch import DistillBatch, KnownRows, TokenBatch
from xtoken_pl.utilities.threads import call_in_threads


class RowServer(Protocol):
    """A server of one teacher; see :class:`xtoken_pl.teachers.served.teacher.ServedTeacher`."""

    def ask(self, batches: Sequence[TokenBatch], abandoned: threading.Event | None = None) -> Sequence[KnownRows]:
        """Returns all rows of each batch; gives up when ``abandoned`` is set."""


def add_served_rows(batches: Sequence[DistillBatch], servers: Mapping[str, RowServer]) -> None:
    """Adds the rows of some batches, which the servers of all teachers are asked for at the same time.

    Args:
        batches: Batches on the CPU, changed in place.
        servers: Server of each served teacher, by name.
    """

    abandoned = threading.Event()

    def ask(name: str) -> None:
        views = [view for batch in batches if len((view := batch.teachers[name]).spans)]
        rows = servers[name].ask([view.tokens for view in views], abandoned)
        for view, known in zip(views, rows, strict=True):
            view.known = known

    call_in_threads(ask, list(servers), len(servers), abandoned)
