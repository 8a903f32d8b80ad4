"""Shard files of a cache: teacher rows of consecutive windows, with a checksum for each window.

Tensors by row: ``log_probs`` [R, k] of the teacher's k most probable tokens (16-bit fixed point or float32), their
``ids_low`` [R, k] and ``ids_high`` [R, b], and in float32 ``log_tail`` [R]. With ``top_k="all"``, ``log_probs`` is
[R, V_t], without ids and tail. Layout ``span_starts``, a row for each span: ``log_continuation`` and ``log_span`` [R].
Layout ``all``, every row of every span, in the order of :attr:`xtoken_pl.batch.TokenBatch.rows`: ``log_observed`` [R]
and, if the temperature is not 1, ``log_text`` [R]; the tail leaves the observed token out.

By window: ``ends`` [N], the number of rows up to its end; ``text_checksum`` [N], CRC-32 of its tokens and spans;
``checksum`` [N], CRC-32 of everything stored for it, including its ends and text checksum.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save_file

from xtoken_pl.batch import RowArrays
from xtoken_pl.checkpoints.fingerprints import window_checksum
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path

_ENDS, _TEXT, _CHECKSUM = "ends", "text_checksum", "checksum"


def num_rows(window: RowArrays) -> int:
    """Number of rows of stored arrays."""
    return len(window["log_probs"])


def write_shard(path: Path, windows: Sequence[RowArrays], text_checksums: Sequence[int]) -> None:
    """Writes a shard atomically; equal content gives equal bytes."""
    tensors = {name: np.concatenate([window[name] for window in windows]) for name in windows[0]}
    ends = np.cumsum([num_rows(window) for window in windows], dtype=np.int64)
    checksums = map(_checksum, windows, [0, *ends[:-1]], ends, text_checksums)
    tensors[_ENDS] = ends
    tensors[_TEXT] = np.array(text_checksums, dtype=np.uint32)
    tensors[_CHECKSUM] = np.array(list(checksums), dtype=np.uint32)
    with atomic_path(path, kind="file", overwrite=True) as part:
        save_file(tensors, part)


class Shard:
    """An open, memory-mapped shard; each window is verified when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Closed when it is garbage collected.
            self._file = safetensors.safe_open(path, framework="numpy")
            names = set(self._file.keys())
            self._ends, self._texts, self._checksums = map(self._file.get_tensor, (_ENDS, _TEXT, _CHECKSUM))
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}); {_WAY_OUT}") from error
        self._slices = {name: self._file.get_slice(name) for name in sorted(names - {_ENDS, _TEXT, _CHECKSUM})}

    def read(self, place: int, window: Mapping[str, Any], teacher: str) -> RowArrays:
        """Returns the rows of one window.

        Args:
            place: Index of the window in the shard.
            window: The window, as the data module makes it.
            teacher: Name of the teacher in the window.

        Raises:
            UserError: If the shard is damaged, or was built from another window.
        """
        try:
            start, end = (0 if place == 0 else int(self._ends[place - 1])), int(self._ends[place])
            arrays = {name: part[start:end] for name, part in self._slices.items()} if start < end else self.nothing()
            text = int(self._texts[place])
            is_whole = _checksum(arrays, start, end, text) == self._checksums[place]
        except (safetensors.SafetensorError, IndexError, ValueError, OverflowError) as error:
            raise UserError(f"window {place} of {self.path} is damaged ({error}); {_WAY_OUT}") from error
        if not is_whole:
            raise UserError(f"window {place} of {self.path} is damaged, its checksum differs; {_WAY_OUT}")
        if window_checksum(window, teacher) != text:
            raise UserError(
                f"window {place} of {self.path} was built from another text, or from one that was cut differently; use "
                "the texts, sequence_length and tokenizers that the cache was built with, or build another cache"
            )
        return arrays

    def nothing(self) -> RowArrays:
        """Returns the rows of a window without spans."""
        # safetensors does not support an empty slice at the end of a tensor.
        return {
            name: part[0:1][:0] if part.get_shape()[0] else self._file.get_tensor(name)
            for name, part in self._slices.items()
        }


_WAY_OUT = "run `python -m xtoken_pl cache` again with the same settings to rebuild damaged shards"


def _checksum(window: Mapping[str, NDArray], start: int, end: int, text: int) -> int:
    result = zlib.crc32(f"{start} {end} {text}".encode())
    for name, values in sorted(window.items()):
        result = zlib.crc32(f"{name} {values.dtype} {values.shape}".encode(), result)
        result = zlib.crc32(np.ascontiguousarray(values).tobytes(), result)
    return result
