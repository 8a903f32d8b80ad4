"""One file of a cache: what is stored of the spans of some consecutive windows, with a checksum for each window.

Tensors by span: ``log_probs`` [S, k] of the teacher's k most probable tokens (16-bit fixed point or float32; of all
tokens, and nothing of ids and tail, where everything is stored), ``ids_low`` [S, k] and ``ids_high`` [S, b], and in
float32 ``log_tail``, ``log_continuation``, ``log_span`` [S]. By window: ``ends`` [N], the number of spans up to its
end; ``text_checksum`` [N], CRC-32 of its tokens and spans; ``checksum`` [N], that of everything that is stored of it,
its ends and its text's checksum included.
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

from xtoken_pl.batch import SpanArrays
from xtoken_pl.checkpoints.fingerprints import window_checksum
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path

_ENDS, _TEXT, _CHECKSUM = "ends", "text_checksum", "checksum"


def write_shard(path: Path, windows: Sequence[SpanArrays], text_checksums: Sequence[int]) -> None:
    """Writes a shard, whole or not at all; the same content gives the same bytes."""
    tensors = {name: np.concatenate([window[name] for window in windows]) for name in windows[0]}
    ends = np.cumsum([_num_spans(window) for window in windows], dtype=np.int64)
    checksums = map(_checksum, windows, [0, *ends[:-1]], ends, text_checksums)
    tensors[_ENDS] = ends
    tensors[_TEXT] = np.array(text_checksums, dtype=np.uint32)
    tensors[_CHECKSUM] = np.array(list(checksums), dtype=np.uint32)
    with atomic_path(path, kind="file", overwrite=True) as part:
        save_file(tensors, part)


class Shard:
    """An open shard: memory-mapped, and checked window by window as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Closed when nothing refers to it any more.
            self._file = safetensors.safe_open(path, framework="numpy")
            names = set(self._file.keys())
            self._ends, self._texts, self._checksums = map(self._file.get_tensor, (_ENDS, _TEXT, _CHECKSUM))
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}); {_WAY_OUT}") from error
        self._slices = {name: self._file.get_slice(name) for name in sorted(names - {_ENDS, _TEXT, _CHECKSUM})}

    def read(self, place: int, window: Mapping[str, Any], teacher: str) -> SpanArrays:
        """What is stored of the spans of one window.

        Args:
            place: Of the window in the shard.
            window: As the data module makes it.
            teacher: Its name in the window.

        Raises:
            UserError: If the shard is damaged, or was made of another window.
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
                f"window {place} of {self.path} was made of another text, or of one that was cut otherwise; give the "
                "texts, sequence_length and tokenizers that the cache was built with, or build another cache"
            )
        return arrays

    def nothing(self) -> SpanArrays:
        """What is stored of a window without a span."""
        # safetensors cuts no empty slices at the end of a tensor.
        return {
            name: part[0:1][:0] if part.get_shape()[0] else self._file.get_tensor(name)
            for name, part in self._slices.items()
        }


_WAY_OUT = "run `python -m xtoken_pl cache` again with the same settings, it makes damaged shards anew"


def _num_spans(window: SpanArrays) -> int:
    return len(window["log_span"])


def _checksum(window: Mapping[str, NDArray], start: int, end: int, text: int) -> int:
    result = zlib.crc32(f"{start} {end} {text}".encode())
    for name, values in sorted(window.items()):
        result = zlib.crc32(f"{name} {values.dtype} {values.shape}".encode(), result)
        result = zlib.crc32(np.ascontiguousarray(values).tobytes(), result)
    return result
