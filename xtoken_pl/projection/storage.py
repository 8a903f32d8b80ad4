"""W in a safetensors file: tensors, and in the header what it belongs to and how it was made."""

from __future__ import annotations

import json
import os

import torch
from safetensors.torch import save_file

from xtoken_pl.files import atomic_path, read_safetensors
from xtoken_pl.projection.projection import Projection

_FORMAT = "xtoken_pl.projection.v1"


def save_projection(projection: Projection, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes W, its fingerprints and its parameters; the file is whole or not there at all.

    Raises:
        FileExistsError: If ``path`` exists and ``overwrite`` is False.
    """
    header = {
        "format": _FORMAT,
        "num_teacher": str(projection.num_teacher),
        "student_fingerprint": projection.student_fingerprint,
        "teacher_fingerprint": projection.teacher_fingerprint,
        "parameters": json.dumps(projection.parameters),
    }
    tensors = {
        "indices": projection.indices.to(torch.int32).contiguous(),
        "weights": projection.weights.contiguous(),
        "is_exact": projection.is_exact.contiguous(),
    }
    with atomic_path(path, kind="file", overwrite=overwrite) as part:
        save_file(tensors, part, metadata=header)


def load_projection(path: str | os.PathLike[str]) -> Projection:
    """Reads a file of :func:`save_projection` and checks it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no projection, is damaged, or holds wrong values.
    """
    header, tensors = read_safetensors(
        path,
        framework="pt",
        file_format=_FORMAT,
        names=("indices", "weights", "is_exact"),
        setting="projection",
        kind="projection",
        verb="project",
    )
    return Projection(
        indices=tensors["indices"].long(),
        weights=tensors["weights"],
        is_exact=tensors["is_exact"],
        num_teacher=int(header["num_teacher"]),
        student_fingerprint=header["student_fingerprint"],
        teacher_fingerprint=header["teacher_fingerprint"],
        parameters=json.loads(header["parameters"]),
    )
