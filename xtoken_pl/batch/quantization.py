"""Log-probabilities as 16-bit integers, and token ids in as many bits as the vocabulary needs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# S spans, k tokens of each

#: Nats. Log-probabilities below it are stored as this: together they are less than 1e-8 of a row's mass.
LOWEST = -32.0
_STEPS = 2**16 - 1
#: Largest error of a stored log-probability, nats.
MAX_ERROR = -LOWEST / _STEPS / 2


def quantize(log_probs: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Fixed point over [-32, 0] nats: the error is at most 2.4e-4."""
    share = 1.0 - np.clip(log_probs, LOWEST, 0.0).astype(np.float64) / LOWEST
    return np.rint(share * _STEPS).astype(np.uint16)


def dequantize(codes: Tensor) -> Tensor:
    """The inverse, in float32; ``codes`` are int16 of the same bits, since torch hardly knows uint16."""
    return (codes.int() & _STEPS).float().sub_(_STEPS).mul_(-LOWEST / _STEPS)


def num_high_bits(num_tokens: int) -> int:
    """Bits of an id beyond the lower 16, in a vocabulary of ``num_tokens``."""
    return max(0, (num_tokens - 1).bit_length() - 16)


def pack_ids(ids: NDArray[np.int64], num_tokens: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """``[S, k]`` -> the lower 16 bits ``[S, k]``, and of each further bit a row of k, packed: ``[S, bits * k / 8]``."""
    shifts = 16 + np.arange(num_high_bits(num_tokens))
    planes = np.packbits(((ids[:, None, :] >> shifts[:, None]) & 1).astype(bool), axis=2)  # [S, bits, k / 8]
    return (ids & 0xFFFF).astype(np.uint16), planes.reshape(len(ids), planes.shape[1] * planes.shape[2])


def unpack_ids(low: NDArray[np.uint16], high: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The inverse of :func:`pack_ids`."""
    num_spans, k = low.shape
    planes = high.reshape(num_spans, high.shape[1] // -(-k // 8), -(-k // 8))
    bits = np.unpackbits(planes, axis=2, count=k).astype(np.int32)  # [S, bits, k]
    shifts = 16 + np.arange(bits.shape[1], dtype=np.int32)
    return low + (bits << shifts[:, None]).sum(1, dtype=np.int32)


def bits_of(values: NDArray[np.float32] | NDArray[np.uint16]) -> Tensor:
    """The same bits as a tensor of signed integers."""
    return torch.from_numpy(np.ascontiguousarray(values).view({2: np.int16, 4: np.int32}[values.dtype.itemsize]))


def floats_of(bits: Tensor) -> Tensor:
    """The log-probabilities that int16 (fixed point) or int32 (float32) bits stand for."""
    return dequantize(bits) if bits.dtype == torch.int16 else bits.view(torch.float32)
