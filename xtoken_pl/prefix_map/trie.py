"""Tries in arrays: of the bytes of a vocabulary's tokens, or of the tokens that write other tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.ranges import Ints

# U nodes, E sequences, F symbols of all sequences, one sequence behind the other


@dataclass(frozen=True)
class Trie:
    """Every distinct beginning of some sorted sequences is a node; node 0 is the empty one.

    Nodes are numbered level by level, so that the children of a node follow one another, in the order of their symbols.

    Attributes:
        start, end: ``[U]`` the range of the sequences that begin with the node.
        num_equal: ``[U]`` how many of them, the first ones, are the node itself.
        depth: ``[U]`` symbols of the node, never decreasing.
        symbol: ``[U]`` the node's last symbol, -1 for node 0.
        parent: ``[U]``, -1 for node 0.
        num_symbols: Symbols are below it.
    """

    start: Ints
    end: Ints
    num_equal: Ints
    depth: Ints
    symbol: Ints
    parent: Ints
    num_symbols: int

    @classmethod
    def from_sequences(cls, symbols: Ints, first: Ints, lengths: Ints, num_symbols: int) -> tuple[Trie, Ints]:
        """Builds it level by level: sequences with the same beginning are neighbours.

        Args:
            symbols: ``[F]``.
            first: ``[E]`` where each sequence begins in ``symbols``; the sequences must be sorted.
            lengths: ``[E]`` of the sequences, > 0.
            num_symbols: Symbols are below it.

        Returns:
            The trie, and ``[F]`` the node that each sequence leads to up to a symbol (included).
        """
        node = np.zeros(len(symbols), dtype=np.int64)
        starts, ends = [np.zeros(1, dtype=np.int64)], [np.array([len(first)])]
        keys: list[Ints] = []
        places, parent, num_nodes = np.arange(len(first)), np.zeros(len(first), dtype=np.int64), 1
        for depth in range(int(lengths.max(initial=0))):
            longer = lengths[places] > depth
            places, parent = places[longer], parent[longer]
            flat = first[places] + depth
            key = parent * num_symbols + symbols[flat]
            is_first = np.concatenate(([True], key[1:] != key[:-1]))
            change = np.flatnonzero(is_first)
            parent = num_nodes + np.cumsum(is_first) - 1
            node[flat] = parent
            num_nodes += len(change)
            starts.append(places[change])
            ends.append(places[np.append(change[1:], len(places)) - 1] + 1)
            keys.append(key[change])
        key = np.concatenate([np.zeros(0, dtype=np.int64), *keys])
        trie = cls(
            start=np.concatenate(starts),
            end=np.concatenate(ends),
            num_equal=np.bincount(node[first + lengths - 1], minlength=num_nodes),
            depth=np.repeat(np.arange(len(starts)), [len(part) for part in starts]),
            symbol=np.append(-1, key % num_symbols),
            parent=np.append(-1, key // num_symbols),
            num_symbols=num_symbols,
        )
        return trie, node

    def arrays(self) -> dict[str, Ints]:
        """By name, ``[U]`` each."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "num_symbols"}

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def _keys(self) -> Ints:
        """``[U - 1]``, of every node but the first, increasing."""
        return self.parent[1:] * self.num_symbols + self.symbol[1:]

    @cached_property
    def first_child(self) -> Ints:
        """``[U + 1]``: the children of node n are ``first_child[n]`` to ``first_child[n + 1]``, exclusive."""
        return np.searchsorted(self.parent[1:], np.arange(len(self) + 1)) + 1

    @property
    def continues(self) -> NDArray[np.bool_]:
        """``[U]``: whether a sequence goes on below the node."""
        return self.end - self.start > self.num_equal

    def child(self, nodes: Ints, symbols: Ints) -> Ints:
        """The child of each node by a symbol, -1 for none."""
        if len(self) == 1:
            return np.full(len(nodes), -1)
        key = nodes * self.num_symbols + symbols
        index = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return np.where(self._keys[index] == key, index + 1, -1)


@dataclass(frozen=True)
class ByteTrie:
    """The beginnings of all tokens of a vocabulary.

    Attributes:
        trie: Its sequences are the tokens that have bytes.
        tokens: ``[E]`` their ids, sorted by their bytes.
        node: ``[F]`` the node that a token's bytes lead to up to a byte (included), where they stand in the vocabulary.
        longest: ``[U]`` the longest token that is a prefix of the node, the lowest id of equal ones; -1 for none.
    """

    trie: Trie
    tokens: Ints
    node: Ints
    longest: Ints

    @classmethod
    def from_vocabulary(cls, vocabulary: CanonicalVocabulary) -> ByteTrie:
        """Builds it; tokens without bytes are in no node but the first."""
        lengths, first = vocabulary.num_bytes, vocabulary.offsets[:-1]
        with_bytes: list[int] = np.flatnonzero(lengths).tolist()
        tokens = np.array(sorted(with_bytes, key=vocabulary.token_bytes.__getitem__), dtype=np.int64)
        trie, node = Trie.from_sequences(vocabulary.flat_bytes.astype(np.int64), first[tokens], lengths[tokens], 256)
        longest = np.full(len(trie), -1)
        whole = node[first[tokens] + lengths[tokens] - 1]
        longest[whole[::-1]] = tokens[::-1]  # sorting is stable: of equal tokens the lowest id stands first
        edges = np.searchsorted(trie.depth, np.arange(2, trie.depth[-1] + 2))
        for low, high in pairwise(edges.tolist()):
            level = longest[low:high]
            level[level < 0] = longest[trie.parent[low:high]][level < 0]
        return cls(trie, tokens, node, longest)

    def walk(self, stream: NDArray[np.uint8], starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
        """Follows many strings ``stream[start:end]`` at once.

        Returns:
            The node of each whole string, -1 where it begins no token; and the longest token that is a prefix of the
            string, -1 for none.
        """
        node, reached = np.zeros(len(starts), dtype=np.int64), np.zeros(len(starts), dtype=np.int64)
        active, place = np.arange(len(starts)), starts.copy()
        while len(active := active[place[active] < ends[active]]):
            node[active] = self.trie.child(node[active], stream[place[active]].astype(np.int64))
            active = active[node[active] >= 0]
            reached[active] = node[active]
            place[active] += 1
        return node, self.longest[reached]
