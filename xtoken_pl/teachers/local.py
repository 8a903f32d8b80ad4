"""A teacher's frozen model, on the device only while it is needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from xtoken_pl.batch import TeacherBatch, TokenBatch
from xtoken_pl.losses import RowContent, SpanLoss
from xtoken_pl.models.causal_lm import LoadedModel, check_model, hidden_states
from xtoken_pl.models.frozen_adapters import load_adapter, only_adds, use_adapter
from xtoken_pl.models.head import Head
from xtoken_pl.models.loading import base_model, load_causal_lm
from xtoken_pl.models.quantized_files import is_quantized
from xtoken_pl.models.sharding import compile_layers, is_sharded, release, shard
from xtoken_pl.models.tensor_parallel import tensor_mesh
from xtoken_pl.models.tensor_parallel_plan import check_can_be_split
from xtoken_pl.scoring.tasks import HiddenRows, rows_of
from xtoken_pl.specs import Teacher
from xtoken_pl.teachers.branches import CachedBranches, check_branches
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

# B sequences, T tokens, H hidden size


class SharedWeights:
    """The frozen weights of one model, which several teachers may run, each with an adapter of its own.

    - By default the model moves to the device of its first input and stays there.
    - ``cpu_offload``: the weights are in host memory and are copied to the device during a pass.
    - Sharded (:func:`xtoken_pl.models.sharding.shard`): FSDP gathers one layer at a time.

    Args:
        model: The model.
        cpu_offload: Keep the weights in host memory; ignored for a sharded model.
    """

    def __init__(self, model: PreTrainedModel, *, cpu_offload: bool = False) -> None:
        self.model = model.requires_grad_(False)
        self._on_host = _host_copies(model) if cpu_offload and not is_sharded(model) else None

    @property
    def is_offloaded(self) -> bool:
        """Whether the weights are on the device during a pass only."""
        return self._on_host is not None

    @contextmanager
    def on(self, device: torch.device, adapter: str | None) -> Iterator[None]:
        """Has the weights on ``device``, and an adapter or none in use."""
        if self._on_host is None and not is_sharded(self.model) and self.model.device != device:
            self.model.to(device)
        use_adapter(self.model, adapter)
        for weight, host in self._on_host or ():
            weight.data = host.to(device, copy=True, non_blocking=True)
        try:
            yield
        finally:
            for weight, host in self._on_host or ():
                weight.data = host


class FrozenModel:
    """Runs a model without gradients, wherever its weights are stored.

    Args:
        weights: The model.
        head: Its head, as the teacher's adapter has it.
        adapter: Name of the teacher's adapter in the model; None uses none.
    """

    def __init__(self, weights: SharedWeights, head: Head, adapter: str | None = None) -> None:
        self.model, self.head = weights.model, head
        self._weights, self._adapter = weights, adapter
        #: Context in which every forward pass runs; a callback sets it to time the passes.
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext

    @torch.no_grad()
    def run(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> tuple[Tensor, Head]:
        """Returns hidden states ``[B, T, H]`` and the head for them, which is valid until :meth:`release`."""
        with self.around(), self._weights.on(input_ids.device, self._adapter):
            hidden = hidden_states(self.model, input_ids, attention_mask, position_ids)
            return hidden, self._current_head()

    @property
    def gives(self) -> RowContent:
        """Row contents that a loaded model provides: all of them."""
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
            with self.around(), self._weights.on(device, self._adapter):
                yield

        with self._weights.on(device, self._adapter):
            head = self._current_head()
        return CachedBranches(self.model, head, tokens, temperature, running)

    def _current_head(self) -> Head:
        return self.head.fixed() if self._weights.is_offloaded else self.head

    @property
    def is_sharded(self) -> bool:
        """Whether all processes have to take part in every forward pass."""
        return is_sharded(self.model)

    def release(self) -> None:
        """Frees the weights that a sharded model has gathered for its head; called after the losses."""
        release(self.model)


def place_teachers(
    teachers: Mapping[str, Teacher],
    vocabularies: Mapping[str, CanonicalVocabulary],
    mesh: DeviceMesh | None,
    device: torch.device | str,
    *,
    separates: bool = False,
) -> dict[str, FrozenModel]:
    """Loads the models of teachers and prepares them for forward passes; teachers of one model share its weights.

    Args:
        teachers: Specifications by name.
        vocabularies: Vocabularies by name.
        mesh: Processes to shard the models over; a quantized model is not sharded.
        device: Device on which quantized weights are created.
        separates: Whether the models must keep packed documents separate.

    Raises:
        UserError: If a model or adapter does not exist, its head cannot be used, or it cannot be split, or a package is
            missing.
    """
    placed: dict[str, FrozenModel] = {}
    group = tensor_mesh(mesh)
    for names in groups_of(teachers):
        sources = {name: teachers[name] for name in names}
        first = sources[names[0]]
        model, adapters = _load(sources, device)
        if group is not None and not is_quantized(model):
            check_can_be_split(model, group.size(), role=_role(sources))
        loaded: dict[str, LoadedModel] = {}
        for name, source in sources.items():
            role = f"teacher {name!r}"
            use_adapter(model, adapters[name])
            loaded[name] = check_model(model, vocabularies[name], role=role, separates=separates)
            if isinstance(source.loss, SpanLoss) and source.loss.row_needs.branches:
                _check_lookahead(name, loaded[name], mesh, separates=separates)
        if first.compile:
            compile_layers(model)
        if mesh is not None and is_quantized(model):
            rank_zero_info(f"{_role(sources)}: every process holds the whole model, since its weights are quantized")
        elif mesh is not None:
            shard(model, mesh, cpu_offload=first.cpu_offload)
        shared = SharedWeights(model, cpu_offload=first.cpu_offload)
        placed |= {name: FrozenModel(shared, loaded[name].head, adapters[name]) for name in names}
    return {name: placed[name] for name in teachers}


def groups_of(teachers: Mapping[str, Teacher]) -> list[list[str]]:
    """Groups the names of teachers that share their weights, in the order of the first of each group."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, source in teachers.items():
        groups.setdefault(_weights_of(source), []).append(name)
    return list(groups.values())


