"""Markdown tables of steps. All numbers are computed, none is measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch

from benchmarks.roofline.devices import ATTAINABLE, H100, H200, Device
from benchmarks.roofline.heads import HeadWork, Side
from benchmarks.roofline.step import Step, part_of
from xtoken_pl.plan.terms import usable_bytes
from xtoken_pl.scoring.memory import BlockSizes

_DAY = 24 * 3600
#: Bytes per second of a disk that checkpoints are written to. Assumed.
DISK = 2e9
#: Seconds that a process needs to start one kernel. Assumed.
LAUNCH = 5e-6


def throughput(steps: Sequence[Step], num_steps: int = 30_000) -> str:
    """Time of a step, tokens per second, days of a whole run, and memory by ``plan``, for each number of GPUs."""
    rows = []
    for step in steps:
        peak = step.memory.peak.total
        for device, attainable in ((H100, False), (H100, True), (H200, False), (H200, True)):
            seconds = step.seconds(device, attainable=attainable)
            size = 80 if device is H100 else 141
            rows.append(
                [
                    f"{step.run.num_gpus} {device.name}",
                    "attainable" if attainable else "peak",
                    f"{step.run.batch_size} x {step.num_batches}",
                    f"{seconds:,.3g}",
                    f"{step.tokens_per_second(device, attainable=attainable):,.0f}",
                    f"{seconds * num_steps / _DAY:,.1f}",
                    f"{peak / 1e9:.1f} of {usable_bytes(size) / 1e9:.1f}",
                ]
            )
    header = ["GPUs", "at", "windows x batches", "s per step", "tokens/s", f"days for {num_steps:,} steps", "GB"]
    return _table(header, rows)


def parts(step: Step) -> str:
    """The parts of a step on one GPU, by H100's time at attainable rates, largest first."""
    whole = sum(part.seconds(H100, attainable=True) for part in step.parts)
    rows = []
    for part in sorted(step.parts, key=lambda part: -part.seconds(H100, attainable=True)):
        seconds = part.seconds(H100, attainable=True)
        rows.append(
            [
                part.name,
                f"{part.flop / 1e12:,.1f}",
                f"{part.num_bytes / 1e9:,.0f}",
                f"{part.flop / part.num_bytes:,.{0 if part.flop > 10 * part.num_bytes else 2}f}",
                f"{part.num_kernels / 1e3:,.0f}",
                f"{part.seconds(H100):,.2f}",
                f"{seconds:,.2f}",
                f"{seconds / whole:.1%}",
                f"{part.seconds(H200):,.2f}",
            ]
        )
    header = ["part", "TFLOP", "GB", "FLOP/byte", "thousand kernels", "H100 peak, s", "attainable, s", "share", "H200"]
    return _table(header, rows)


def links(steps: Sequence[Step]) -> str:
    """What sharding moves between the GPUs in a step, and how long that takes at least."""
    rows = []
    for step in steps:
        for part in step.parts:
            if part.links:
                own = part.seconds(H100)
                moved = step.seconds_of_links(part, H100)
                rows.append(
                    [
                        f"{step.run.num_gpus}",
                        part.name,
                        f"{part.links / 1e9:,.1f}",
                        f"{moved:.3f}",
                        f"{moved / own:.1%}",
                    ]
                )
    return _table(["GPUs", "part", "GB gathered or reduced", "H100 peak, s", "of the part's own time"], rows)


def passes(works: Mapping[str, tuple[HeadWork, Side]], num_rows: int) -> str:
    """Elementwise passes of the losses over ``[rows, V_s]``: bytes of a batch in units of one float32 matrix.

    Args:
        works: Work of the heads of one batch, and the student's head, by title.
        num_rows: Rows of the batch.
    """
    rows = []
    for title, (work, student) in works.items():
        matrix = 4 * num_rows * student.vocabulary_size
        num_pieces = num_rows / work.sizes.piece_rows
        found: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for operation, count in work.counts.items():
            if operation.matrix_flop or not operation.num_bytes:
                continue
            part = part_of(operation).removesuffix(", first pass").removesuffix(", again")
            sums = found[part, operation.function]
            sums[0] += count / num_pieces
            sums[1] += count * operation.num_bytes / matrix
        for (part, function), (kernels, moved) in sorted(found.items(), key=lambda item: -item[1][1]):
            if moved >= 1:
                rows.append([title, part, f"`{function}`", f"{kernels:.0f}", f"{moved:.1f}"])
    return _table(["run", "part", "function", "kernels per piece, both passes", "matrices read and written"], rows)


