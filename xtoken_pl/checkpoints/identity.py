"""Description of a run in its checkpoints: student, teachers and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtoken_pl.checkpoints.fingerprints import file_fingerprint, model_fingerprint
from xtoken_pl.specs import Student, Teacher
from xtoken_pl.tokenization import CanonicalVocabulary

#: Key of a checkpoint under which a run stores its identity and random states.
RUN_KEY = "xtoken_pl"

#: Description of the training data in a checkpoint: values by setting, in words for messages.
DataIdentity = dict[str, int | str]
#: Names of the sources of a mixture, in a :data:`DataIdentity`.
SOURCES_KEY = "sources of data.train, in order"

#: Settings of a teacher that may change when training resumes.
_MAY_CHANGE = ("loss", "alpha", "spans", "temperature", "cache", "server", "dtype", "quantization")


@dataclass(frozen=True)
class RunIdentity:
    """The models of a run, which must stay the same when training resumes, and the settings, which may change.

    Attributes:
        student: See :func:`describe_student`.
        teachers: Teachers by name, each with ``model``, ``revision``, the fingerprints ``weights`` (for a server see
            :mod:`xtoken_pl.checkpoints.served_weights`), ``tokenizer`` and ``projection`` (that of the file of W; None
            if W is built), and whether W is ``learned``.
        settings: Settings by name; a changed setting is logged when training resumes.
    """

    student: dict[str, Any]
    teachers: dict[str, dict[str, str | None]]
    settings: dict[str, Any]

    @classmethod
    def from_models(
        cls,
        student: Student,
        student_vocabulary: CanonicalVocabulary,
        teachers: Mapping[str, Teacher],
        vocabularies: Mapping[str, CanonicalVocabulary],
        settings: Mapping[str, Any],
        *,
        known_weights: Mapping[str, str | None],
    ) -> RunIdentity:
        """Describes a run. Reads samples of the teachers' weights, see :mod:`xtoken_pl.checkpoints.fingerprints`.

        Args:
            student, student_vocabulary: Student at the start of the run, and its vocabulary.
            teachers, vocabularies: Teachers and their vocabularies, by name.
            settings: Settings that may change, by name.
            known_weights: Weight fingerprints of the cached and served teachers, whose weights need not be available;
                None for a server that has not been asked.
        """
        described: dict[str, dict[str, str | None]] = {}
        changeable = dict(settings)
        for name, teacher in teachers.items():
            described[name] = {
                "model": teacher.model,
                "revision": teacher.revision,
                "weights": known_weights[name] if name in known_weights else model_fingerprint(teacher),
                "tokenizer": vocabularies[name].fingerprint,
                "projection": None if teacher.projection is None else file_fingerprint(Path(teacher.projection)),
                "learned": "yes" if teacher.learn_projection else "no",
            }
            changeable |= {f"{setting} of {name!r}": _plain(getattr(teacher, setting)) for setting in _MAY_CHANGE}
        if student.adapter is not None:
            changeable["dropout of the adapter"] = student.adapter.dropout
        return cls(describe_student(student, student_vocabulary), described, changeable)


def describe_student(student: Student, vocabulary: CanonicalVocabulary) -> dict[str, Any]:
    """Returns a student's ``model``, ``revision``, fingerprint ``tokenizer`` and, if it has one, ``adapter``."""
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


def stored_identity(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the :class:`RunIdentity` of a checkpoint, as a mapping; None if the checkpoint has none."""
    state = checkpoint.get(RUN_KEY)
    return None if state is None else state["identity"]


def stored_chat_template(checkpoint: Mapping[str, Any]) -> str | None:
    """Returns the chat template that a run gave its student in place of the tokenizer's own; None if it gave none."""
    template: str | None = checkpoint.get(RUN_KEY, {}).get("chat_template")
    return template


def holds_adapter(state: Mapping[str, Any]) -> bool:
    """Whether the ``state_dict`` of a module holds an adapter."""
    return any(name.startswith("student.") and (".lora_A." in name or ".lora_B." in name) for name in state)


def _plain(value: Any) -> Any:
    if value is None or value == {}:
        return None
    return value if isinstance(value, str | int | float) else str(value)
