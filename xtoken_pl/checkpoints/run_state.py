"""What a run adds to its checkpoints, and takes up from the one that it goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.checkpoints.epoch_end import close_finished_epoch
from xtoken_pl.checkpoints.identity import RunIdentity, check_student, describe_student
from xtoken_pl.checkpoints.io import without_tensors
from xtoken_pl.checkpoints.layout import number_by_module, share_tied_weights
from xtoken_pl.checkpoints.random_states import RandomState, gather_random_states, restore_random_states
from xtoken_pl.specs import Student
from xtoken_pl.tokenization import CanonicalVocabulary

_KEY = "xtoken_pl"


def stored_identity(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a checkpoint says of its run (:meth:`RunIdentity.to_dict`); None if it says nothing."""
    state = checkpoint.get(_KEY)
    return None if state is None else state["identity"]


def check_student_of_checkpoint(path: Path, student: Student, vocabulary: CanonicalVocabulary) -> None:
    """Compares a student with that of a checkpoint before anything is loaded; says nothing where the file does not.

    A sharded run takes the weights before the module is asked whether they are its own.

    Raises:
        ValueError: If it has another tokenizer, or an adapter of another kind or on other weights.
    """
    if path.exists():
        check_student_of_state(without_tensors(path), student, vocabulary)


def check_student_of_state(checkpoint: Mapping[str, Any], student: Student, vocabulary: CanonicalVocabulary) -> None:
    """The same of a checkpoint's content. Training compares the whole run (:meth:`RunState.load`)."""
    if (saved := stored_identity(checkpoint)) is not None:
        check_student(saved["student"], describe_student(student, vocabulary))


class RunState:
    """Who teaches whom, and the random states of all processes."""

    def __init__(self) -> None:
        self._random_states: list[RandomState] = []

    def save(self, checkpoint: dict[str, Any], identity: RunIdentity, module: pl.LightningModule) -> None:
        """Adds it to a checkpoint, and gives that one layout for any number of processes; all have to call it."""
        trainer = module.trainer
        checkpoint[_KEY] = {"identity": identity.to_dict(), "random_states": gather_random_states()}
        if trainer.accumulate_grad_batches > 1 and trainer.fit_loop._should_accumulate():
            rank_zero_warn(
                f"a checkpoint is saved within the {trainer.accumulate_grad_batches} batches of an optimizer step: a "
                "run that goes on from it lacks their gradients. Save, and validate, at multiples of "
                "accumulate_grad_batches"
            )
        share_tied_weights(checkpoint["state_dict"], module)
        # Optimizers are left out where only weights are stored, and by all processes but the first one.
        for state, optimizer in zip(checkpoint.get("optimizer_states", []), trainer.optimizers, strict=False):
            if state:
                number_by_module(state, optimizer, module)

    def load(self, checkpoint: dict[str, Any], identity: RunIdentity) -> None:
        """Takes it from the checkpoint that training goes on from.

        Raises:
            ValueError: If it was written with other teachers.
        """
        close_finished_epoch(checkpoint)
        saved = stored_identity(checkpoint)
        if saved is None:
            rank_zero_warn("the checkpoint does not say who its teachers were: whether they are ours is not checked")
            return
        identity.check_continues(saved)
        self._random_states = checkpoint[_KEY]["random_states"]

    def restore(self, trainer: pl.Trainer) -> None:
        """Puts random states back; to be called when nothing is drawn any more before the first batch."""
        if self._random_states:
            restore_random_states(
                self._random_states,
                rank=trainer.global_rank,
                num_processes=trainer.world_size,
                step=trainer.global_step,
            )
        self._random_states = []