def block_rows(sides: Mapping[str, Side], row_bytes: float, block_share: float = 0.5) -> str:
    """Rows of a block from which on the products of a head are limited by FLOP, and the ``logits_memory`` for them."""
    rows = []
    for name, side in sides.items():
        kinds = {"logits, gradient of the hidden states": rows_of_product}
        if not name:
            kinds["gradient of the head, added in float32"] = rows_of_head_gradient
        for kind, function in kinds.items():
            needed = {device: function(side, device) for device in (H100, H200)}
            memory = needed[H100] * row_bytes / block_share
            label = f"{name or 'student'}: {kind}"
            rows.append([label, *(f"{value:,.0f}" for value in needed.values()), f"{memory / 1e9:.2f}"])
    return _table(["product", "rows, H100", "rows, H200", "logits_memory on an H100, GB"], rows)


def budgets(step: Step, vocabulary_sizes: Sequence[int], sizes_in_gb: Sequence[float] = (0.5, 1, 2, 4, 8)) -> str:
    """Rows of blocks and pieces, and the kernels of heads and losses in a step, by ``logits_memory``.

    The number of kernels is that of the step's own budget, in proportion to the number of pieces.

    Args:
        step: The step.
        vocabulary_sizes: Tokens of the student, and of each teacher.
        sizes_in_gb: Budgets in GB.
    """
    num_rows = step.run.batch_size * (step.run.sequence_length - 1)
    per_piece = sum(step.heads.counts.values()) / (num_rows / step.heads.sizes.piece_rows)
    student, *teachers = vocabulary_sizes
    rows = []
    for budget in sizes_in_gb:
        sizes = BlockSizes.from_budget(
            budget * 1e9, num_rows, student, teachers, torch.float32, "cuda", logits_dtype=torch.bfloat16
        )
        piece = 4 * sizes.piece_rows * max(vocabulary_sizes)
        kernels = per_piece * num_rows / sizes.piece_rows * step.num_batches
        rows.append(
            [
                f"{budget:g}",
                f"{sizes.block_rows:,}",
                f"{sizes.piece_rows:,}",
                f"{piece / 1e6:.0f}",
                f"{2 * piece / H100.memory * 1e6:.0f}",
                f"{kernels / 1e6:.1f}",
                f"{kernels * LAUNCH:.0f}",
            ]
        )
    header = ["logits_memory, GB", "rows of a block", "rows of a piece", "MB of its largest tensor"]
    return _table(
        [*header, "µs to read and write it, H100", "million kernels a step", f"s to start them at {LAUNCH * 1e6:g} µs"],
        rows,
    )


def rows_of_product(side: Side, device: Device) -> float:
    r"""Rows P of ``[P, H] [H, V]`` in bfloat16 at the balance b of a GPU (FLOP per byte).

    .. math:: \frac{2 P H V}{2 (P H + H V + P V)} = b \iff P = \frac{b H V}{H V - b (H + V)}
    """
    size, hidden, b = side.vocabulary_size, side.hidden_size, device.balance
    return b * hidden * size / (hidden * size - b * (hidden + size))


def rows_of_head_gradient(side: Side, device: Device) -> float:
    r"""Rows P of ``[V, P] [P, H]``, of which the product is written, read, and added to a float32 matrix.

    .. math:: \frac{2 P H V}{2 P (H + V) + 12 H V} = b \iff P = \frac{6 b H V}{H V - b (H + V)}

    The products are tiles of 4,096 tokens, each of which reads all of ``[P, H]`` again; that is left out.
    """
    return 6 * rows_of_product(side, device)


def checkpoints(step: Step) -> str:
    """Sizes of what is written, and the time at a stated rate of the disk."""
    trained = step.memory.student.trained_bytes
    sizes = {
        "checkpoint: weights and two moments, float32": 3 * trained,
        "export: weights, bfloat16": trained / 2,
    }
    rows = [[name, f"{size / 1e9:.1f}", f"{size / DISK:.1f}"] for name, size in sizes.items()]
    return _table(["what", "GB", f"s at {DISK / 1e9:g} GB/s"], rows)


def described_shares() -> str:
    """The assumed shares of the peaks."""
    return ", ".join(f"{share:.0%} of {name}" for name, share in ATTAINABLE.items())


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
