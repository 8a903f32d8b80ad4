"""What a cache was made of and which files it has: ``manifest.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path

FORMAT = "xtoken_pl.teacher_cache.v2"
_FILE = "manifest.json"

TopK = int | Literal["all"]


@dataclass(frozen=True)
class Split:
    """The windows of a split."""

    num_windows: int
    fingerprint: str


@dataclass(frozen=True)
class Identity:
    """What decides the content of a cache.

    Attributes:
        model, revision, dtype, quantization: Of the teacher, as given.
        model_fingerprint: Of its weights.
        config_fingerprint: Of its configuration alone, which may be there where the weights are not.
        student_tokenizer, teacher_tokenizer: Their fingerprints.
        sequence_length: Of the windows.
        temperature: At which the distributions are stored.
        top_k: Tokens of each row, or ``all``.
        precision: Bits of a log-probability.
        shard_windows: Windows of a shard.
        splits: By name.
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
    top_k: TopK
    precision: int
    shard_windows: int
    splits: dict[str, Split]

    def differences(self, other: Identity) -> Iterator[str]:
        """Names what ``other`` has otherwise."""
        for item in fields(self):
            ours, theirs = getattr(self, item.name), getattr(other, item.name)
            if ours != theirs:
                yield f"{item.name} {_short(ours)} here, {_short(theirs)} there"


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard.

    Attributes:
        num_spans, num_tokens: Of its windows; tokens are the student's, of those that are learned.
        num_bytes, sha256: Of the file.
    """

    file: str
    num_windows: int
    num_spans: int
    num_tokens: int
    num_bytes: int
    sha256: str


@dataclass
class Manifest:
    """The content of ``manifest.json``; ``shards`` are those that are finished, by split."""

    identity: Identity
    shards: dict[str, list[ShardEntry]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads the manifest of a cache.

        Raises:
            UserError: If there is none.
            UserError: If it is damaged, or of another format.
        """
        path = folder / _FILE
        if not path.is_file():
            raise UserError(
                f"cache must be a folder that `python -m xtoken_pl cache` wrote; {str(folder)!r} has no {_FILE}"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise UserError(f"format {content['format']!r}, not {FORMAT!r}")
            splits = {name: Split(**split) for name, split in content["identity"].pop("splits").items()}
            shards = {name: [ShardEntry(**entry) for entry in part] for name, part in content["shards"].items()}
            return cls(Identity(**content["identity"], splits=splits), shards)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path} is no manifest of a cache ({error}); build the cache anew with overwrite"
            ) from error

    def save(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        content: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        with atomic_path(folder / _FILE, kind="file", overwrite=True) as part:
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether there is one."""
        return (folder / _FILE).exists()

    @property
    def entries(self) -> list[ShardEntry]:
        """The finished shards of all splits."""
        return [entry for part in self.shards.values() for entry in part]

    def num_shards(self, split: str) -> int:
        """Of a split, when it is complete."""
        return -(-self.identity.splits[split].num_windows // self.identity.shard_windows)


def _short(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)
    return "{" + ", ".join(f"{k}: {split.num_windows:,} ({split.fingerprint[:8]})" for k, split in value.items()) + "}"
