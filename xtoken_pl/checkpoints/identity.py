"""Who teaches whom: kept in every checkpoint, and compared when training goes on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from xtoken_pl.models.fingerprint import model_fingerprint
from xtoken_pl.teacher import Teacher
from xtoken_pl.tokenization import CanonicalVocabulary

_WAYS_OUT = "give what the run that wrote it was given, or start a new run from its exported student"


@dataclass(frozen=True)
class RunIdentity:
    """What a run may not change when it goes on, and what it may.

    Attributes:
        student_tokenizer: Its fingerprint.
        teachers: By name: ``model``, ``revision``, and the fingerprints ``weights``, ``tokenizer`` and
            ``projection`` (of the file of a fixed W, None where it is built).
        settings: By name, those that may change.
    """

    student_tokenizer: str
    teachers: dict[str, dict[str, str | None]]
    settings: dict[str, Any]

    @classmethod
    def of(
        cls,
        student: CanonicalVocabulary,
        teachers: Mapping[str, Teacher],
        vocabularies: Mapping[str, CanonicalVocabulary],
        settings: Mapping[str, Any],
    ) -> RunIdentity:
        """Reads samples of the teachers' weights; see :func:`xtoken_pl.models.fingerprint.model_fingerprint`."""
        described: dict[str, dict[str, str | None]] = {}
        changeable = dict(settings)
        for name, teacher in teachers.items():
            described[name] = {
                "model": teacher.model,
                "revision": teacher.revision,
                "weights": model_fingerprint(teacher),
                "tokenizer": vocabularies[name].fingerprint,
                "projection": _fixed_projection(teacher),
            }
            changeable |= {f"alpha of {name!r}": teacher.alpha, f"temperature of {name!r}": teacher.temperature}
        return cls(student.fingerprint, described, changeable)

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    def check_continues(self, saved: Mapping[str, Any]) -> None:
        """Compares this run with that of a checkpoint; settings that have changed are logged.

        Args:
            saved: What :meth:`to_dict` gave.

        Raises:
            ValueError: If a teacher is missing, added or another one, or the student has another tokenizer.
        """
        if saved["student_tokenizer"] != self.student_tokenizer:
            raise ValueError(
                f"the student of the checkpoint has another tokenizer ({saved['student_tokenizer']} there, "
                f"{self.student_tokenizer} here); {_WAYS_OUT}"
            )
        theirs: Mapping[str, Mapping[str, str | None]] = saved["teachers"]
        if missing := sorted(theirs.keys() - self.teachers.keys()):
            raise ValueError(f"the checkpoint was written with teacher {_names(missing)}, not among ours; {_WAYS_OUT}")
        if added := sorted(self.teachers.keys() - theirs.keys()):
            raise ValueError(f"the checkpoint was written without teacher {_names(added)}; {_WAYS_OUT}")
        for name, ours in self.teachers.items():
            _check_teacher(name, theirs[name], ours)
        for setting, value in self.settings.items():
            if (before := saved["settings"].get(setting)) != value:
                rank_zero_info(f"going on with another {setting}: {value}, {before} in the checkpoint")


def _check_teacher(name: str, saved: Mapping[str, str | None], ours: Mapping[str, str | None]) -> None:
    for part in ("weights", "tokenizer", "projection"):
        if saved[part] != ours[part]:
            raise ValueError(
                f"teacher {name!r} has another {part} than in the checkpoint: {_described(saved, part)} there, "
                f"{_described(ours, part)} here; {_WAYS_OUT}"
            )


def _described(teacher: Mapping[str, str | None], part: str) -> str:
    revision = f" at revision {teacher['revision']!r}" if teacher["revision"] else ""
    return f"{teacher[part]} of {teacher['model']!r}{revision}"


def _fixed_projection(teacher: Teacher) -> str | None:
    # One that is learned is compared, and replaced, by what the checkpoint holds.
    if teacher.projection is None or teacher.learn_projection:
        return None
    return hashlib.sha256(Path(teacher.projection).read_bytes()).hexdigest()[:32]


def _names(names: list[str]) -> str:
    return ", ".join(map(repr, names))
