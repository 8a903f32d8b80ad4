"""Loads a student and prepares it for training: adapter, checkpointing, compilation, sharding."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh

from xtoken_pl.models.adapters import add_adapter, keep_adapter_only
from xtoken_pl.models.causal_lm import LoadedModel, load_model
from xtoken_pl.models.quantized_files import is_quantized
from xtoken_pl.models.reach import freeze_unreached
from xtoken_pl.models.router_loss import RouterLoss
from xtoken_pl.models.sharding import compile_layers, shard
from xtoken_pl.models.tensor_parallel import tensor_mesh
from xtoken_pl.models.tensor_parallel_plan import check_can_be_split
from xtoken_pl.specs import Student
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError


@dataclass(frozen=True)
class PlacedStudent(LoadedModel):
    """A student that is ready for training."""

    router_loss: RouterLoss | None


def default_device() -> torch.device:
    """Returns the accelerator if there is one, else the CPU; for commands that run without a Trainer."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def place_student(
    source: Student,
    vocabulary: CanonicalVocabulary,
    mesh: DeviceMesh | None,
    device: torch.device | str,
    *,
    separates: bool = False,
) -> PlacedStudent:
    """Loads the student and prepares it for training.

    Args:
        source: Specification of the student.
        vocabulary: The student's vocabulary.
        mesh: Processes to shard the student over; None for no sharding.
        device: Device on which weights are quantized.
        separates: Whether packed documents must not affect each other.

    Raises:
        UserError: If the model cannot be loaded, its head cannot be used, its adapter does not fit, a library is not
            installed, a quantized student would be sharded, the model cannot be split, or processes would start from
            different weights.
    """
    if mesh is not None and source.quantization is not None:
        raise UserError(
            f"a quantized student cannot be sharded, got quantization={source.quantization!r} with a strategy that "
            "shards it; use strategy ddp, or leave quantization out"
        )
    starts_at_random = source.weights == "random" or source.adapter is not None
    if mesh is not None and starts_at_random and "PL_GLOBAL_SEED" not in os.environ:
        raise UserError(
            "a sharded student with random weights or with an adapter needs a seed that all processes share, got none; "
            "set seed_everything to a number"
        )
    loaded = load_model(source, vocabulary, role="student", device=device, separates=separates)
    if mesh is not None and is_quantized(loaded.model):
        raise UserError(
            f"a quantized student cannot be sharded, and the files of {source.model!r} are quantized; use strategy "
            "ddp, or give a model that is not quantized"
        )
    if (group := tensor_mesh(mesh)) is not None:
        check_can_be_split(loaded.model, group.size(), role="student")
    coefficient = source.router_aux_loss_coef
    router_loss = RouterLoss(loaded.model, coefficient) if coefficient else None
    if source.adapter is not None:
        add_adapter(loaded.model, source.adapter)
        keep_adapter_only(loaded.model)
    freeze_unreached(loaded.model)
    if source.activation_checkpointing:
        loaded.model.activation_checkpointing_enable({"use_reentrant": False})
    if source.compile:
        compile_layers(loaded.model)
    if mesh is not None:
        shard(loaded.model, mesh)
    loaded.model.train()
    return PlacedStudent(loaded.model, loaded.head, router_loss)
