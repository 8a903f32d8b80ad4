"""Builds the prefix map of two tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from xtoken_pl.prefix_map.prefix_map import PrefixMap
from xtoken_pl.prefix_map.trie import ByteTrie, Trie
from xtoken_pl.projection.build import exact_matches
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.writing import whole_tokens, write_bytes
from xtoken_pl.utilities.ranges import Ints, expand

#: Root, student token, and the teacher tokens that spell the rest of it after the root.
_Sequence = tuple[int, int, Sequence[int]]


def build_prefix_map(
    student_tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase
) -> PrefixMap:
    """Builds the prefix map of two tokenizers.

    A student token with the bytes or the special role of a teacher token is spelled by that token. Every other one, and
    the remainder of one after the rest of a teacher token, is encoded by the teacher's tokenizer, in any number of
    tokens.

    Raises:
        InexactTokenizerError: If a tokenizer's tokens are not exact bytes.
    """
    student = CanonicalVocabulary.from_tokenizer(student_tokenizer)
    teacher = CanonicalVocabulary.from_tokenizer(teacher_tokenizer)
    speller = _Speller(teacher)
    by_student, by_teacher = ByteTrie.from_vocabulary(student), ByteTrie.from_vocabulary(teacher)

    exact = exact_matches(student, teacher).tolist()
    spelled = iter(speller([text for text, t in zip(student.token_bytes, exact, strict=True) if t < 0]))
    spelling = [(t,) if t >= 0 else tuple(next(spelled)) for t in exact]
    lead = np.array([tokens[0] if tokens else -1 for tokens in spelling])
    continues = {tokens[0] for tokens in spelling if len(tokens) > 1}
    sequences: list[_Sequence] = [
        (tokens[0], s, tokens[1:]) for s, tokens in enumerate(spelling) if tokens and tokens[0] in continues
    ]

    # Look up the rest of every teacher token, from every byte on, in the student's trie.
    num_bytes = teacher.num_bytes
    stream, starts = teacher.flat_bytes, np.arange(len(teacher.flat_bytes))
    rest, longest = by_student.walk(stream, starts, np.repeat(teacher.offsets[1:], num_bytes))
    is_inside = starts > np.repeat(teacher.offsets[:-1], num_bytes)
    rests = np.unique(rest[is_inside & (rest > 0)])
    rests = rests[by_student.trie.continues[rests]]
    sequences += _members_of_rests(student, by_student, rests, len(teacher), speller)

    sequences.sort(key=lambda sequence: (sequence[0], *sequence[2]))
    members, trie = _token_trie(sequences, len(teacher) + len(by_student.trie))
    roots = np.arange(1, trie.first_child[1])
    root_symbols = trie.symbol[roots]
    node_of_root = np.full(trie.num_symbols, -1)
    node_of_root[root_symbols] = np.where(trie.continues[roots], roots, -1)
    node_of_rest = np.where(is_inside & (rest > 0), node_of_root[len(teacher) + rest], -1)

    before = np.where(is_inside, by_teacher.node[starts - 1], 0)
    last = np.maximum(teacher.offsets[1:] - 1, 0)
    whole = np.where(num_bytes > 0, by_teacher.node[last] if len(starts) else 0, 0)
    longer = np.stack((by_teacher.trie.start + by_teacher.trie.num_equal, by_teacher.trie.end), axis=1)
    longer[0] = 0  # of no bytes
    return PrefixMap(
        lead=lead,
        offsets=teacher.offsets,
        longest=longest,
        order=by_teacher.tokens,
        extending=longer[before],
        num_ended=by_teacher.trie.num_equal[before],
        longer=longer[whole],
        members=members,
        trie=trie,
        node_of_token=node_of_root[: len(teacher)],
        node_of_rest=node_of_rest,
        fallback=_fallbacks(student, by_student, num_bytes, members, trie),
        student_fingerprint=student.fingerprint,
        teacher_fingerprint=teacher.fingerprint,
    )


def prefix_map_for(path: str | None, student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> PrefixMap:
    """Loads the prefix map of a pair from a file, or builds it if there is none.

    Raises:
        UserError: If the file is no prefix map, or belongs to other tokenizers.
        InexactTokenizerError: If a tokenizer's tokens are not exact bytes.
    """
    if path is None:
        return build_prefix_map(student.tokenizer, teacher.tokenizer)
    prefix_map = PrefixMap.load(path)
    prefix_map.check_belongs_to(student, teacher)
    return prefix_map


class _Speller:
    """Spells bytes in teacher tokens: the one that has them, or as the tokenizer encodes them; () if impossible."""

    def __init__(self, teacher: CanonicalVocabulary) -> None:
        self.teacher = teacher
        self.whole = whole_tokens(teacher)

    def __call__(self, texts: list[bytes]) -> list[tuple[int, ...]]:
        unknown = list(dict.fromkeys(text for text in texts if text and text not in self.whole))
        written = dict(zip(unknown, map(tuple, write_bytes(self.teacher, unknown)), strict=True))
        written[b""] = ()
        return [written[text] if text in written else (self.whole[text],) for text in texts]


def _members_of_rests(
    student: CanonicalVocabulary, by_student: ByteTrie, rests: Ints, first_root: int, speller: _Speller
) -> list[_Sequence]:
    trie = by_student.trie
    index, places = expand(trie.start[rests], trie.end[rests])
    tokens, roots = by_student.tokens[places].tolist(), (first_root + rests[index]).tolist()
    left = [student.token_bytes[s][d:] for s, d in zip(tokens, trie.depth[rests[index]].tolist(), strict=True)]
    spelled = speller(left)
    # Members with a remainder that the teacher cannot write are dropped: it never follows.
    return [
        (root, s, spelling)
        for root, s, text, spelling in zip(roots, tokens, left, spelled, strict=True)
        if spelling or not text
    ]


def _token_trie(sequences: list[_Sequence], num_symbols: int) -> tuple[Ints, Trie]:
    symbols = [symbol for root, _, spelling in sequences for symbol in (root, *spelling)]
    lengths = np.array([1 + len(spelling) for _, _, spelling in sequences], dtype=np.int64)
    trie, _ = Trie.from_sequences(np.array(symbols, dtype=np.int64), np.cumsum(lengths) - lengths, lengths, num_symbols)
    return np.array([s for _, s, _ in sequences], dtype=np.int64), trie


def _fallbacks(
    student: CanonicalVocabulary, by_student: ByteTrie, teacher_bytes: Ints, members: Ints, trie: Trie
) -> Ints:
    """``[U]`` longest student token that is a prefix of a node's bytes, which are read from any of its members."""
    num_bytes = np.zeros(len(trie), dtype=np.int64)
    num_teacher = len(teacher_bytes)
    of_rest = trie.symbol - num_teacher  # node of the student's trie, for nodes of depth one
    first, *deeper = np.split(np.arange(1, len(trie)), np.flatnonzero(np.diff(trie.depth[1:])) + 1)
    is_rest = trie.symbol[first] >= num_teacher
    num_bytes[first] = np.where(
        is_rest,
        by_student.trie.depth[np.where(is_rest, of_rest[first], 0)],
        teacher_bytes[np.where(is_rest, 0, trie.symbol[first])],
    )
    for level in deeper:
        num_bytes[level] = num_bytes[trie.parent[level]] + teacher_bytes[trie.symbol[level]]
    member = members[trie.start[1:]]
    cut = np.minimum(num_bytes[1:], student.num_bytes[member])
    nodes = np.where(cut > 0, by_student.node[np.maximum(student.offsets[member] + cut - 1, 0)], 0)
    return np.append(-1, by_student.longest[nodes])
