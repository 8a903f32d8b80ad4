"""A small run to plan, and the memory that a real one takes, for tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from small_models import packing_tokenizer, splitting_tokenizer, write_model
from torch.profiler import ProfilerActivity, profile

from xtoken_pl import (
    HybridKL,
    Student,
    Teacher,
)
from xtoken_pl.models import hidden_states
from xtoken_pl.models.router_loss import RouterLoss
from xtoken_pl.plan.run import Run

_WITH_WORKSPACES = {
    *("aten::mul", "aten::add", "aten::add_", "aten::sub", "aten::div", "aten::where", "aten::minimum"),
    *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
}


def write_models(folder: Path) -> Path:
    """Writes a student, one with a tied head, and a teacher with another tokenizer."""
    write_model(folder / "student", packing_tokenizer(), hidden_size=64)
    write_model(folder / "tied", packing_tokenizer(), hidden_size=64, tied=True)
    write_model(folder / "teacher", splitting_tokenizer(), hidden_size=64)
    return folder


def run_of(models: Path, **changes: Any) -> Run:
    teachers = {"t": Teacher(model=str(models / "teacher"), loss=HybridKL())}
    run = Run(Student(model=str(models / "student")), teachers, 8, 128, logits_memory=10_000_000)
    return replace(run, **changes)


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs on one thread: on a CPU, some kernels have a buffer for each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def size_of(*models: Any) -> int:
    """Bytes of all parameters and buffers, each once."""
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


def most_allocated(profiler: Any, *, without_workspaces: bool = False) -> int:
    """Peak of the bytes that the profiled code allocated.

    Args:
        profiler: Profiler that has recorded memory.
        without_workspaces: Whether to leave out what elementwise operations and matrix products allocate and free
            again. On a CPU these are operands cast to a common dtype, and packed matrices; a GPU has none of them.
    """
    changes: list[tuple[int, int]] = []  # time in ns, bytes
    alive: dict[int, tuple[int, int, int]] = {}  # address -> time, bytes, end of the kernel that allocated them
    for time, address, num_bytes, end_of_kernel in sorted(_memory_events(profiler)):
        if num_bytes > 0:
            alive[address] = time, num_bytes, end_of_kernel
            continue
        start, _, end = alive.pop(address, (None, 0, 0))
        if start is not None and without_workspaces and time <= end:
            continue
        changes += [(time, num_bytes)] if start is None else [(start, -num_bytes), (time, num_bytes)]
    changes += [(time, num_bytes) for time, num_bytes, _ in alive.values()]
    return max(accumulate(num_bytes for _, num_bytes in sorted(changes)))


def _memory_events(profiler: Any) -> Iterator[tuple[int, int, int, int]]:
    """Yields time, address and bytes, and the end of the kernel with workspaces around it (0 for none)."""
    nodes = [(node, 0) for node in profiler.profiler.kineto_results.experimental_event_tree()]
    while nodes:
        node, end = nodes.pop()
        if node.name == "[memory]":
            yield node.start_time_ns, node.extra_fields.ptr, node.extra_fields.alloc_size, end
        end = end or (node.end_time_ns if node.name in _WITH_WORKSPACES else 0)
        nodes += [(child, end) for child in node.children]


@dataclass(frozen=True)
class Measured:
    """Bytes of a model's passes on the CPU: what autograd saves, with the hidden states, and the peak."""

    saved: int
    peak: int


def measured_passes(
    model: Any,
    batch_size: int,
    length: int,
    *,
    autocast: bool,
    trains: bool = True,
    without_workspaces: bool = False,
    input_ids: torch.Tensor | None = None,
    router_loss: RouterLoss | None = None,
) -> Measured:
    """Runs a forward pass, and a backward pass if ``trains``, as a step does with a batch that has padding.

    All tokens are the same unless ``input_ids`` are given, so that a mixture sends them to as few experts as it can.
    """
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    if input_ids is None:
        input_ids = torch.zeros(batch_size, length, dtype=torch.long)
    mask = torch.ones_like(input_ids)
    mask[0, length // 2 :] = 0  # padding requires an attention mask
    gc.collect()  # or it would free older memory while the passes run
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with one_thread(), profiler, torch.set_grad_enabled(trains):
        keeping = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), keeping:
            states = hidden_states(model, input_ids, mask).flatten(0, 1)
            rows = states.index_select(0, torch.arange(len(states)))
            del states
            roots = [rows] if router_loss is None else [rows, router_loss.take(mask)]
        kept[rows.untyped_storage().data_ptr()] = rows.untyped_storage().nbytes()
        if trains:
            torch.autograd.backward(roots, [torch.zeros_like(root) for root in roots])
    return Measured(sum(kept.values()), most_allocated(profiler, without_workspaces=without_workspaces))
