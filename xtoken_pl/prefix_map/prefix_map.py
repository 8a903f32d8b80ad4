"""The compiled map between two tokenizers: which teacher tokens inform about which student tokens."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from xtoken_pl.prefix_map.trie import Trie
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path, read_safetensors
from xtoken_pl.utilities.ranges import Ints

if TYPE_CHECKING:
    from xtoken_pl.tokenization import CanonicalVocabulary

# V_s/V_t vocabulary sizes (student/teacher), F bytes of all teacher tokens, E members, U nodes

_REBUILD = "rebuild it with `python -m xtoken_pl prefix_map`"


@dataclass(frozen=True)
class PrefixMap:
    r"""Spellings of the student's tokens in teacher tokens, :math:`\tau(s)`, and of the teacher's in student tokens.

    The *members* of a teacher token t are the student tokens whose spelling begins with t. The *rest* of a teacher
    token is what remains of it after its first bytes; the members of a rest are the student tokens that begin with the
    rest, and the teacher spells what follows. A trie divides members by their further teacher tokens. It only contains
    tokens and rests after which at least one member continues.

    Attributes:
        lead: ``[V_s]`` first token of :math:`\tau(s)`, -1 if the teacher cannot write s.
        offsets: ``[V_t + 1]`` start of each teacher token's bytes among the F bytes of all.
        longest: ``[F]`` longest student token that is a prefix of a teacher token's bytes from this one on, -1 for
            none.
        order: ``[T]`` teacher tokens that have bytes, sorted by them.
        extending: ``[F, 2]`` range in ``order`` of the teacher tokens that begin with a token's bytes before this one,
            and are longer.
        num_ended: ``[F]`` number of the teacher tokens that are a token's bytes before this one; they come before the
            longer ones in ``order``.
        longer: ``[V_t, 2]`` range in ``order`` of the teacher tokens that begin with a token and are longer.
        members: ``[E]`` student tokens, in the order of the trie's sequences.
        trie: Trie of sequences; each is a root (a teacher token, or V_t and above for a rest) followed by the teacher
            tokens that spell the remainder of a member.
        node_of_token: ``[V_t]`` node of a teacher token, -1 if no member continues.
        node_of_rest: ``[F]`` node of the rest of a teacher token from this byte on, -1 if no member continues.
        fallback: ``[U]`` longest student token that is a prefix of a node's bytes, -1 for none.
        student_fingerprint: Fingerprint of the student's tokenizer.
        teacher_fingerprint: Fingerprint of the teacher's tokenizer.

    Raises:
        UserError: If the arrays do not fit together.
    """

    lead: Ints
    offsets: Ints
    longest: Ints
    order: Ints
    extending: Ints
    num_ended: Ints
    longer: Ints
    members: Ints
    trie: Trie
    node_of_token: Ints
    node_of_rest: Ints
    fallback: Ints
    student_fingerprint: str
    teacher_fingerprint: str

    def __post_init__(self) -> None:
        num_bytes, num_nodes, num_members = len(self.longest), len(self.trie), int(self.trie.end[0])
        # The length of each array, and the exclusive upper bound of its entries.
        arrays = {
            "lead": (self.lead, self.num_student, self.num_teacher),
            "offsets": (self.offsets, self.num_teacher + 1, num_bytes + 1),
            "longest": (self.longest, num_bytes, self.num_student),
            "order": (self.order, len(self.order), self.num_teacher),
            "extending": (self.extending, num_bytes, len(self.order) + 1),
            "num_ended": (self.num_ended, num_bytes, len(self.order) + 1),
            "longer": (self.longer, self.num_teacher, len(self.order) + 1),
            "members": (self.members, num_members, self.num_student),
            "node_of_token": (self.node_of_token, self.num_teacher, num_nodes),
            "node_of_rest": (self.node_of_rest, num_bytes, num_nodes),
            "fallback": (self.fallback, num_nodes, self.num_student),
        }
        limits = {"parent": num_nodes, "symbol": self.trie.num_symbols}
        for name, array in self.trie.arrays().items():
            arrays[f"trie.{name}"] = (array, num_nodes, limits.get(name, num_members + 1))
        for name, (array, length, limit) in arrays.items():
            if len(array) != length:
                raise UserError(f"the length of {name} of a prefix map must be {length}, got {len(array)}; {_REBUILD}")
            if array.size and (array.min() < -1 or array.max() >= limit):
                raise UserError(
                    f"{name} of a prefix map must be in [-1, {limit}), got {array.min()} to {array.max()}; {_REBUILD}"
                )
        if self.offsets[-1] != num_bytes:
            raise UserError(f"the last offset of a prefix map must be {num_bytes}, got {self.offsets[-1]}; {_REBUILD}")

    @property
    def num_student(self) -> int:
        """Size of the student's vocabulary, V_s."""
        return len(self.lead)

    @property
    def num_teacher(self) -> int:
        """Size of the teacher's vocabulary, V_t."""
        return len(self.node_of_token)

    @cached_property
    def leads(self) -> NDArray[np.bool_]:
        """``[V_t]`` bool, True if the spelling of a student token begins with the teacher token."""
        leads = np.zeros(self.num_teacher, dtype=bool)
        leads[self.lead[self.lead >= 0]] = True
        return leads

    @cached_property
    def heir(self) -> Ints:
        """``[V_t]`` student token that gets the mass of a teacher token that leads none, -1 for none.

        It is the longest student token that is a prefix of the teacher token's bytes.
        """
        has_bytes = self.offsets[1:] > self.offsets[:-1]
        heir = np.full(self.num_teacher, -1)
        heirless = has_bytes & ~self.leads
        heir[heirless] = self.longest[self.offsets[:-1][heirless]]
        return heir

    @cached_property
    def group(self) -> Ints:
        """``[V_t]`` leading token of the group that a teacher token's mass belongs to, -1 for none."""
        inherited = np.where(self.heir >= 0, self.lead[self.heir], -1)
        return np.where(self.leads, np.arange(self.num_teacher), inherited)

    @cached_property
    def column_of_lead(self) -> Ints:
        """``[V_t]`` number of each leading teacher token, from 0; -1 for the others."""
        return np.where(self.leads, np.cumsum(self.leads) - 1, -1)

    def column(self, leads: Ints) -> Ints:
        """Looks up the numbers of leading teacher tokens; -1 for -1."""
        return np.where(leads >= 0, self.column_of_lead[leads], -1)

    @cached_property
    def _place_of_member(self) -> tuple[Ints, Ints]:
        """Sorted keys of (node of depth one, member), and the place of each member."""
        trie = self.trie
        roots = np.arange(1, trie.first_child[1])
        root = np.repeat(roots, trie.end[roots] - trie.start[roots])
        key = root * self.num_student + self.members
        order = np.argsort(key, kind="stable")
        return key[order], order

    def place(self, roots: Ints, tokens: Ints) -> Ints:
        """Finds the places of student tokens among the members of nodes of depth one; -1 if they are not members."""
        keys, places = self._place_of_member
        if not len(keys):
            return np.full(len(roots), -1)
        key = roots * self.num_student + tokens
        index = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        return np.where((keys[index] == key) & (tokens >= 0), places[index], -1)

    @cached_property
    def inherited(self) -> tuple[Ints, Ints, Ints]:
        """Mass that nodes of teacher tokens inherit from teacher tokens that lead none.

        Returns:
            ``[U + 1]`` first entry of each node; for each entry, the teacher token and the place of the member that
            gets its mass.
        """
        tokens = np.flatnonzero(self.heir >= 0)
        node = np.where(self.group[tokens] >= 0, self.node_of_token[self.group[tokens]], -1)
        tokens, node = tokens[node >= 0], node[node >= 0]
        by_node = np.argsort(node, kind="stable")
        tokens, node = tokens[by_node], node[by_node]
        return np.searchsorted(node, np.arange(len(self.trie) + 1)), tokens, self.place(node, self.heir[tokens])

    def summary(self) -> list[tuple[str, int, int]]:
        """Rows of a printed summary: label, count, total."""
        num_leads = int(self.leads.sum())
        in_one = int(np.sum(self.lead >= 0)) - self._num_deeper
        return [
            ("student tokens spelled by one teacher token", in_one, self.num_student),
            ("student tokens spelled by several", self._num_deeper, self.num_student),
            ("student tokens that the teacher cannot write", int(np.sum(self.lead < 0)), self.num_student),
            ("teacher tokens that lead student tokens", num_leads, self.num_teacher),
            ("teacher tokens whose mass a student prefix gets", int(np.sum(self.heir >= 0)), self.num_teacher),
            ("teacher tokens whose mass is dropped", int(np.sum(self.group < 0)), self.num_teacher),
        ]

    @property
    def _num_deeper(self) -> int:
        """Number of student tokens spelled by several teacher tokens: members below a teacher token's own node."""
        roots = self.node_of_token[self.node_of_token >= 0]
        return int(np.sum(self.trie.end[roots] - self.trie.start[roots] - self.trie.num_equal[roots]))

    def check_belongs_to(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> None:
        """Checks that this map was built for the given tokenizers.

        Raises:
            UserError: If a fingerprint differs; the message names the side and both fingerprints.
        """
        for side, vocabulary, fingerprint in (
            ("student", student, self.student_fingerprint),
            ("teacher", teacher, self.teacher_fingerprint),
        ):
            if fingerprint != vocabulary.fingerprint:
                raise UserError(
                    f"a prefix map must belong to the tokenizers that it is used with: its {side} tokenizer has "
                    f"fingerprint {fingerprint}, but {vocabulary.name!r} has {vocabulary.fingerprint}. Rebuild it with "
                    "`python -m xtoken_pl prefix_map`, or leave the path out"
                )

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the map and its fingerprints as one safetensors file, whole or not at all.

        Raises:
            UserError: If ``path`` exists and ``overwrite`` is False.
        """
        header = {
            "format": _FORMAT,
            "num_symbols": str(self.trie.num_symbols),
            "student_fingerprint": self.student_fingerprint,
            "teacher_fingerprint": self.teacher_fingerprint,
        }
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"trie.{name}": array for name, array in self.trie.arrays().items()}
        assert all(array.max(initial=0) < 2**31 for array in arrays.values())
        small = {name: np.ascontiguousarray(array, dtype=np.int32) for name, array in arrays.items()}
        with atomic_path(path, kind="file", overwrite=overwrite) as part:
            save_file(small, part, metadata=header)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PrefixMap:
        """Reads and checks a file written by :meth:`save`.

        Raises:
            UserError: If the file does not exist, is not a prefix map, is damaged, or its arrays do not fit together.
        """
        header, stored = read_safetensors(
            path,
            framework="numpy",
            file_format=_FORMAT,
            names=(*_ARRAYS, *(f"trie.{item}" for item in _TRIE_ARRAYS)),
            setting="prefix_map",
            verb="prefix_map",
        )
        arrays = {name: array.astype(np.int64) for name, array in stored.items()}
        trie = Trie(**{item: arrays[f"trie.{item}"] for item in _TRIE_ARRAYS}, num_symbols=int(header["num_symbols"]))
        try:
            return cls(
                **{item: arrays[item] for item in _ARRAYS},
                trie=trie,
                student_fingerprint=header["student_fingerprint"],
                teacher_fingerprint=header["teacher_fingerprint"],
            )
        except ValueError as error:
            raise UserError(f"{os.fspath(path)!r} is not a valid prefix map: {error}") from error


_FORMAT = "xtoken_pl.prefix_map.v2"
_ARRAYS = [item.name for item in fields(PrefixMap) if item.name != "trie" and "fingerprint" not in item.name]
_TRIE_ARRAYS = [item.name for item in fields(Trie) if item.name != "num_symbols"]
