"""The prefix map in a safetensors file: arrays, and in the header what it belongs to."""

from __future__ import annotations

import os
from dataclasses import fields

import numpy as np
from safetensors.numpy import save_file

from xtoken_pl.files import atomic_path, read_safetensors
from xtoken_pl.prefix_map.prefix_map import PrefixMap
from xtoken_pl.prefix_map.trie import Trie

_FORMAT = "xtoken_pl.prefix_map.v1"
_ARRAYS = [item.name for item in fields(PrefixMap) if item.name != "trie" and "fingerprint" not in item.name]
_TRIE_ARRAYS = [item.name for item in fields(Trie) if item.name != "num_symbols"]


def save_prefix_map(prefix_map: PrefixMap, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a map and its fingerprints; the file is whole or not there at all.

    Raises:
        FileExistsError: If ``path`` exists and ``overwrite`` is False.
    """
    header = {
        "format": _FORMAT,
        "num_symbols": str(prefix_map.trie.num_symbols),
        "student_fingerprint": prefix_map.student_fingerprint,
        "teacher_fingerprint": prefix_map.teacher_fingerprint,
    }
    arrays = {name: getattr(prefix_map, name) for name in _ARRAYS}
    arrays |= {f"trie.{name}": array for name, array in prefix_map.trie.arrays().items()}
    assert all(array.max(initial=0) < 2**31 for array in arrays.values())
    small = {name: np.ascontiguousarray(array, dtype=np.int32) for name, array in arrays.items()}
    with atomic_path(path, kind="file", overwrite=overwrite) as part:
        save_file(small, part, metadata=header)


def load_prefix_map(path: str | os.PathLike[str]) -> PrefixMap:
    """Reads a file of :func:`save_prefix_map`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no prefix map, is damaged, or its arrays do not fit each other.
    """
    header, stored = read_safetensors(
        path,
        framework="numpy",
        file_format=_FORMAT,
        names=(*_ARRAYS, *(f"trie.{item}" for item in _TRIE_ARRAYS)),
        setting="prefix_map",
        kind="prefix map",
        verb="prefix_map",
    )
    arrays = {name: array.astype(np.int64) for name, array in stored.items()}
    trie = Trie(**{item: arrays[f"trie.{item}"] for item in _TRIE_ARRAYS}, num_symbols=int(header["num_symbols"]))
    try:
        return PrefixMap(
            **{item: arrays[item] for item in _ARRAYS},
            trie=trie,
            student_fingerprint=header["student_fingerprint"],
            teacher_fingerprint=header["teacher_fingerprint"],
        )
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} is damaged ({error}); rebuild it") from error
