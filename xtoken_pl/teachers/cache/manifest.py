"""The manifest of a cache, ``manifest.json``: its settings and its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from xtoken_pl.losses.row_content import RowKind
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path

FORMAT = "xtoken_pl.teacher_cache.v3"
#: Format without ``rows``, which were those of span starts; its shards are the same.
_FORMAT_2 = "xtoken_pl.teacher_cache.v2"
#: Dtype of a teacher whose rows came from a server.
SERVED_DTYPE = "server"
_FILE = "manifest.json"
_LONGEST_VALUE = 120  # a server's fingerprint holds many numbers

TopK = int | Literal["all"]


@dataclass(frozen=True)
class Split:
    """Number and fingerprint of the windows of a split."""

    num_windows: int
    fingerprint: str


@dataclass(frozen=True)
class Identity:
    """Settings that determine the content of a cache.

    Attributes:
        model, revision, dtype, quantization: The teacher's, as specified; the dtype of a server is ``server``.
        model_fingerprint: Fingerprint of the teacher's weights, or of a server's model.
        config_fingerprint: Fingerprint of its configuration, which may be available without the weights; empty if it
            was not available.
        student_tokenizer, teacher_tokenizer: Fingerprints of the tokenizers.
        sequence_length: Sequence length of the windows.
        temperature: Temperature of the stored distributions.
        rows: Which rows are stored.
        top_k: Number of tokens stored per row, or ``all``.
        precision: Bits per log-probability.
        shard_windows: Windows per shard.
        splits: Splits by name.
    """

    model: str
    revision: str | None
    dtype: str
    quantization: str | None
    model_fingerprint: str
    config_fingerprint: str
    student_tokenizer: str
    teacher_tokenizer: str
    sequence_length: int
    temperature: float
    rows: RowKind
    top_k: TopK
    precision: int
    shard_windows: int
    splits: dict[str, Split]

    def differences(self, other: Identity) -> Iterator[str]:
        """Describes each field in which ``other``, the settings of a run, differs from this cache."""
        for item in fields(self):
            ours, theirs = getattr(self, item.name), getattr(other, item.name)
            if ours != theirs:
                yield f"{item.name} is {_short(ours)} in the cache, {_short(theirs)} in this run"


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard.

    Attributes:
        file: Name of the file.
        num_windows: Number of windows.
        num_rows: Number of rows.
        num_tokens: Number of learned student tokens.
        num_bytes: Size of the file.
        sha256: Checksum of the file.
    """

    file: str
    num_windows: int
    num_rows: int
    num_tokens: int
    num_bytes: int
    sha256: str


@dataclass
class Manifest:
    """The content of ``manifest.json``; ``shards`` lists the finished shards by split."""

    identity: Identity
    shards: dict[str, list[ShardEntry]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads the manifest of a cache.

        Raises:
            UserError: If there is no manifest, or it is damaged or has another format.
        """
        path = folder / _FILE
        if not path.is_file():
            raise UserError(
                f"cache must be a directory written by `python -m xtoken_pl cache`, but {str(folder)!r} has no "
                f"{_FILE}; check the path, or build the cache"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] == _FORMAT_2:
                _convert(content)
            if content["format"] != FORMAT:
                raise UserError(f"format {content['format']!r}, not {FORMAT!r}")
            splits = {name: Split(**split) for name, split in content["identity"].pop("splits").items()}
            shards = {name: [ShardEntry(**entry) for entry in part] for name, part in content["shards"].items()}
            return cls(Identity(**content["identity"], splits=splits), shards)
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path} is not a valid manifest of a cache ({error}); rebuild the cache with overwrite"
            ) from error

    def save(self, folder: Path) -> None:
        """Writes the manifest atomically."""
        content: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        with atomic_path(folder / _FILE, kind="file", overwrite=True) as part:
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a directory has a manifest."""
        return (folder / _FILE).exists()

    @property
    def entries(self) -> list[ShardEntry]:
        """The finished shards of all splits."""
        return [entry for part in self.shards.values() for entry in part]

    def num_shards(self, split: str) -> int:
        """Number of shards of a split once it is complete."""
        return -(-self.identity.splits[split].num_windows // self.identity.shard_windows)


def _convert(content: dict[str, Any]) -> None:
    """Converts the content of a manifest of the second format, in place."""
    content["format"], content["identity"]["rows"] = FORMAT, "span_starts"
    for entry in (entry for part in content["shards"].values() for entry in part):
        entry["num_rows"] = entry.pop("num_spans")


def _short(value: Any) -> str:
    if not isinstance(value, dict):
        text = repr(value)
        half = _LONGEST_VALUE // 2  # paths differ at their ends
        return text if len(text) <= _LONGEST_VALUE else f"{text[:half]}...{text[-half:]}"
    return "{" + ", ".join(f"{k}: {split.num_windows:,} ({split.fingerprint[:8]})" for k, split in value.items()) + "}"
