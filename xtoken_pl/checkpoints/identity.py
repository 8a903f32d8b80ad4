"""Who teaches whom: kept in every checkpoint, and compared when training goes on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from xtoken_pl.models.fingerprint import model_fingerprint
from xtoken_pl.specs import Student, Teacher
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

_WAYS_OUT = "give what the run that wrote it was given, or start a new run from its exported student"


#: Of a teacher.
_MAY_CHANGE = ("loss", "alpha", "temperature", "cache", "dtype", "quantization")


@dataclass(frozen=True)
class RunIdentity:
    """What a run may not change when it goes on, and what it may.

    Attributes:
        student: ``model`` and ``revision`` that it started from, and the fingerprint ``tokenizer``; where an adapter
            is trained, what belongs to it as ``adapter``.
        teachers: By name: ``model``, ``revision``, the fingerprints ``weights``, ``tokenizer`` and ``projection`` (of
            the file of W, None where it is built), and whether W is ``learned``.
        settings: By name, those that may change.
    """

    student: dict[str, Any]
    teachers: dict[str, dict[str, str | None]]
    settings: dict[str, Any]

    @classmethod
    def of(
        cls,
        student: Student,
        student_vocabulary: CanonicalVocabulary,
        teachers: Mapping[str, Teacher],
        vocabularies: Mapping[str, CanonicalVocabulary],
        settings: Mapping[str, Any],
        *,
        weights_of_caches: Mapping[str, str],
    ) -> RunIdentity:
        """Reads samples of the teachers' weights; see :func:`xtoken_pl.models.fingerprint.model_fingerprint`.

        Args:
            student, student_vocabulary: What the run starts from.
            teachers, vocabularies: By name.
            settings: By name, what may change.
            weights_of_caches: The fingerprints of teachers that a cache stands for; their weights need not be there.
        """
        described: dict[str, dict[str, str | None]] = {}
        changeable = dict(settings)
        for name, teacher in teachers.items():
            described[name] = {
                "model": teacher.model,
                "revision": teacher.revision,
                "weights": weights_of_caches[name] if name in weights_of_caches else model_fingerprint(teacher),
                "tokenizer": vocabularies[name].fingerprint,
                "projection": _projection(teacher),
                "learned": "yes" if teacher.learn_projection else "no",
            }
            changeable |= {f"{setting} of {name!r}": _plain(getattr(teacher, setting)) for setting in _MAY_CHANGE}
        if student.adapter is not None:
            changeable["dropout of the adapter"] = student.adapter.dropout
        return cls(describe_student(student, student_vocabulary), described, changeable)

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    def check_continues(self, saved: Mapping[str, Any]) -> None:
        """Compares this run with that of a checkpoint; settings that have changed are logged.

        Args:
            saved: What :meth:`to_dict` gave.

        Raises:
            UserError: If a teacher is missing, added or another one, or the student is another one.
        """
        check_student(saved["student"], self.student)
        theirs: Mapping[str, Mapping[str, str | None]] = saved["teachers"]
        if missing := sorted(theirs.keys() - self.teachers.keys()):
            raise UserError(f"the checkpoint was written with teacher {_names(missing)}, not among ours; {_WAYS_OUT}")
        if added := sorted(self.teachers.keys() - theirs.keys()):
            raise UserError(f"the checkpoint was written without teacher {_names(added)}; {_WAYS_OUT}")
        for name, ours in self.teachers.items():
            _check_teacher(name, theirs[name], ours)
        for setting, value in self.settings.items():
            if (before := saved["settings"].get(setting)) != value:
                rank_zero_info(f"going on with another {setting}: {value}, {before} in the checkpoint")


def describe_student(student: Student, vocabulary: CanonicalVocabulary) -> dict[str, Any]:
    """:attr:`RunIdentity.student`."""
    described: dict[str, Any] = {
        "model": student.model,
        "revision": student.revision,
        "tokenizer": vocabulary.fingerprint,
    }
    if student.adapter is not None:
        targets = student.adapter.target_modules
        described["adapter"] = {
            "rank": student.adapter.rank,
            "alpha": student.adapter.alpha,
            "target_modules": targets if isinstance(targets, str) else sorted(targets),
            "quantization": student.quantization,
            "base": model_fingerprint(student),
        }
    return described


def check_student(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Compares what :func:`describe_student` says now with what it said when a checkpoint was written.

    Raises:
        UserError: If the student has another tokenizer, or an adapter of another kind or on other weights.
    """
    if saved["tokenizer"] != ours["tokenizer"]:
        raise UserError(
            f"the student of the checkpoint has another tokenizer ({saved['tokenizer']} there, {ours['tokenizer']} "
            f"here); {_WAYS_OUT}"
        )
    adapter: Mapping[str, Any] = saved.get("adapter", {})
    our_adapter: Mapping[str, Any] = ours.get("adapter", {})
    if bool(adapter) != bool(our_adapter):
        there, here = ("an adapter", "all weights") if adapter else ("all weights", "an adapter")
        raise UserError(f"the checkpoint holds {there} of a student, and this run trains {here}; {_WAYS_OUT}")
    for part, value in our_adapter.items():
        if adapter[part] != value:
            raise UserError(
                f"the student's adapter has another {part} than in the checkpoint: {adapter[part]} there, {value} "
                f"here; {_WAYS_OUT}"
            )


def _check_teacher(name: str, saved: Mapping[str, str | None], ours: Mapping[str, str | None]) -> None:
    if saved["learned"] != ours["learned"]:
        where = "in the checkpoint" if saved["learned"] == "yes" else "here"
        raise UserError(f"the projection of teacher {name!r} is learned {where} only; {_WAYS_OUT}")
    for part in ("weights", "tokenizer", "projection"):
        if saved[part] != ours[part]:
            raise UserError(
                f"teacher {name!r} has another {part} than in the checkpoint: {_described(saved, part)} there, "
                f"{_described(ours, part)} here; {_WAYS_OUT}"
            )


def _described(teacher: Mapping[str, str | None], part: str) -> str:
    revision = f" at revision {teacher['revision']!r}" if teacher["revision"] else ""
    return f"{teacher[part]} of {teacher['model']!r}{revision}"


def _projection(teacher: Teacher) -> str | None:
    """Of the file of W, from which a learned one starts."""
    if teacher.projection is None:
        return None
    return hashlib.sha256(Path(teacher.projection).read_bytes()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _names(names: list[str]) -> str:
    return ", ".join(map(repr, names))
