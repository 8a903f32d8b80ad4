"""What a cache knows of a server's model, whose weights nobody here has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xtoken_pl.specs import Teacher

#: Dtype of the teacher in the manifest of a cache that was built from a server.
SERVED_DTYPE = "server"
_PREFIX = "server:"


def served_model(teacher: Teacher) -> str:
    """Name of a teacher's model at its server."""
    assert teacher.server is not None
    return teacher.server.model or teacher.model


def served_fingerprint(model: str, log_probs: Sequence[float]) -> str:
    """Identifies a server's model by its name and its log-probabilities of a probe's tokens."""
    return f"{_PREFIX}{model}:{','.join(f'{value:.2f}' for value in log_probs)}"


def model_of_fingerprint(fingerprint: str) -> str | None:
    """Name of a server's model; None if the fingerprint is that of weights."""
    return fingerprint.removeprefix(_PREFIX).rpartition(":")[0] if fingerprint.startswith(_PREFIX) else None


def probe_difference(fingerprint: str, other: str) -> float:
    """Mean difference of the log-probabilities in two fingerprints, nats; inf if the probes differ."""
    ours, theirs = (np.array(text.rpartition(":")[2].split(","), dtype=float) for text in (fingerprint, other))
    return float(np.abs(ours - theirs).mean()) if len(ours) == len(theirs) else float("inf")
