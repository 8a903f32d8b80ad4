"""What a cache knows of a server's model, whose weights nobody here has seen."""

from __future__ import annotations

from xtoken_pl.specs import Teacher

#: Dtype of the teacher in the manifest of a cache that was built from a server.
SERVED_DTYPE = "server"


def served_model(teacher: Teacher) -> str:
    """Name of a teacher's model at its server."""
    assert teacher.server is not None
    return teacher.server.model or teacher.model
