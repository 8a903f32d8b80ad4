"""State that a run adds to its checkpoints and restores when training resumes."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from xtoken_pl.checkpoints.identity import RUN_KEY, RunIdentity
from xtoken_pl.checkpoints.verify import learned_projections, stored_projections
from xtoken_pl.utilities.lightning_internals import (
    num_batches_in_open_step,
    rewind_open_step,
    settle_epoch,
)
from xtoken_pl.utilities.processes import gather
from xtoken_pl.utilities.seeds import run_seed

#: Random state of one process, by generator; its types are accepted by torch.load with ``weights_only``.
RandomState = dict[str, Any]


class RunState:
    """Saves the identity of a run and the random states of its processes in checkpoints, and restores the latter."""

    def __init__(self) -> None:
        self._random_states: list[RandomState] = []
        self._group_size = 1
        self._before_step: RandomState | None = None

    def begin_step(self) -> None:
        """Notes the random state at the beginning of an optimizer step of several batches."""
        self._before_step = random_state()

    def save(
        self, checkpoint: dict[str, Any], identity: RunIdentity, module: pl.LightningModule, *, group_size: int
    ) -> None:
        """Adds the state to a checkpoint, and makes the layout independent of the number of processes.

        A checkpoint that is saved within an optimizer step holds the progress at the beginning of the step, because it
        holds no gradients. Every process has to call this method.

        Args:
            checkpoint: Checkpoint that Lightning has made, to be changed.
            identity: Student, teachers and settings of the run.
            module: The module that is trained.
            group_size: Number of processes of a tensor-parallel group; 1 if matrices are not split.
        """
        trainer = module.trainer
        randomness = random_state()
        if num_batches := num_batches_in_open_step(trainer):
            rewind_open_step(checkpoint, num_batches)
            randomness = self._before_step or randomness
        checkpoint[RUN_KEY] = {"identity": asdict(identity), "random_states": gather(randomness)}
        if group_size > 1:
            checkpoint[RUN_KEY]["group_size"] = group_size
        share_tied_weights(checkpoint["state_dict"], module)
        # There are no optimizer states if only weights are saved, and on all processes but the first one.
        for state, optimizer in zip(checkpoint.get("optimizer_states", []), trainer.optimizers, strict=False):
            if state:
                number_by_module(state, optimizer, module)

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Reads the state from the checkpoint that training resumes from, which has been verified."""
        settle_epoch(checkpoint)
        stored = checkpoint.get(RUN_KEY, {})
        self._random_states, self._group_size = stored.get("random_states", []), stored.get("group_size", 1)

    def restore(self, *, rank: int, num_processes: int, step: int, group_size: int) -> None:
        """Restores the random states of this process; called when nothing more is drawn before the first batch.

        The states of another number of processes, or of groups of another size, cannot be used: each process is then
        seeded from the run's seed, the step and its rank, with a warning. The processes of a tensor-parallel group get
        the state of its first process, since dropout of the states that all of them have must be the same. Then every
        process has to call this method.
        """
        states, self._random_states = self._random_states, []
        if len(states) == num_processes and self._group_size == group_size:
            set_random_state(states[rank])
        elif states:
            rank_zero_warn(
                f"the checkpoint holds the random states of {_counted(len(states), self._group_size)}, and "
                f"{_counted(num_processes, group_size)} resume from it: they are seeded anew, so that random draws of "
                "training (dropout) differ from those of an uninterrupted run"
            )
            sequence = np.random.SeedSequence((run_seed(), step, rank))
            seed = int(sequence.generate_state(1)[0])
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
        if group_size > 1:
            set_random_state(gather(random_state())[rank - rank % group_size])


def _counted(num_processes: int, group_size: int) -> str:
    return f"{num_processes} processes" + (f" in groups of {group_size}" if group_size > 1 else "")


def drop_unused_projections(state: dict[str, Any], module: nn.Module) -> None:
    """Removes learned projections that ``module`` does not use from a ``state_dict``, with a warning."""
    if not (unused := sorted(stored_projections(state) - learned_projections(module).keys())):
        return
    teachers = ", ".join(repr(name.split(".")[1]) for name in unused)
    rank_zero_warn(f"the learned projection of teacher {teachers} in the checkpoint is not used by this run")
    for key in [key for key in state if key.startswith(tuple(f"{name}." for name in unused))]:
        del state[key]


def share_tied_weights(state: dict[str, Any], module: nn.Module) -> None:
    """Makes entries of a ``state_dict`` that belong to the same parameter share one tensor, which is stored once.

    Args:
        state: ``state_dict`` of ``module``; gathering a sharded one copies tied weights.
        module: Module of the ``state_dict``.
    """
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in state:
            state[name] = state[first.setdefault(id(parameter), name)]


def number_by_module(state: dict[str, Any], optimizer: Optimizer, module: nn.Module) -> None:
    """Numbers the parameters of an optimizer's state by their order in ``module.parameters()``.

    A sharded run writes and reads these numbers. torch writes numbers by the optimizer's groups, and reads by their
    order alone. With the numbers of the module, each kind of run reads the checkpoints of the other.

    Args:
        state: ``state_dict`` of the optimizer, numbered by groups, or by the module already. That of a distributed
            checkpoint is keyed by names, and not changed.
        optimizer: Optimizer of the state.
        module: Module whose parameters are numbered.
    """
    if any(isinstance(number, str) for number in state["state"]):
        return
    place = {id(parameter): index for index, parameter in enumerate(module.parameters())}
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    new: dict[int, int] = {}
    for stored, group in groups:
        new |= {old: place[id(p)] for old, p in zip(stored["params"], group["params"], strict=True)}
    state["state"] = {new[number]: value for number, value in state["state"].items()}
    for stored in state["param_groups"]:
        stored["params"] = [new[number] for number in stored["params"]]


def random_state() -> RandomState:
    """Returns the states of Python, numpy, torch and the GPU of this process."""
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    state = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: RandomState) -> None:
    """Sets the states of :func:`random_state`."""
    numpy_state = dict(state["numpy"])
    numpy_state["state"] = {**numpy_state["state"], "key": numpy_state["state"]["key"].numpy().astype(np.uint32)}
    random.setstate(state["python"])
    np.random.set_state(numpy_state)
    torch.set_rng_state(state["torch"].cpu())
    if ("cuda" in state) != torch.cuda.is_available():
        rank_zero_warn(
            "the checkpoint and this run are not both on GPUs: the random state of the device is not restored"
        )
    elif "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu())
