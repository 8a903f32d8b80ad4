"""Where the rows of a cache come from while it is built: the teacher's model in this process, or its server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xtoken_pl.checkpoints.fingerprints import config_fingerprint, fingerprint_or_none, model_fingerprint
from xtoken_pl.checkpoints.served_weights import MAX_PROBE_DIFFERENCE, model_of_fingerprint, probe_difference
from xtoken_pl.models.placement import default_device
from xtoken_pl.specs import Teacher
from xtoken_pl.teachers.cache.manifest import SERVED_DTYPE, Identity, TopK
from xtoken_pl.teachers.cache.row_format import RowFormat
from xtoken_pl.teachers.cache.served_rows import ServedRows
from xtoken_pl.teachers.cache.teacher_rows import ModelRows, RowMaker
from xtoken_pl.teachers.local import place_teachers
from xtoken_pl.teachers.served.checks import check_server
from xtoken_pl.teachers.served.teacher import ServedTeacher
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

_DEFAULT_TOP_K = 64


@dataclass(frozen=True)
class Origin(ABC):
    """Where the rows of a teacher come from.

    Attributes:
        name: Name of the teacher.
        teacher: Specification of the teacher.
        vocabulary: Vocabulary of the teacher.
        sequence_length: Number of tokens of the longest window.
        separates: Whether packed documents must be kept separate.
    """

    name: str
    teacher: Teacher
    vocabulary: CanonicalVocabulary
    sequence_length: int
    separates: bool

    @abstractmethod
    def choose_top_k(self, asked: TopK | None) -> TopK:
        """Returns the number of tokens to store; ``asked`` is None for the default.

        Raises:
            UserError: If the origin gives fewer.
        """

    @abstractmethod
    def describe(self, begun: Identity | None) -> dict[str, Any]:
        """Returns the fields of :class:`Identity` that tell the origin.

        Args:
            begun: Identity of the cache to resume, if there is one.
        """

    @abstractmethod
    def open(self, row_format: RowFormat, identity: Identity) -> RowMaker:
        """Makes the origin ready to compute rows of a cache."""


class ModelOrigin(Origin):
    """The teacher's model, which is loaded into this process."""

    def choose_top_k(self, asked: TopK | None) -> TopK:
        return _DEFAULT_TOP_K if asked is None else asked

    def describe(self, begun: Identity | None) -> dict[str, Any]:
        return {
            "dtype": self.teacher.dtype,
            "quantization": self.teacher.quantization,
            "model_fingerprint": model_fingerprint(self.teacher),
            "config_fingerprint": config_fingerprint(self.teacher),
        }

    def open(self, row_format: RowFormat, identity: Identity) -> ModelRows:
        device, teachers = default_device(), {self.name: self.teacher}
        placed = place_teachers(teachers, {self.name: self.vocabulary}, None, device, separates=self.separates)
        return ModelRows(placed[self.name], row_format, self.teacher.temperature, device)


class ServerOrigin(Origin):
    """The teacher's server, which is asked only if rows are missing."""

    def choose_top_k(self, asked: TopK | None) -> TopK:
        assert self.teacher.server is not None
        given = self.teacher.server.top_k
        if given == "all":
            return _DEFAULT_TOP_K if asked is None else asked
        if asked is None:
            return min(_DEFAULT_TOP_K, given)
        if asked == "all" or asked > given:
            raise UserError(
                f"top_k must be at most the number of tokens that the server of teacher {self.name!r} is asked for, "
                f"{given}, got {asked}; raise `top_k` of the server, or lower --top_k"
            )
        return asked

    def describe(self, begun: Identity | None) -> dict[str, Any]:
        if begun is not None and model_of_fingerprint(begun.model_fingerprint) == self._served.model:
            fingerprint = begun.model_fingerprint  # compared in `open`, if the server has to be asked
        else:
            fingerprint = self._fingerprint
        return {
            "dtype": SERVED_DTYPE,
            "quantization": None,
            "model_fingerprint": fingerprint,
            "config_fingerprint": fingerprint_or_none(config_fingerprint, self.teacher) or "",
        }

    def open(self, row_format: RowFormat, identity: Identity) -> ServedRows:
        if (difference := probe_difference(self._fingerprint, identity.model_fingerprint)) > MAX_PROBE_DIFFERENCE:
            raise UserError(
                "a cache must be built from one model, but the log-probabilities of a probe text that the server of "
                f"teacher {self.name!r} gives differ by {difference:.2g} nats in the mean from those that the cache "
                "was begun with; start the server with that model, or start again with overwrite"
            )
        return ServedRows(self._served, row_format)

    @cached_property
    def _served(self) -> ServedTeacher:
        assert self.teacher.server is not None
        return ServedTeacher(self.name, self.teacher.server, self.vocabulary)

    @cached_property
    def _fingerprint(self) -> str:
        """Fingerprint of the model that the server runs; the server is asked once."""
        check_server(self._served, self.sequence_length)
        assert self._served.fingerprint is not None
        return self._served.fingerprint
