"""A teacher's model: never trained, and on the device only when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from xtoken_pl.models.causal_lm import LoadedModel, hidden_states, load_model
from xtoken_pl.models.head import Head
from xtoken_pl.models.sharding import compile_layers, is_sharded, release, shard
from xtoken_pl.specs import Teacher
from xtoken_pl.tokenization import CanonicalVocabulary

# B sequences, T tokens, H hidden size


class FrozenModel:
    """Runs a model without gradients, wherever its weights lie.

    - Plain: it follows its input to the device at the first use, and stays.
    - ``cpu_offload``: the weights lie in the host's memory, and copies of them on the device during :meth:`run`.
    - Sharded (:func:`xtoken_pl.models.sharding.shard`): FSDP gathers layer by layer.

    Args:
        loaded: The model and its head.
        cpu_offload: For a model that is not sharded.
    """

    def __init__(self, loaded: LoadedModel, *, cpu_offload: bool = False) -> None:
        self.model: PreTrainedModel = loaded.model.requires_grad_(False)
        self.head = loaded.head
        #: What every pass runs in; a callback that times passes puts its own here.
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext
        self._on_host = _host_copies(self.model) if cpu_offload and not is_sharded(self.model) else None

    @torch.no_grad()
    def run(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> tuple[Tensor, Head]:
        """The hidden states ``[B, T, H]``, and the head for them, which can be used until :meth:`release`."""
        with self.around():
            return self._run(input_ids, attention_mask, position_ids)

    def _run(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None) -> tuple[Tensor, Head]:
        if self._on_host is None:
            if not is_sharded(self.model) and self.model.device != input_ids.device:
                self.model.to(input_ids.device)
            return hidden_states(self.model, input_ids, attention_mask, position_ids), self.head
        for weight, host in self._on_host:
            weight.data = host.to(input_ids.device, copy=True, non_blocking=True)
        try:
            return hidden_states(self.model, input_ids, attention_mask, position_ids), self.head.fixed()
        finally:
            for weight, host in self._on_host:
                weight.data = host

    def release(self) -> None:
        """Frees what a sharded model has gathered for its head; called when the losses are done with it."""
        release(self.model)


def place_teacher(
    name: str,
    source: Teacher,
    vocabulary: CanonicalVocabulary,
    mesh: DeviceMesh | None,
    device: torch.device | str,
    *,
    separates: bool = False,
) -> FrozenModel:
    """A teacher, ready to be asked.

    Args:
        name: For messages.
        mesh: The processes to shard it over; a quantized one stays whole.
        device: Where quantized weights are made.
        separates: Whether it has to keep packed documents apart.

    Raises:
        ValueError: If there is no such model, or its head cannot be used.
        ImportError: If it is to be quantized, and bitsandbytes is not installed.
    """
    loaded = load_model(source, vocabulary, role=f"teacher {name!r}", device=device, separates=separates)
    loaded.model.requires_grad_(False)
    if source.compile:
        compile_layers(loaded.model)
    if mesh is not None and source.quantization is None:
        shard(loaded.model, mesh, cpu_offload=source.cpu_offload)
    return FrozenModel(loaded, cpu_offload=source.cpu_offload)


def _host_copies(model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Every weight and buffer, and its data in the host's memory (page-locked where there is a GPU)."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for tensor in [*model.parameters(), *model.buffers()]:
        host = tensor.detach().cpu()
        host = host.pin_memory() if torch.cuda.is_available() else host
        tensor.data = host
        pairs.append((tensor, host))
    return pairs