def _weights_of(source: Teacher) -> tuple[object, ...]:
    """Lists what teachers have to have in common to share their weights."""
    alone = source.adapter if source.adapter is not None and not only_adds(source.adapter) else None
    files = source.model, source.revision, source.trust_remote_code, alone
    return *files, source.dtype, source.quantization, source.attn_implementation, source.compile, source.cpu_offload


def _role(names: Collection[str]) -> str:
    return f"teacher{'s' if len(names) > 1 else ''} {' and '.join(map(repr, names))}"


def _load(sources: Mapping[str, Teacher], device: torch.device | str) -> tuple[PreTrainedModel, dict[str, str | None]]:
    """Loads the model of teachers that share it, with all adapters, and names the adapter of each teacher."""
    first, *others = sources
    role = _role(sources)
    for name, source in sources.items():
        base_model(source, role=f"teacher {name!r}")  # raises for an adapter on an adapter
    model = load_causal_lm(sources[first], role=role, device=device)
    given = next(iter(getattr(model, "peft_config", {})), None)  # where the model's directory is that of an adapter
    adapters: dict[str, str | None] = dict.fromkeys(sources, given)
    for place, (name, source) in enumerate(sources.items()):
        if source.adapter is not None:
            adapters[name] = f"teacher_{place}"
            load_adapter(model, source.adapter, role=f"teacher {name!r}", name=f"teacher_{place}")
    if others:
        rank_zero_info(f"{role} share the weights of {sources[first].model!r}")
    return model.requires_grad_(False).eval(), adapters


def _check_lookahead(name: str, loaded: LoadedModel, mesh: DeviceMesh | None, *, separates: bool) -> None:
    if mesh is not None and not is_quantized(loaded.model):
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
