"""Copies of tiny models whose weights are changed or removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

Weights = dict[str, Tensor]


def rewrite(file: Path, change: Callable[[Weights], Weights]) -> None:
    """Changes the tensors of a safetensors file."""
    tensors = {name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def damaged(model: Path, target: Path, change: Callable[[Weights], Weights], **config: Any) -> str:
    """Copies a model with other tensors and other values in ``config.json``; returns the path."""
    shutil.copytree(model, target)
    rewrite(target / "model.safetensors", change)
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(values | config))
    return str(target)


def without(part: str) -> Callable[[Weights], Weights]:
    """Removes the tensors whose names contain ``part``."""
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def renamed(old: str, new: str) -> Callable[[Weights], Weights]:
    """Replaces a part of all names."""
    return lambda weights: {name.replace(old, new): tensor for name, tensor in weights.items()}


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    """Puts a prefix before all names."""
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}
