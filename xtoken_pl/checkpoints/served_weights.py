"""Fingerprints of a server's model, whose weights nobody here has seen: its name and what it says of a probe text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.checkpoints.fingerprints import is_of_weights
from xtoken_pl.utilities.errors import UserError

_PREFIX = "server:"
#: Largest mean difference, nats, between one model's log-probabilities of the probe: a server that computes in 16 bits
#: answers the same request differently each time.
MAX_PROBE_DIFFERENCE = 0.1


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


def is_of_server(*fingerprints: str | None) -> bool:
    """Whether one of some fingerprints is not that of weights; None is that of a server that was not asked."""
    return not all(weights is not None and is_of_weights(weights) for weights in fingerprints)


def check_served_weights(name: str, before: str | None, ours: str | None) -> None:
    """Compares the fingerprints of a teacher, at least one of which is that of a server; warns if it is not possible.

    Args:
        name: Name of the teacher.
        before: Fingerprint in the checkpoint.
        ours: Fingerprint in this run.

    Raises:
        UserError: If the servers' log-probabilities of the probe differ.
    """
    if before == ours:
        return
    difference = float("inf")
    if before is not None and ours is not None and not (is_of_weights(before) or is_of_weights(ours)):
        difference = probe_difference(before, ours)
    if difference == float("inf"):
        where = "in the checkpoint" if is_of_server(before) else "in this run"
        rank_zero_warn(
            f"the weights of teacher {name!r} could not be compared with the checkpoint's, since {where} a server has "
            "them"
        )
    elif difference > MAX_PROBE_DIFFERENCE:
        raise UserError(
            f"the server of teacher {name!r} must have the weights that the run began with, but its log-probabilities "
            f"of a probe text differ by {difference:.2g} nats in the mean from the checkpoint's; start it with that "
            "model"
        )
