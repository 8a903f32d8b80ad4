"""All parts of an optimizer step on one GPU, and the least time of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from benchmarks.roofline.bodies import body_work
from benchmarks.roofline.devices import Device
from benchmarks.roofline.heads import HeadWork, Side, Tables, head_work
from benchmarks.roofline.recorder import Operation
from xtoken_pl.losses.base import SpanLoss
from xtoken_pl.plan.moments import MemoryPlan
from xtoken_pl.plan.run import Run

_FLOAT = torch.float32.itemsize
#: Reads and writes of a float32 number of a trained parameter: adding a batch's gradient to the step's (2 + 1),
#: clipping (its norm 1, scaling 1 + 1), and AdamW (weight, gradient, two moments 4, and 3 written).
_ACCUMULATION, _CLIPPING, _ADAMW = 3, 3, 7


@dataclass
class Part:
    """One part of a step.

    Attributes:
        name: Name of the part.
        counts: How often each operation runs in a step.
        links: Bytes that are gathered, or reduced, over all GPUs; each GPU receives nearly all of them.
    """

    name: str
    counts: dict[Operation, float] = field(default_factory=lambda: defaultdict(float))
    links: float = 0.0

    def add(self, counts: Mapping[Operation, float], times: float) -> None:
        """Adds operations that run ``times`` times as often."""
        for operation, count in counts.items():
            self.counts[operation] += times * count

    @property
    def flop(self) -> float:
        """FLOP of products and of all else."""
        return sum(count * (op.matrix_flop + op.vector_flop) for op, count in self.counts.items())

    @property
    def num_bytes(self) -> float:
        """Bytes read from and written to the GPU's memory."""
        return sum(count * op.num_bytes for op, count in self.counts.items())

    @property
    def num_kernels(self) -> float:
        """Number of operations."""
        return sum(self.counts.values())

    def seconds(self, device: Device, *, attainable: bool = False) -> float:
        """The least time of all operations one after the other, without links."""
        return sum(
            count * device.seconds(op.matrix_flop, op.vector_flop, op.num_bytes, attainable=attainable)
            for op, count in self.counts.items()
        )


