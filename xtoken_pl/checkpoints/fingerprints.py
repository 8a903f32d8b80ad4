"""Fingerprints of files, models and windows, which checkpoints and caches store to recognize what they belong to.

They stand together because a stored fingerprint fixes how it is computed, and here because this is the lowest room that
all their users (checkpoints, the data module, caches, the command line) can import and that knows models and windows.
A tokenizer's fingerprint is :attr:`xtoken_pl.tokenization.CanonicalVocabulary.fingerprint`: rooms further down need it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, prompt_column, starts_column, teacher_columns
from xtoken_pl.specs import ModelSource, Teacher
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import reason_of

if TYPE_CHECKING:
    from datasets import Dataset

_WEIGHTS = (".safetensors", ".bin", ".gguf")
#: Size and number of the pieces that are read from each file, spread evenly over it.
_PIECE_BYTES, _NUM_PIECES = 2**16, 16
#: Windows that are read, spread evenly over a data set.
_NUM_IN_CHECKPOINT, _NUM_IN_CACHE = 64, 1000


def file_fingerprint(path: Path) -> str:
    """Hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def config_fingerprint(source: ModelSource) -> str:
    """Hashes a model's configuration, except for its origin and the version of transformers that wrote it.

    Raises:
        UserError: If the model has no configuration, or one that is not valid JSON.
    """
    path = _config_file(source)
    try:
        content: dict[str, Any] = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"a model's config.json must be a JSON object, but {str(path)!r} is not ({error}); copy or download the "
            "model again"
        ) from error
    kept = {key: value for key, value in content.items() if key not in {"_name_or_path", "transformers_version"}}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:32]


def model_fingerprint(source: ModelSource) -> str:
    """Identifies the configuration and the weights of a model.

    For a hub id it is the commit of its revision; for a directory, a hash of its configuration and of samples of its
    weights (the size, and 16 pieces of 64 KB, of each file). Training changes every weight, so samples distinguish a
    model from a later state; a few weights edited by hand may go unnoticed. That of a teacher's adapter, if it has one,
    follows after a plus sign.

    Raises:
        UserError: If there is no such model or adapter.
    """
    of_model = _files_fingerprint(source.model, _config_file(source))
    if not isinstance(source, Teacher) or source.adapter is None:
        return of_model
    of_adapter = _files_fingerprint(source.adapter, _find(source.adapter, "adapter_config.json", None))
    return f"{of_model}+{of_adapter}"


def is_same_model(fingerprint: str, other: str) -> bool | None:
    """Compares two fingerprints of models; None if they agree as far as they can be compared.

    A commit of the hub cannot be compared with a hash of files, and neither can a server's model. Models differ in any
    case if only one of them has an adapter.
    """
    if fingerprint == other:
        return True
    if not (is_of_weights(fingerprint) and is_of_weights(other)):
        return None
    pairs = zip_longest(fingerprint.split("+"), other.split("+"), fillvalue="")
    differs = any(ours != theirs and (not ours or not theirs or _kind(ours) == _kind(theirs)) for ours, theirs in pairs)
    return False if differs else None


def _kind(fingerprint: str) -> str:
    """Whether a fingerprint of weights is a commit of the hub or a hash of files."""
    return fingerprint.partition(":")[0]


def _files_fingerprint(source: str, config: Path) -> str:
    commit = None if Path(source).is_dir() else extract_commit_hash(str(config), None)
    if commit is not None:
        return f"commit:{commit}"
    digest = hashlib.sha256(config.read_bytes())
    for path in weight_files(config.parent):
        _add_samples(digest, path)
    return f"sha256:{digest.hexdigest()[:32]}"


def fingerprint_or_none(fingerprint: Callable[[ModelSource], str], source: ModelSource) -> str | None:
    """Fingerprint of a model; None if its files are not available."""
    try:
        return fingerprint(source)
    except ValueError:
        return None


def weight_files(folder: Path) -> list[Path]:
    """Lists the files in a model's directory that hold weights, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS)


def is_of_weights(fingerprint: str) -> bool:
    """Whether it is a :func:`model_fingerprint`; a cache that was built from a server has another."""
    return fingerprint.startswith(("commit:", "sha256:"))


def training_windows_fingerprint(windows: Dataset, maker_fingerprint: str) -> str:
    """Hash of how windows were made and of the student's tokens and prompts in 64 of them; stored in checkpoints."""
    digest = hashlib.sha256(f"{maker_fingerprint} {len(windows)}".encode())
    columns = [column for column in (STUDENT_IDS, prompt_column("")) if column in windows.column_names]
    for index in _spread(len(windows) - 1, _NUM_IN_CHECKPOINT):
        window = windows[index]
        for column in columns:
            digest.update(np.asarray(window[column], dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def cached_windows_fingerprint(windows: Dataset, teacher: str) -> str:
    """Hash of the number of windows and of a thousand of them, as one teacher sees them; stored in caches.

    It depends on the content alone: the same texts in another place give the same fingerprint.
    """
    places = np.unique(np.linspace(0, len(windows) - 1, min(len(windows), _NUM_IN_CACHE)).astype(int))
    checksums = [window_checksum(windows[int(place)], teacher) for place in places]
    return hashlib.sha256(json.dumps([len(windows), checksums]).encode()).hexdigest()[:32]


def window_checksum(window: Mapping[str, Any], teacher: str) -> int:
    """CRC-32 of a window's tokens, loss mask, spans and separate documents, of the student and one teacher."""
    result = 0
    starts = (column for column in map(starts_column, ("", teacher)) if column in window)
    for column in (STUDENT_IDS, LOSS_MASK, *teacher_columns(teacher), *starts):
        values = np.asarray(window[column], dtype=np.int64).ravel()
        result = zlib.crc32(values.tobytes(), zlib.crc32(len(values).to_bytes(8, "little"), result))
    return result


def _config_file(source: ModelSource) -> Path:
    return _find(source.model, "config.json", source.revision)


def _find(source: str, name: str, revision: str | None) -> Path:
    try:
        found = cached_file(source, name, revision=revision)
        if found is None:  # for a directory, transformers raises no error if this file is missing
            raise FileNotFoundError(f"no {name} in {source}")
        return Path(found)
    except OSError as error:
        what = "an adapter" if name.startswith("adapter") else "a model"
        raise UserError(
            f"{what} must be a directory or a hub id with a {name}; {source!r} (revision {revision!r}) could not be "
            f"read. Check the path or the id. Reason: {reason_of(error)}"
        ) from error


def _spread(last: int, num: int) -> list[int]:
    """Returns at most ``num`` integers from 0 to ``last``, spread evenly."""
    return sorted({last * place // (num - 1) for place in range(num)})


def _add_samples(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name} {size} ".encode())
    with path.open("rb") as file:
        for offset in _spread(max(0, size - _PIECE_BYTES), _NUM_PIECES):
            file.seek(offset)
            digest.update(file.read(_PIECE_BYTES))
