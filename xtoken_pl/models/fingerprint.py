"""Which weights a model has, without reading them all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from xtoken_pl.specs import ModelSource
from xtoken_pl.utilities.errors import UserError

_WEIGHTS = (".safetensors", ".bin", ".gguf")
#: Bytes that are read of each file, spread evenly over it.
_PIECE_BYTES, _NUM_PIECES = 2**16, 16


def config_fingerprint(source: ModelSource) -> str:
    """Hash of a model's configuration, without where it came from and which version of transformers wrote it.

    Raises:
        UserError: If it has none, or one that is no JSON.
    """
    content = json.loads(_config_file(source).read_bytes())
    kept = {key: value for key, value in content.items() if key not in {"_name_or_path", "transformers_version"}}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:32]


def model_fingerprint(source: ModelSource) -> str:
    """Names the configuration and the weights of a model.

    Of a hub id it is the commit that its revision stands for; of a folder the hash of its configuration and of
    samples of its weights (their sizes, and 16 pieces of 64 KB of each file). Training changes every weight, so that
    samples tell a model from a later one; a few weights that were edited by hand may go unnoticed.

    Raises:
        UserError: If there is no such model.
    """
    config = _config_file(source)
    commit = None if Path(source.model).is_dir() else extract_commit_hash(str(config), None)
    if commit is not None:
        return f"commit:{commit}"
    digest = hashlib.sha256(config.read_bytes())
    for path in weight_files(config.parent):
        _add_samples(digest, path)
    return f"sha256:{digest.hexdigest()[:32]}"


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's folder that hold weights, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS)


def _config_file(source: ModelSource) -> Path:
    try:
        found = cached_file(source.model, "config.json", revision=source.revision)
        if found is None:  # of a folder; transformers lets this one file be missing
            raise UserError(f"no config.json in {source.model}")
        return Path(found)
    except OSError as error:
        raise UserError(
            f"a model must be a folder or a hub id with a config.json; {source.model!r} (revision {source.revision!r}) "
            f"could not be read. Check the path or the id. Reason: {error}"
        ) from error


def _add_samples(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name} {size} ".encode())
    last = max(0, size - _PIECE_BYTES)
    with path.open("rb") as file:
        for offset in sorted({last * place // (_NUM_PIECES - 1) for place in range(_NUM_PIECES)}):
            file.seek(offset, os.SEEK_SET)
            digest.update(file.read(_PIECE_BYTES))