@dataclass(frozen=True)
class Step:
    """An optimizer step of a run on one of its GPUs.

    Attributes:
        run: The run.
        num_batches: Batches of a step.
        heads: Heads and losses of one batch.
        parts: All parts.
        memory: Memory that the run needs, by ``plan``.
    """

    run: Run
    num_batches: int
    heads: HeadWork
    parts: list[Part]
    memory: MemoryPlan

    @property
    def num_tokens(self) -> int:
        """The student's tokens of a step on all GPUs."""
        return self.run.num_gpus * self.num_batches * self.run.batch_size * self.run.sequence_length

    def seconds(self, device: Device, *, attainable: bool = False) -> float:
        """The least time: of the GPU's own work, or of its links if that is more, as if they overlapped entirely."""
        return max(
            sum(part.seconds(device, attainable=attainable) for part in self.parts),
            sum(self.seconds_of_links(part, device, attainable=attainable) for part in self.parts),
        )

    def seconds_of_links(self, part: Part, device: Device, *, attainable: bool = False) -> float:
        """The least time that the links need for a part."""
        return device.seconds_of_links(part.links, self.run.num_gpus, attainable=attainable)

    def tokens_per_second(self, device: Device, *, attainable: bool = False) -> float:
        """The student's tokens per second of all GPUs, at most."""
        return self.num_tokens / self.seconds(device, attainable=attainable)

    @classmethod
    def from_run(
        cls, run: Run, num_batches: int, vocabulary_sizes: Mapping[str, int], tables: Mapping[str, Tables]
    ) -> Step:
        """Computes a step of a run whose teachers run in it.

        Args:
            run: The run: the student is trained as a whole, under bf16-mixed.
            num_batches: Batches of a step.
            vocabulary_sizes: Tokens of the student, ``""``, and of the teachers; heads have more rows than that.
            tables: Sizes of what each teacher's loss knows of the vocabularies.
        """
        memory = MemoryPlan.from_run(run)
        parts: dict[str, Part] = {}

        def add(name: str, counts: Mapping[Operation, float], times: float, links: float = 0.0) -> None:
            part = parts.setdefault(name, Part(name))
            part.add(counts, times)
            part.links += links

        shape, student = (run.batch_size, run.sequence_length), memory.student
        is_sharded = run.spread == "sharded" and run.num_gpus > 1
        weights = student.weight_bytes * num_batches if is_sharded else 0
        forward, backward = body_work(
            student,
            *shape,
            autocast=run.autocast,
            trains=True,
            activation_checkpointing=run.student.activation_checkpointing,
        )
        add("student: forward pass", forward, num_batches, weights)
        for name, skeleton in memory.teachers.items():
            forward, _ = body_work(skeleton, *shape, autocast=run.autocast, trains=False)
            links = skeleton.weight_bytes * num_batches if is_sharded else 0
            add(f"{name}: forward pass", forward, num_batches, links)
        losses = {name: run.teachers[name].loss for name in memory.teachers}
        heads = {
            name: Side(vocabulary_sizes[name], skeleton.head.shape[1])
            for name, skeleton in {"": student, **memory.teachers}.items()
        }
        given: dict[str, tuple[Side, SpanLoss, Tables]] = {}
        for name, loss in losses.items():
            assert isinstance(loss, SpanLoss), "the loss of a teacher in a configuration of a paper's run is given"
            given[name] = heads[name], loss, tables[name]
        num_rows = run.batch_size * (run.sequence_length - 1)
        work = head_work(num_rows, heads[""], given, run.logits_memory)
        for operation, count in work.counts.items():
            add(part_of(operation), {operation: count}, num_batches)
        # Gathered again, but for what belongs to no layer; and the gradients are reduced.
        links = (sum(student.layer_bytes) + student.trained_bytes) * num_batches if is_sharded else 0
        add("student: backward pass", backward, num_batches, links)
        numbers = student.trained_bytes / _FLOAT / (run.data_parallel_size if is_sharded else 1)
        add("optimizer", {_pass(numbers * _FLOAT): 1.0}, _ACCUMULATION * num_batches + _CLIPPING + _ADAMW)
        return cls(run, num_batches, work, list(parts.values()), memory)


def _pass(num_bytes: float) -> Operation:
    return Operation("pass", "", ("", ""), 0.0, num_bytes / _FLOAT, num_bytes)


#: Functions that work on the student's rows, whatever teacher came before them.
_STUDENT = {
    "scoring/evaluation.py: _to_logits",
    "scoring/evaluation.py: _gradients_of",
    "scoring/evaluation.py: _score_piece",
    "scoring/evaluation.py: score",
    "scoring/evaluation.py: gradients",
    "scoring/evaluation.py: __init__",
    "scoring/kept.py: subtract_at",
}


def part_of(operation: Operation) -> str:
    """The name of the part of a step to which an operation of the heads and losses belongs."""
    file, _, function = operation.function.partition(": ")
    (where, name) = operation.place
    again = where.startswith("gradients")
    which = "again" if again else "first pass"
    if function == "logits":
        return f"{name or 'student'}: head product, {which}"
    if function == "accumulate_product":
        return "student: gradient of the head"
    if operation.matrix_flop or where == "gradients/gradients":
        return "student: gradient of the hidden states"
    if function == "parameters":
        return "student: head in bfloat16"
    if function == "gradients" or function == "backward":
        return "losses: backward" + (", W's product" if "sparse" in file else "")
    if operation.function in _STUDENT or (function == "normalize" and not where.endswith("_teacher_side")):
        return "student: softmax, gradient of the logits"
    if not name:
        return "student: softmax, gradient of the logits"
    if "sparse" in file:
        return f"{name}: W's product, {which}"
    return f"{name}: softmax and loss, {which}"
