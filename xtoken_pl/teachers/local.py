"""A teacher's frozen model, on the device only while it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from xtoken_pl.batch import TeacherBatch, TokenBatch
from xtoken_pl.losses import RowContent, SpanLoss
from xtoken_pl.models.causal_lm import LoadedModel, hidden_states, load_model
from xtoken_pl.models.head import Head
from xtoken_pl.models.sharding import compile_layers, is_sharded, release, shard
from xtoken_pl.scoring.tasks import HiddenRows, rows_of
from xtoken_pl.specs import Teacher
from xtoken_pl.teachers.branches import CachedBranches, check_branches
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

# B sequences, T tokens, H hidden size


class FrozenModel:
    """Runs a model without gradients, wherever its weights are stored.

    - By default the model moves to the device of its first input and stays there.
    - ``cpu_offload``: the weights are in host memory and are copied to the device during :meth:`run`.
    - Sharded (:func:`xtoken_pl.models.sharding.shard`): FSDP gathers one layer at a time.

    Args:
        loaded: The model and its head.
        cpu_offload: Keep the weights in host memory; ignored for a sharded model.
    """

    def __init__(self, loaded: LoadedModel, *, cpu_offload: bool = False) -> None:
        self.model: PreTrainedModel = loaded.model.requires_grad_(False)
        self.head = loaded.head
        #: Context in which every forward pass runs; a callback sets it to time the passes.
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext
        self._on_host = _host_copies(self.model) if cpu_offload and not is_sharded(self.model) else None

    @torch.no_grad()
    def run(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> tuple[Tensor, Head]:
        """Returns hidden states ``[B, T, H]`` and the head for them, which is valid until :meth:`release`."""
        with self.around(), self._on_device(input_ids.device):
            hidden = hidden_states(self.model, input_ids, attention_mask, position_ids)
            return hidden, self.head if self._on_host is None else self.head.fixed()

    @property
    def gives(self) -> RowContent:
        """Everything."""
        return RowContent("all", hidden_states=True, branches=True)

    def rows(self, view: TeacherBatch) -> HiddenRows:
        """Runs the model over the sequences of a batch."""
        tokens = view.tokens
        return rows_of(tokens, *self.run(tokens.input_ids, tokens.attention_mask, tokens.position_ids))

    def branches(self, tokens: TokenBatch, temperature: float) -> CachedBranches:
        """Runs the model over the sequences of a batch, and keeps what it needs to read further tokens behind them."""
        device = tokens.input_ids.device

        @contextmanager
        def running() -> Iterator[None]:
            with self.around(), self._on_device(device):
                yield

        with self._on_device(device):
            head = self.head if self._on_host is None else self.head.fixed()
        return CachedBranches(self.model, head, tokens, temperature, running)

    @contextmanager
    def _on_device(self, device: torch.device) -> Iterator[None]:
        if self._on_host is None and not is_sharded(self.model) and self.model.device != device:
            self.model.to(device)
        for weight, host in self._on_host or ():
            weight.data = host.to(device, copy=True, non_blocking=True)
        try:
            yield
        finally:
            for weight, host in self._on_host or ():
                weight.data = host

    @property
    def is_sharded(self) -> bool:
        """Whether all processes have to take part in every forward pass."""
        return is_sharded(self.model)

    def release(self) -> None:
        """Frees the weights that a sharded model has gathered for its head; called after the losses."""
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
    """Loads a teacher's model and prepares it for forward passes.

    Args:
        name: Name of the teacher, for messages.
        source: Specification of the teacher.
        vocabulary: Vocabulary of the teacher.
        mesh: Processes to shard the model over; a quantized model is not sharded.
        device: Device on which quantized weights are created.
        separates: Whether the model must keep packed documents separate.

    Raises:
        UserError: If the model does not exist, its head cannot be used, or quantization needs a missing package.
    """
    loaded = load_model(source, vocabulary, role=f"teacher {name!r}", device=device, separates=separates)
    loaded.model.requires_grad_(False)
    if isinstance(source.loss, SpanLoss) and source.loss.row_needs.branches:
        _check_lookahead(name, source, loaded, mesh, separates=separates)
    if source.compile:
        compile_layers(loaded.model)
    if mesh is not None and source.quantization is None:
        shard(loaded.model, mesh, cpu_offload=source.cpu_offload)
    return FrozenModel(loaded, cpu_offload=source.cpu_offload)


def _check_lookahead(
    name: str, source: Teacher, loaded: LoadedModel, mesh: DeviceMesh | None, *, separates: bool
) -> None:
    if mesh is not None and source.quantization is None:
        raise UserError(
            f"with lookahead a teacher must be whole in every process, but teacher {name!r} is sharded; run it under "
            "DDP, or leave out lookahead"
        )
    if separates:
        raise UserError(
            f"lookahead (teacher {name!r}) reads windows of one document, got data.packing=separate; set data.packing "
            "to joined or none, or leave out lookahead"
        )
    check_branches(loaded.model, loaded.head, name=name)


def _host_copies(model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Moves all weights and buffers to host memory (page-locked if there is a GPU); returns pairs of both."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for tensor in [*model.parameters(), *model.buffers()]:
        host = tensor.detach().cpu()
        host = host.pin_memory() if torch.cuda.is_available() else host
        tensor.data = host
        pairs.append((tensor, host))
    return pairs
