"""Numbers that a cache stores in 16 bits come back as near as stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xtoken_pl.batch.quantization import MAX_ERROR, bits_of, dequantize, pack_ids, quantize, unpack_ids


def test_quantized_log_probs_are_as_near_as_stated() -> None:
    log_probs = np.linspace(-32, 0, 1_000_001, dtype=np.float32)
    error = (dequantize(bits_of(quantize(log_probs))) - torch.from_numpy(log_probs)).abs().max()
    assert error <= MAX_ERROR + 2e-6  # of float32 at -32
    assert MAX_ERROR < 2.5e-4
    assert dequantize(bits_of(quantize(np.array([0, -32, -40, -np.inf], dtype=np.float32)))).tolist() == [
        0,
        -32,
        -32,
        -32,
    ]


@pytest.mark.parametrize("num_tokens", [2, 500, 65_536, 65_537, 128_256, 151_669, 262_145, 2**20])
@pytest.mark.parametrize("k", [1, 7, 64])
def test_packed_ids_come_back(num_tokens: int, k: int) -> None:
    ids = np.random.default_rng(0).integers(0, num_tokens, (5, k))
    ids[0, 0], ids[1, 0] = num_tokens - 1, 0
    low, high = pack_ids(ids, num_tokens)
    assert np.array_equal(unpack_ids(low, high), ids)
    assert np.array_equal(unpack_ids(low[:0], high[:0]), ids[:0])
    assert high.shape[1] == max(0, (num_tokens - 1).bit_length() - 16) * -(-k // 8)
