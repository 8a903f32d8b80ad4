"""Tokens of one side that the other side writes in several tokens, found along the observed tokens of spans."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xtoken_pl.prefix_map.trie import Trie
from xtoken_pl.projection.build import exact_matches
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.writing import whole_tokens, write_bytes
from xtoken_pl.utilities.ranges import Ints, expand

# N tokens of a batch, S spans, E endings


class Endings(NamedTuple):
    """Single tokens that the other side writes as the first observed tokens of a span and a last one of its own.

    Attributes:
        span: ``[E]`` index of the span.
        token: ``[E]`` single token.
        last: ``[E]`` last token that it is written with.
        num_tokens: ``[E]`` number of tokens that it is written with, >= 2.
    """

    span: Ints
    token: Ints
    last: Ints
    num_tokens: Ints


class Spellings:
    """Tokens of one vocabulary that another one writes in several tokens, of equal spellings the one of lowest id.

    Args:
        single: Vocabulary of the tokens that are written.
        writer: Vocabulary that writes them, as its tokenizer does in the middle of a text.
    """

    def __init__(self, single: CanonicalVocabulary, writer: CanonicalVocabulary) -> None:
        exact = exact_matches(single, writer)
        tokens = [token for token in whole_tokens(single).values() if exact[token] < 0]
        written = map(tuple, write_bytes(writer, [single.token_bytes[token] for token in tokens]))
        spelled = sorted(
            (spelling, token) for spelling, token in zip(written, tokens, strict=True) if len(spelling) > 1
        )
        lengths = np.array([len(spelling) for spelling, _ in spelled], dtype=np.int64)
        symbols = np.array([symbol for spelling, _ in spelled for symbol in spelling], dtype=np.int64)
        self.trie, _ = Trie.from_sequences(symbols, np.cumsum(lengths) - lengths, lengths, len(writer))
        self.tokens = np.array([token for _, token in spelled], dtype=np.int64)

    def along(self, labels: Ints, first: Ints, length: Ints) -> Endings:
        """Finds the tokens that are written as the first observed tokens of a span, at least one, and any last one.

        The token that is written as the whole span is left out.

        Args:
            labels: ``[N]`` observed tokens of the vocabulary that writes.
            first, length: ``[S]`` first one of each span, and their number.
        """
        trie, span = self.trie, np.flatnonzero(length > 1)
        node, observed = np.zeros_like(span), labels[first + length - 1]
        found = [Endings(span[:0], span[:0], span[:0], span[:0])]
        while len(span):
            depth = len(found)
            node = trie.child(node, labels[first[span] + depth - 1])
            span, node = span[node >= 0], node[node >= 0]
            index, child = expand(trie.first_child[node], trie.first_child[node + 1])
            is_other = (length[span[index]] > depth + 1) | (trie.symbol[child] != observed[span[index]])
            ends = is_other & (trie.num_equal[child] > 0)
            index, child = index[ends], child[ends]
            found.append(
                Endings(span[index], self.tokens[trie.start[child]], trie.symbol[child], np.full_like(child, depth + 1))
            )
            goes_on = length[span] > depth + 1
            span, node = span[goes_on], node[goes_on]
        return Endings(*map(np.concatenate, zip(*found, strict=True)))
