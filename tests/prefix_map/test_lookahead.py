"""Groups that the teacher's own continuations divide, against probabilities that are counted over a toy language."""

from __future__ import annotations

import pytest
import torch
from prefix_groups import listed
from prefix_pairs import Pair
from small_models import numeral_tokenizer, packing_tokenizer, splitting_tokenizer
from torch import Tensor
from toy_languages import EOS, Language, Position, Toy

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.prefix_map import Lookahead, build_prefix_map

TEXTS = ("0110", "10110100", "0001", "01101011", "11100", "0010110")


class LanguageReader:
    """A teacher of a toy language that reads what it is told to, and remembers how much that was."""

    def __init__(self, language: Language, pair: Pair, text: bytes) -> None:
        self.language, self.labels = language, pair.batch.teachers["t"].tokens.labels
        self.texts = pair.teacher.token_bytes
        tokens = (*language.teacher.cut(text), EOS)
        self.prefixes = [tokens[: row + 1] for row in pair.batch.teachers["t"].tokens.rows.tolist()]
        self.vocabulary_size = len(self.texts)

    def append(self, behind: Tensor, tokens: Tensor) -> Tensor:
        first = len(self.prefixes)
        pairs = zip(behind.tolist(), tokens.tolist(), strict=True)
        self.prefixes += [(*self.prefixes[row], self.texts[token]) for row, token in pairs]
        return torch.arange(first, len(self.prefixes))

    def log_probs(self, rows: Tensor) -> Tensor:
        found = [[self.language.row(self.prefixes[row]).get(text, 0.0) for text in self.texts] for row in rows.tolist()]
        return torch.tensor(found, dtype=torch.float64).log()


def lookahead_of(pair: Pair, share: float, num_tokens: int) -> Lookahead:
    prefix_map = build_prefix_map(pair.student.tokenizer, pair.teacher.tokenizer)
    return Lookahead(prefix_map, share, num_tokens)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("num_tokens", [1, 2, 3])
def test_masses_are_the_probabilities_counted_over_all_texts(share: float, num_tokens: int) -> None:
    tokenizers = numeral_tokenizer(longest_token=3), numeral_tokenizer(longest_token=1)
    vocabularies = [CanonicalVocabulary.from_tokenizer(tokenizer) for tokenizer in tokenizers]
    toys = [Toy([text for text in vocabulary.token_bytes if text]) for vocabulary in vocabularies]
    language = Language(*toys, longest=8)
    num_more, levels = 0, set()
    for text in TEXTS:
        pair = Pair.of(*tokenizers, text)
        reader = LanguageReader(language, pair, text.encode())
        rows = reader.log_probs(torch.arange(len(reader.labels)))
        before, _ = pair.groups(rows)
        boundary = lookahead_of(pair, share, num_tokens).extend(pair.plan.boundary, reader)
        pair.batch.teachers["t"].plan = pair.plan.with_boundary(boundary)
        after, _ = pair.groups(rows)
        levels |= set((boundary.start_level >= 0).tolist())
        num_more += len(after.branch_mass) - len(before.branch_mass)
        for place, row in enumerate(boundary.row.tolist()):
            index = int(pair.batch.student.rows[row]) + 1
            counted = Position(language, text.encode(), index).counted()
            found = listed(pair, after, place)
            total = sum(mass for mass, _ in found)
            assert 0 < total <= 1 + 1e-10  # without what cannot follow the last token
            tokens = [token for _, members in found for token in members]
            assert len(tokens) == len(set(tokens))
            for mass, members in found:
                expected = sum(counted.get(pair.student.token_bytes[s], 0.0) for s in members)
                assert mass / total == pytest.approx(expected, abs=1e-10)
    assert num_more > 6
    if share < 0.1:
        assert levels == {False, True}  # groups that leave the path at the position, and below


class RandomReader:
    """A teacher whose rows are random, and sure of few tokens."""

    def __init__(self, pair: Pair, rows: Tensor) -> None:
        self.labels, self.rows, self.vocabulary_size = pair.batch.teachers["t"].tokens.labels, rows, rows.shape[1]

    def append(self, behind: Tensor, tokens: Tensor) -> Tensor:
        first = len(self.rows)
        more = 2 * torch.randn(len(tokens), self.vocabulary_size, dtype=self.rows.dtype)
        self.rows = torch.cat((self.rows, more.log_softmax(-1)))
        return torch.arange(first, len(self.rows))

    def log_probs(self, rows: Tensor) -> Tensor:
        return self.rows[rows]


def test_groups_are_divided_and_nothing_else_changes() -> None:
    """Also what groups inherit from teacher tokens that lead no student token."""
    pair = Pair.of(packing_tokenizer(), splitting_tokenizer())
    _, rows = pair.rows(observed=2.0)
    before, _ = pair.groups(rows)
    whole = pair.plan.boundary
    boundary = lookahead_of(pair, 0.02, 2).extend(whole, RandomReader(pair, rows))
    pair.batch.teachers["t"].plan = pair.plan.with_boundary(boundary)
    after, _ = pair.groups(rows)
    num_divided, num_heirs = {True: 0, False: 0}, boundary.count("heirs") - whole.count("heirs")
    is_open = {*boundary.open_position.tolist()}
    for place in range(len(boundary.row)):
        old, new = ({tuple(sorted(group)): mass for mass, group in listed(pair, g, place)} for g in (before, after))
        assert sum(old.values()) == pytest.approx(sum(new.values()), abs=1e-10)
        group_of = {token: group for group in old for token in group}
        parts = dict.fromkeys(old, 0.0)
        for group, mass in new.items():
            if group:
                (within,) = {group_of[token] for token in group}
                parts[within] += mass
        num_divided[place in is_open] += len(new) > len(old)
        for group in old:
            assert parts[group] == pytest.approx(old[group] if group else 0, abs=1e-10)
    assert all(count > 20 for count in num_divided.values())
    assert num_heirs > 20
