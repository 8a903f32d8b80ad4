"""Finds the teacher tokens that cannot follow the student's last token, which would have taken them in."""

from __future__ import annotations

import numpy as np

from xtoken_pl.prefix_map.prefix_map import PrefixMap
from xtoken_pl.prefix_map.trie import ByteTrie
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.ranges import Bools, Ints, expand

# R positions, V_s vocabulary size of the student, F bytes of all teacher tokens


class Exclusion:
    """Tells which teacher tokens the end of the student's last token excludes.

    Args:
        prefix_map: Prefix map of the pair.
        student, teacher: Vocabularies of the pair.
    """

    def __init__(self, prefix_map: PrefixMap, student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> None:
        self.map = prefix_map
        self.student_bytes = student.num_bytes
        longest = prefix_map.longest
        covered = np.where(longest >= 0, self.student_bytes[longest], 0)
        #: ``[F]`` True if a teacher token's bytes from this one on are one student token.
        self.is_token = covered == np.repeat(teacher.offsets[1:], teacher.num_bytes) - np.arange(len(longest))
        self._first_excluded, self._excluded = _excluded_tokens(prefix_map, student, teacher)

    def at_boundaries(self, previous: Ints, token: Ints) -> tuple[Ints, Ints]:
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

    def excluding_bytes(self, previous: Ints, token: Ints, consumed: Ints, *, is_inside: Bools) -> Ints:
        """``[R]`` bytes of the student's last token if it excludes teacher tokens that go on at positions, or 0.

        It excludes those whose rest it would have taken in. It must lie in the observed teacher token. Where that would
        be excluded itself the text is not the student's own writing, and nothing is.

        Args:
            previous: ``[R]`` student token before each position.
            token: ``[R]`` observed teacher token that the position lies in, or that ends there.
            consumed: ``[R]`` bytes of that token before the position.
            is_inside: ``[R]`` bool, True if the position lies in it.
        """
        length = self.student_bytes[previous]
        lies_in = (length > 0) & (length <= consumed)
        byte = np.where(lies_in, self.map.offsets[token] + consumed - length, 0)
        return np.where(lies_in & ~(is_inside & self.is_token[byte]), length, 0)


def _excluded_tokens(
    prefix_map: PrefixMap, student: CanonicalVocabulary, teacher: CanonicalVocabulary
) -> tuple[Ints, Ints]:
    """Finds the pairs of a student token and a teacher token, the last of a spelling, that are one student token.

    Returns:
        ``[V_s + 1]`` first entry of each student token; the teacher token of each entry.
    """
    trie, by_student = prefix_map.trie, ByteTrie.from_vocabulary(student)
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
