"""Checkpoints that are written atomically, hold everything for an exact resume, and are verified when read."""

from xtoken_pl.checkpoints.identity import (
    SOURCES_KEY,
    DataIdentity,
    describe_student,
    holds_adapter,
    stored_chat_template,
    stored_identity,
)
from xtoken_pl.checkpoints.io import AtomicCheckpointIO, check_whole
from xtoken_pl.checkpoints.last import last_checkpoint
from xtoken_pl.checkpoints.verify import DATA_KEY, Run, Stage, verify

__all__ = [
    "DATA_KEY",
    "SOURCES_KEY",
    "AtomicCheckpointIO",
    "DataIdentity",
    "Run",
    "Stage",
    "check_whole",
    "describe_student",
    "holds_adapter",
    "last_checkpoint",
    "stored_chat_template",
    "stored_identity",
    "verify",
]
