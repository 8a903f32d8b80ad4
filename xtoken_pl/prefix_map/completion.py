"""Finds what may follow the bytes before a position: student tokens as groups, and teacher tokens that cannot."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.prefix_map.prefix_map import PrefixMap
from xtoken_pl.prefix_map.trie import ByteTrie
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.ranges import Ints, expand

Bools = NDArray[np.bool_]

# R positions, V_s vocabulary size of the student, F bytes of all teacher tokens, E student tokens that have bytes

_MOST_CACHED = 512


class TokenGroups(NamedTuple):
    """Groups of student tokens: the group of each member, and the member's place among the sorted tokens."""

    group: Ints
    place: Ints


_NO_GROUPS = TokenGroups(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


class Completion:
    """Tells which tokens may come next, from the bytes before a position and the end of the student's last token there.

    Args:
        prefix_map: Prefix map of the pair.
        student, teacher: Vocabularies of the pair.
    """

    def __init__(self, prefix_map: PrefixMap, student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> None:
        self.map = prefix_map
        self.by_student = ByteTrie.from_vocabulary(student)
        self.student_bytes = student.num_bytes
        self.stream, self.ends = teacher.flat_bytes, np.repeat(teacher.offsets[1:], teacher.num_bytes)
        self.place = np.full(len(student), -1)
        self.place[self.by_student.tokens] = np.arange(len(self.by_student.tokens))
        longest = prefix_map.longest
        covered = np.where(longest >= 0, self.student_bytes[longest], 0)
        #: ``[F]`` True if a teacher token's bytes from this one on are one student token.
        self.is_token = covered == self.ends - np.arange(len(longest))
        self._first_excluded, self._excluded = _excluded_tokens(prefix_map, self.by_student, student, teacher)
        self._cache: dict[tuple[int, int, int], TokenGroups] = {}

    def excluded(self, previous: Ints, token: Ints) -> tuple[Ints, Ints]:
        """Lists the teacher tokens that cannot follow at boundaries: the student's last token would have taken them in.

        Args:
            previous: ``[R]`` student token before each position.
            token: ``[R]`` teacher token behind it. Where it would be excluded the text is not the student's own
                writing, and nothing is.

        Returns:
            Position and teacher token of each entry.
        """
        position, entry = expand(self._first_excluded[previous], self._first_excluded[previous + 1])
        excluded = self._excluded[entry]
        is_broken = np.zeros(len(previous), dtype=bool)
        is_broken[position[excluded == token[position]]] = True
        keep = ~is_broken[position]
        return position[keep], excluded[keep]

    def excluding_bytes(self, previous: Ints, token: Ints, consumed: Ints) -> Ints:
        """``[R]`` bytes of the student's last token if it excludes teacher tokens inside of which positions lie, or 0.

        It excludes those whose rest it would have taken in. It must lie in the observed one, and not exclude it.
        """
        length = self.student_bytes[previous]
        inside = (length > 0) & (length <= consumed)
        byte = np.where(inside, self.map.offsets[token] + consumed - length, 0)
        return np.where(inside & ~self.is_token[byte], length, 0)

    def groups(self, low: int, high: int, consumed: int, excluding: int) -> TokenGroups:
        """Groups the student tokens that can follow inside a teacher token; groups of one token are left out.

        A teacher token says only that its rest comes: the longest student token that is a prefix of the rest, or a
        longer one that begins with the rest. The latter counts for the longest rest that is a prefix of it, since the
        teacher would have written that one. Rests that share a student token share the group.

        Args:
            low, high: Range, in the map's order, of the teacher tokens that begin with the bytes before the position
                and are longer.
            consumed: Number of these bytes.
            excluding: Result of :meth:`excluding_bytes`.
        """
        key = low, consumed, excluding
        if key not in self._cache:
            if len(self._cache) >= _MOST_CACHED:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = self._find_groups(self.map.order[low:high], consumed, excluding)
        return self._cache[key]

    def groups_outside(self, token: int, groups: TokenGroups, consumed: int) -> TokenGroups:
        """The parts of groups, of two tokens at least, that do not begin with the rest of a teacher token."""
        byte = self.map.offsets[token : token + 1] + consumed
        (node,), _ = self.by_student.walk(self.stream, byte, self.ends[byte])
        trie = self.by_student.trie
        if node <= 0 or not len(groups.group):
            return groups
        outside = (groups.place < trie.start[node]) | (groups.place >= trie.end[node])
        return _without_single(groups.group[outside], groups.place[outside])

    def _find_groups(self, tokens: Ints, consumed: int, excluding: int) -> TokenGroups:
        trie = self.by_student.trie
        byte = self.map.offsets[tokens] + consumed
        node, receiver = self.by_student.walk(self.stream, byte, self.ends[byte])
        leads = (node > 0) & (receiver >= 0)
        if not leads.any():
            return _NO_GROUPS
        node, receiver, byte = node[leads], self.place[receiver[leads]], byte[leads]
        # Sorted by their bytes, so that of all rests that are a prefix of a student token the longest comes last.
        owner = np.full(len(self.by_student.tokens), -1)
        for rest, (start, end) in enumerate(zip(trie.start[node].tolist(), trie.end[node].tolist(), strict=True)):
            owner[start:end] = rest
        is_open = ~self.is_token[byte - excluding] if excluding else np.ones(len(byte), dtype=bool)
        owner[(owner >= 0) & ~is_open[owner]] = -1
        # A rest that is no token is received by a shorter one, which belongs to a shorter rest or to none.
        group = np.arange(len(node))
        for rest in np.flatnonzero(is_open & (trie.num_equal[node] == 0)).tolist():
            if (above := owner[receiver[rest]]) >= 0:
                group[rest] = group[above]
            else:
                owner[receiver[rest]] = rest
        place = np.flatnonzero(owner >= 0)
        return _without_single(group[owner[place]], place)


def _without_single(group: Ints, place: Ints) -> TokenGroups:
    """Sorts members by group, numbers groups from 0, and drops those of one member."""
    order = np.argsort(group, kind="stable")
    _, number, size = np.unique(group[order], return_inverse=True, return_counts=True)
    large = size > 1
    keep = large[number]
    return TokenGroups((np.cumsum(large) - 1)[number[keep]], place[order][keep])


def _excluded_tokens(
    prefix_map: PrefixMap, by_student: ByteTrie, student: CanonicalVocabulary, teacher: CanonicalVocabulary
) -> tuple[Ints, Ints]:
    """Finds the pairs of a student token and a teacher token, the last of a spelling, that are one student token.

    Returns:
        ``[V_s + 1]`` first entry of each student token; the teacher token of each entry.
    """
    trie = prefix_map.trie
    roots = np.arange(1, trie.first_child[1])
    node = np.flatnonzero((trie.num_equal > 0) & (trie.depth > 1))
    root = roots[np.searchsorted(trie.start[roots], trie.start[node], side="right") - 1] if len(node) else node
    node = node[trie.symbol[root] < len(teacher)]  # the others spell the remainder of a token
    whole, last = prefix_map.members[trie.start[node]], trie.symbol[node]
    cut = student.num_bytes[whole] - teacher.num_bytes[last]
    before = np.where(cut > 0, by_student.longest[by_student.node[student.offsets[whole] + np.maximum(cut, 1) - 1]], -1)
    ends_so = [
        student.token_bytes[s].endswith(teacher.token_bytes[t])
        for s, t in zip(whole.tolist(), last.tolist(), strict=True)
    ]
    found = (
        np.array(ends_so, dtype=bool)
        & (before >= 0)
        & (student.num_bytes[before] == cut)
        & (cut < student.num_bytes[whole])
    )
    pairs = np.unique(np.stack((before[found], last[found]), axis=1), axis=0)
    first = np.searchsorted(pairs[:, 0], np.arange(len(student) + 1))
    return first, pairs[:, 1]
