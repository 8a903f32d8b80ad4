"""The masses of the byte-prefix KL against probabilities that are counted over all texts of a toy language."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prefix_groups import listed
from prefix_pairs import Pair
from small_models import numeral_tokenizer
from toy_languages import Language, Position, Toy
from transformers import PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary, build_prefix_map
from xtoken_pl.prefix_map.exclusion import Exclusion


@pytest.fixture(scope="module")
def numeral_tokenizers() -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """Numerals of the digits 0 and 1: up to three digits in a token, as Llama 3 packs them, and one by one."""
    return numeral_tokenizer(longest_token=3), numeral_tokenizer(longest_token=1)


@pytest.mark.parametrize("packs", ["student", "teacher"])
def test_masses_are_the_probabilities_counted_over_all_texts(
    packs: str, numeral_tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]
) -> None:
    """Of the student's next token, under a random teacher of canonical sequences, exactly where the docstring says."""
    packing, splitting = numeral_tokenizers
    student, teacher = (packing, splitting) if packs == "student" else (splitting, packing)
    vocabularies = [CanonicalVocabulary.from_tokenizer(tokenizer) for tokenizer in (student, teacher)]
    toys = [Toy([text for text in vocabulary.token_bytes if text]) for vocabulary in vocabularies]
    language = Language(toys[0], toys[1], longest=8)
    num_refined = num_inside = num_open = 0
    for text in ("0110", "10110100", "0001", "01101011", "11100", "0010110"):
        pair = Pair.of(student, teacher, text)
        order = [language.teacher.ids[token] for token in pair.teacher.token_bytes]
        rows = torch.tensor(language.rows(text.encode()), dtype=torch.float64)[:, order]
        rows = rows[pair.batch.teachers["t"].tokens.rows + 1]  # nothing predicts the first token
        plan = pair.plan
        for groups, positions in zip(pair.groups(rows.log()), (plan.boundary, plan.inside), strict=True):
            for place, row in enumerate(positions.row.tolist()):
                index = int(pair.batch.student.rows[row]) + 1
                counted = Position(language, text.encode(), index).counted()
                found = listed(pair, groups, place)
                assert found
                total = sum(mass for mass, _ in found)
                for mass, members in found:
                    expected = sum(counted.get(pair.student.token_bytes[s], 0.0) for s in members)
                    assert mass / total == pytest.approx(expected, abs=1e-10)
                num_refined += bool((positions.level_position == place).any())
            num_inside += len(positions.row) if positions is plan.inside else 0
            num_open += positions.count("open")
    assert num_refined > 6 if packs == "student" else num_inside > 6 and num_open > 12


def test_a_digit_cannot_follow_a_numeral_that_could_have_held_it(
    numeral_tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast],
) -> None:
    """Unless the text has one all the same, as a text of the student's own may."""
    packing, splitting = numeral_tokenizers
    pair = Pair.of(packing, splitting, "01101")
    student, teacher = pair.student.token_bytes, pair.teacher.token_bytes
    digits = np.array([teacher.index(digit) for digit in (b"0", b"1")])
    eos = pair.teacher.roles["eos"]
    exclusion = Exclusion(build_prefix_map(packing, splitting), pair.student, pair.teacher)
    for last in (b"1", b"01", b"011"):
        previous = np.array([student.index(last)])
        _, excluded = exclusion.at_boundaries(previous, np.array([eos]))
        assert {*excluded.tolist()} == ({*digits.tolist()} if len(last) < 3 else set())
        assert all(not len(exclusion.at_boundaries(previous, digits[i : i + 1])[1]) for i in range(2))


def test_a_shorter_student_gets_the_mass_of_all_tokens_that_begin_with_its_own(
    numeral_tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast],
) -> None:
    """Where student tokens are never longer it is byte-prefix marginalization."""
    packing, splitting = numeral_tokenizers
    pair = Pair.of(splitting, packing, "01101")
    _, teacher = pair.rows()
    boundary, _ = pair.groups(teacher)
    assert boundary.branch_mass.numel() == 0
    plan = pair.plan
    for place, row in enumerate(plan.boundary.teacher.tolist()):
        for s, text in enumerate(pair.student.token_bytes):
            if not text:
                continue
            begins = [v for v, other in enumerate(pair.teacher.token_bytes) if other.startswith(text)]
            mass = boundary.column_mass[place, pair.loss.mass.of_student.column[s]].item()
            expected = teacher[row].exp()[begins].sum().item()
            if row:  # the token before, which ends here, might have gone on
                before = pair.teacher.token_bytes[pair.batch.teachers["t"].tokens.labels[row - 1]]
                probs = {t: float(q) for t, q in zip(pair.teacher.token_bytes, teacher[row - 1].exp(), strict=True)}
                ways = [sum(q for t, q in probs.items() if t.startswith(text)) for text in (before, before + text)]
                expected = (probs[before] * expected + ways[1]) / ways[0]
            assert mass == pytest.approx(expected, abs=1e-12)
