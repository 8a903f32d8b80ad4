"""Checkpoints that survive sudden death, hold all that a run needs to resume exactly, and are verified when read."""

from xtoken_pl.checkpoints.identity import DataIdentity, RunIdentity, describe_student, holds_adapter, stored_identity
from xtoken_pl.checkpoints.io import AtomicCheckpointIO, check_whole
from xtoken_pl.checkpoints.last import last_checkpoint
from xtoken_pl.checkpoints.run_state import RunState, drop_unused_projections
from xtoken_pl.checkpoints.verify import DATA_KEY, Run, Stage, verify

__all__ = [
    "DATA_KEY",
    "AtomicCheckpointIO",
    "DataIdentity",
    "Run",
    "RunIdentity",
    "RunState",
    "Stage",
    "check_whole",
    "describe_student",
    "drop_unused_projections",
    "holds_adapter",
    "last_checkpoint",
    "stored_identity",
    "verify",
]
