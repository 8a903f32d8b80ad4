"""The terms of the plan, in bytes on each GPU; each function's formula is in its docstring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from xtoken_pl.plan.run import Run
from xtoken_pl.plan.skeleton import Skeleton
from xtoken_pl.specs import Server, Teacher
from xtoken_pl.teachers.cache.manifest import Manifest
from xtoken_pl.training.binding import possible_losses

# B windows of T tokens, H hidden size, V/V_s/V_t rows of a head (student/teacher), N GPUs that share one copy

_FLOAT = torch.float32.itemsize
#: Teacher tokens of a row of W at most.
_PLACES = 4

#: CUDA context with the kernels of torch and cuBLAS on an H100: about 0.5 GB, and cuBLAS's 32 MB workspace.
CUDA_BYTES = 600_000_000
#: NCCL's channels and buffers, if there are several GPUs.
NCCL_BYTES = 1_000_000_000
#: Share of the allocated memory that is lost between blocks. A guess from out-of-memory messages ("reserved by PyTorch
#: but unallocated"), less with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.
FRAGMENTATION = 0.05
#: Usable share of a GPU's nominal memory in GiB: torch reports a capacity of 79.1 to 79.25 GiB on 80
#: GB H100 and A100, of 39.4 to 39.56 GiB on a 40 GB A100, of 23.64 to 23.69 GiB on 24 GB cards ("GPU 0 has a total
#: capacity of ..." in its out-of-memory messages).
USABLE_SHARE = 0.985


def usable_bytes(gpu_memory: float) -> int:
    r""":math:`0.985 \cdot 2^{30}` for each GB that a GPU is sold with; see :data:`USABLE_SHARE`."""
    return int(gpu_memory * 2**30 * USABLE_SHARE)


def adamw_bytes(num_parameter_bytes: int) -> int:
    """Two moments in the parameters' type: ``2 x``. The step counters stay on the host."""
    return 2 * num_parameter_bytes


def optimizer_step_bytes(num_parameter_bytes: int) -> int:
    """The square roots of the second moments exist for all parameters at a time: ``1 x`` (AdamW's foreach)."""
    return num_parameter_bytes


def weight_bytes(skeleton: Skeleton) -> int:
    """A model's weights: all in its dtype, or some as :mod:`xtoken_pl.plan.stored_weights` counts them; its adapter."""
    stored = skeleton.stored.num_bytes if skeleton.stored is not None else None
    return skeleton.weight_bytes if stored is None else stored + skeleton.adapter_bytes


def is_quantized(skeleton: Skeleton) -> bool:
    """Whether layers are quantized on the GPU, by an option or since those of the checkpoint are."""
    return skeleton.stored is not None and skeleton.stored.is_kept


def dequantized_bytes(skeleton: Skeleton) -> int:
    """Weight of the largest linear layer in the dtype of its product, which a quantized layer computes when it runs."""
    return skeleton.stored.dequantized_layer if skeleton.stored is not None else 0


def loss_bytes(teacher: Teacher, student_size: int, teacher_size: int) -> int:
    """Upper bound of the bytes that a loss holds for two vocabularies, without reading the tokenizers.

    :meth:`xtoken_pl.SpanLoss.state_bytes`; for ``auto`` and ``auto_paper`` the largest of what the rule may choose.
    """
    losses = possible_losses(teacher)
    return max(loss.state_bytes(student_size, teacher_size, learned=teacher.learn_projection) for loss in losses)


def learned_projection_bytes(teacher: Teacher, student_size: int) -> int:
    """Learned weights of W, at most ``4 * 4 V_s``."""
    return _FLOAT * _PLACES * student_size if teacher.learn_projection else 0


def cached_bytes(teacher: Teacher, teacher_size: int) -> int:
    """Upper bound of the bytes of one row of a cached teacher; a window has at most one row per token.

    ``k (b + 4) + 12`` for k stored tokens of b bytes and their ids, ``V_t b + 8`` where all are stored; k = 64 and
    b = 2 where the cache is still to be built. The dense rows of a piece, ``[P, V_t]``, are part of ``logits_memory``.
    """
    top_k, num_bytes = 64, 2
    if teacher.cache is not None and Path(teacher.cache).is_dir():
        identity = Manifest.load(Path(teacher.cache)).identity
        num_bytes = identity.precision // 8
        if identity.top_k == "all":
            return teacher_size * num_bytes + 8
        top_k = identity.top_k
    return top_k * (num_bytes + 4) + 12


def served_bytes(server: Server, teacher_size: int) -> int:
    """Bytes of one row of a served teacher; a window has at most one row per token.

    ``k (4 + 4) + 8`` for k log-probabilities and ids, the tail and the observed token; ``4 V_t + 4`` for all tokens.
    The dense rows of a piece, ``[P, V_t]``, are part of ``logits_memory``.
    """
    return 4 * teacher_size + 4 if server.top_k == "all" else 8 * server.top_k + 8


def head_copy_bytes(run: Run, skeleton: Skeleton) -> int:
    """Copy of a head in autocast's dtype, ``V H itemsize``; 0 if the weights have it already."""
    head, autocast = skeleton.head, run.autocast
    return 0 if autocast is None or autocast == head.dtype else head.numel() * autocast.itemsize


def drawing_bytes(num_rows: int, size: int) -> int:
    """Logits of one position of R texts, and what is computed from them to draw the next tokens: ``32 R V_s``.

    An upper bound for any temperature, top_k and top_p: five copies in float32 and one of 8 bytes an entry (with top_p:
    the logits and their order), and masks.
    """
    return num_rows * size * 32


def gathered_bytes(layers: Sequence[int], root: int) -> int:
    """Sharded weights that are whole at the same time: two layers (one runs, the next is fetched) and the rest.

    The rest (embedding, last normalization, head) stays whole until the backward pass has ended.

    Args:
        layers: Size of each layer.
        root: Size of the rest.
    """
    return 2 * max(layers) + root


def reduced_bytes(skeleton: Skeleton) -> int:
    """Gradients being reduced, of a layer or of the rest: the whole gradients, and a copy that is sent."""
    return 2 * skeleton.largest_trained_bytes
