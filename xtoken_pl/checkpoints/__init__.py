"""Checkpoints that survive sudden death, and what they hold so that a run goes on exactly."""

from xtoken_pl.checkpoints.adapters import check_weights_of_student, holds_adapter
from xtoken_pl.checkpoints.identity import RunIdentity
from xtoken_pl.checkpoints.io import AtomicCheckpointIO, check_of_a_run, check_whole
from xtoken_pl.checkpoints.last import check_processes_agree, last_checkpoint
from xtoken_pl.checkpoints.projections import check_learned_projections
from xtoken_pl.checkpoints.run_state import (
    RunState,
    check_student_of_checkpoint,
    check_student_of_state,
    stored_identity,
)

__all__ = [
    "AtomicCheckpointIO",
    "RunIdentity",
    "RunState",
    "check_learned_projections",
    "check_of_a_run",
    "check_processes_agree",
    "check_student_of_checkpoint",
    "check_student_of_state",
    "check_weights_of_student",
    "check_whole",
    "holds_adapter",
    "last_checkpoint",
    "stored_identity",
]
