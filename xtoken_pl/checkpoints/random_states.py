"""The random states of every process, for checkpoints: dropout and the like go on where they stopped."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.utilities.processes import gather

#: Of one process, by generator; of types that torch.load takes with ``weights_only``.
RandomState = dict[str, Any]


def gather_random_states() -> list[RandomState]:
    """Those of Python, numpy, torch and this process's GPU, of every process; to be called by all of them."""
    return gather(_random_state())


def restore_random_states(states: list[RandomState], *, rank: int, num_processes: int, step: int) -> None:
    """Puts this process's states back.

    Those of another number of processes cannot be continued: each process is then seeded anew, from the run's seed,
    the step and its rank, with a warning.
    """
    if len(states) == num_processes:
        _set_random_state(states[rank])
        return
    rank_zero_warn(
        f"the checkpoint holds the random states of {len(states)} processes, and {num_processes} go on: they are "
        "seeded anew, so that what is drawn while training (dropout) is not what the same number would have drawn"
    )
    seed = np.random.SeedSequence((int(os.environ.get("PL_GLOBAL_SEED", 0)), step, rank)).generate_state(1)[0]
    random.seed(int(seed))
    np.random.seed(seed)
    torch.manual_seed(int(seed))


def _random_state() -> RandomState:
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    state = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: RandomState) -> None:
    numpy_state = dict(state["numpy"])
    numpy_state["state"] = {**numpy_state["state"], "key": numpy_state["state"]["key"].numpy().astype(np.uint32)}
    random.setstate(state["python"])
    np.random.set_state(numpy_state)
    torch.set_rng_state(state["torch"].cpu())
    if ("cuda" in state) != torch.cuda.is_available():
        rank_zero_warn("the checkpoint and this run are not both on GPUs: what is drawn on a device is drawn anew")
    elif "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu())
