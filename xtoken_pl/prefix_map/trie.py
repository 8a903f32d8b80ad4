"""Tries stored in arrays: over the bytes of a vocabulary's tokens, or over the tokens that spell other tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.ranges import Ints

# U nodes, E sequences, F symbols of all sequences, concatenated


@dataclass(frozen=True)
class Trie:
    """Trie of sorted sequences: every distinct prefix is a node; node 0 is the empty prefix.

    Nodes are numbered level by level, so that the children of a node are consecutive, in the order of their symbols.

    Attributes:
        start, end: ``[U]`` range of the sequences that begin with the node.
        num_equal: ``[U]`` number of sequences, the first ones of the range, that equal the node.
        depth: ``[U]`` number of symbols of the node, non-decreasing.
        symbol: ``[U]`` last symbol of the node, -1 for node 0.
        parent: ``[U]`` parent of the node, -1 for node 0.
        num_symbols: Exclusive upper bound of the symbols.
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
        """Builds the trie level by level, since sequences with the same prefix are neighbours.

        Args:
            symbols: ``[F]`` symbols of all sequences.
            first: ``[E]`` start of each sequence in ``symbols``; the sequences must be sorted.
            lengths: ``[E]`` length of each sequence, > 0.
            num_symbols: Exclusive upper bound of the symbols.

        Returns:
            The trie, and ``[F]`` the node of each sequence's prefix up to and including each symbol.
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
        """Arrays by name, ``[U]`` each."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "num_symbols"}

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def _keys(self) -> Ints:
        """``[U - 1]`` increasing keys of all nodes except the first."""
        return self.parent[1:] * self.num_symbols + self.symbol[1:]

    @cached_property
    def first_child(self) -> Ints:
        """``[U + 1]`` first child of each node: node n has the children ``first_child[n]:first_child[n + 1]``."""
        return np.searchsorted(self.parent[1:], np.arange(len(self) + 1)) + 1

    @property
    def continues(self) -> NDArray[np.bool_]:
        """``[U]`` bool, True if a sequence continues below the node."""
        return self.end - self.start > self.num_equal

    def child(self, nodes: Ints, symbols: Ints) -> Ints:
        """Finds the child of each node for a symbol, -1 for none."""
        if len(self) == 1:
            return np.full(len(nodes), -1)
        key = nodes * self.num_symbols + symbols
        index = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return np.where(self._keys[index] == key, index + 1, -1)


@dataclass(frozen=True)
class ByteTrie:
    """Trie of the bytes of all tokens of a vocabulary.

    Attributes:
        trie: Trie whose sequences are the tokens that have bytes.
        tokens: ``[E]`` ids of these tokens, sorted by their bytes; of equal ones, a spelled token comes before a byte
            piece, which is never written in its place, then the lowest id.
        node: ``[F]`` node of a token's bytes up to and including each byte, in the order of the vocabulary's bytes.
        longest: ``[U]`` longest token that is a prefix of the node, the first of equal ones; -1 for none.
    """

    trie: Trie
    tokens: Ints
    node: Ints
    longest: Ints

    @classmethod
    def from_vocabulary(cls, vocabulary: CanonicalVocabulary) -> ByteTrie:
        """Builds the trie of a vocabulary, without tokens that have no bytes."""
        lengths, first = vocabulary.num_bytes, vocabulary.offsets[:-1]
        spelled_first = np.flatnonzero(lengths)
        spelled_first = spelled_first[np.argsort(vocabulary.is_byte_piece[spelled_first], kind="stable")]
        in_order = sorted(spelled_first.tolist(), key=vocabulary.token_bytes.__getitem__)  # stable
        tokens = np.array(in_order, dtype=np.int64)
        trie, node = Trie.from_sequences(vocabulary.flat_bytes.astype(np.int64), first[tokens], lengths[tokens], 256)
        longest = np.full(len(trie), -1)
        whole = node[first[tokens] + lengths[tokens] - 1]
        longest[whole[::-1]] = tokens[::-1]  # the first of equal tokens stays
        edges = np.searchsorted(trie.depth, np.arange(2, trie.depth[-1] + 2))
        for low, high in pairwise(edges.tolist()):
            level = longest[low:high]
            level[level < 0] = longest[trie.parent[low:high]][level < 0]
        return cls(trie, tokens, node, longest)

    def walk(self, stream: NDArray[np.uint8], starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
        """Looks up many strings ``stream[start:end]`` in parallel.

        Returns:
            Node of each whole string, -1 if no token begins with it; and the longest token that is a prefix of each
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
