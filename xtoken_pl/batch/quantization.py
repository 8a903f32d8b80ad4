"""Log-probabilities as 16-bit integers, and token ids in as many bits as the vocabulary needs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# S spans, k tokens of each

#: Lowest stored log-probability, nats; lower ones are raised to it: together they are below 1e-8 of a row's mass.
LOWEST = -32.0
_STEPS = 2**16 - 1
#: Largest error of a stored log-probability, nats.
MAX_ERROR = -LOWEST / _STEPS / 2


def quantize(log_probs: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Quantizes log-probabilities to 16-bit fixed point over [-32, 0] nats, with an error of at most 2.4e-4."""
    share = 1.0 - np.clip(log_probs, LOWEST, 0.0).astype(np.float64) / LOWEST
    return np.rint(share * _STEPS).astype(np.uint16)


def dequantize(codes: Tensor) -> Tensor:
    """Inverts :func:`quantize`, in float32; ``codes`` are int16 of the same bits, as torch hardly supports uint16."""
    return (codes.int() & _STEPS).float().sub_(_STEPS).mul_(-LOWEST / _STEPS)


def num_high_bits(num_tokens: int) -> int:
    """Number of bits of an id beyond the lower 16, in a vocabulary of ``num_tokens``."""
    return max(0, (num_tokens - 1).bit_length() - 16)


def pack_ids(ids: NDArray[np.int64], num_tokens: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Packs ids ``[S, k]`` into their lower 16 bits ``[S, k]`` and bit planes of the rest ``[S, bits * k / 8]``."""
    shifts = 16 + np.arange(num_high_bits(num_tokens))
    planes = np.packbits(((ids[:, None, :] >> shifts[:, None]) & 1).astype(bool), axis=2)  # [S, bits, k / 8]
    return (ids & 0xFFFF).astype(np.uint16), planes.reshape(len(ids), planes.shape[1] * planes.shape[2])


def unpack_ids(low: NDArray[np.uint16], high: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Inverts :func:`pack_ids`."""
    num_spans, k = low.shape
    planes = high.reshape(num_spans, high.shape[1] // -(-k // 8), -(-k // 8))
    bits = np.unpackbits(planes, axis=2, count=k).astype(np.int32)  # [S, bits, k]
    shifts = 16 + np.arange(bits.shape[1], dtype=np.int32)
    return low + (bits << shifts[:, None]).sum(1, dtype=np.int32)


def bits_of(values: NDArray[np.float32] | NDArray[np.uint16]) -> Tensor:
    """Views the bits of an array as a tensor of signed integers."""
    return torch.from_numpy(np.ascontiguousarray(values).view({2: np.int16, 4: np.int32}[values.dtype.itemsize]))


def floats_of(bits: Tensor) -> Tensor:
    """Converts int16 (fixed point) or int32 (float32) bits to the log-probabilities that they represent."""
    return dequantize(bits) if bits.dtype == torch.int16 else bits.view(torch.float32)
