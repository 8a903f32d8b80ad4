"""The compiled prefix map: tries against loops, known values on real vocabularies, files and refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prefix_pairs import TEXT, Pair
from real_tokenizers import llama2_style
from small_models import packing_tokenizer, reversing_tokenizer, splitting_tokenizer
from transformers import PreTrainedTokenizerFast
from vocabulary_relations import preferred

from xtoken_pl import BytePrefixKL, CanonicalVocabulary, PrefixMap, build_prefix_map, build_projection
from xtoken_pl.audit.positions import PositionStatistics
from xtoken_pl.cli import main
from xtoken_pl.prefix_map.trie import ByteTrie, Trie
from xtoken_pl.utilities.errors import UserError

sequences_of_small_numbers = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=12)


@given(sequences_of_small_numbers)
def test_trie_has_a_node_for_every_prefix(sequences: list[list[int]]) -> None:
    sequences = sorted(sequences)
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    symbols = np.array([symbol for sequence in sequences for symbol in sequence], dtype=np.int64)
    trie, node = Trie.from_sequences(symbols, np.cumsum(lengths) - lengths, lengths, 4)
    beginnings = {tuple(s[:end]) for s in sequences for end in range(len(s) + 1)} | {()}
    assert len(trie) == len(beginnings)
    place = 0
    for sequence in sequences:
        at = 0
        for depth, symbol in enumerate(sequence, start=1):
            (at,) = trie.child(np.array([at]), np.array([symbol])).tolist()
            assert at == node[place]
            place += 1
            beginning = sequence[:depth]
            inside = [i for i, other in enumerate(sequences) if other[:depth] == beginning]
            assert inside == list(range(trie.start[at], trie.end[at]))
            assert trie.num_equal[at] == sequences.count(beginning)
            assert bool(trie.continues[at]) == any(len(sequences[i]) > depth for i in inside)
            children = trie.symbol[trie.first_child[at] : trie.first_child[at + 1]].tolist()
            assert children == sorted({sequences[i][depth] for i in inside if len(sequences[i]) > depth})
    assert trie.child(np.array([0]), np.array([3])).tolist() == [
        -1 if (3,) not in beginnings else int(np.flatnonzero((trie.parent == 0) & (trie.symbol == 3))[0])
    ]


def test_walk_finds_the_longest_token_and_the_node_of_every_string() -> None:
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    trie = ByteTrie.from_vocabulary(vocabulary)
    by_bytes = {text: s for s, text in reversed(list(enumerate(vocabulary.token_bytes))) if text}
    text = "The 1234 unhappy naïve\n\tcats' 中 tails".encode()
    stream = np.frombuffer(text, dtype=np.uint8)
    pairs = [(i, j) for i in range(len(text)) for j in range(i + 1, min(i + 8, len(text)) + 1)]
    nodes, longest = trie.walk(stream, *(np.array(column) for column in zip(*pairs, strict=True)))
    for (i, j), node, token in zip(pairs, nodes.tolist(), longest.tolist(), strict=True):
        prefixes = [by_bytes[text[i:end]] for end in range(i + 1, j + 1) if text[i:end] in by_bytes]
        assert token == (prefixes[-1] if prefixes else -1)
        beginning_with = {s for s, other in enumerate(vocabulary.token_bytes) if other.startswith(text[i:j])}
        assert (node >= 0) == bool(beginning_with)
        if node >= 0:
            assert {*trie.tokens[trie.trie.start[node] : trie.trie.end[node]].tolist()} == beginning_with


def test_known_counts_of_llama3_from_qwen3(llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast) -> None:
    """Counts student tokens by the number of teacher tokens that spell them; W contains those of two to four."""
    prefix_map = build_prefix_map(llama3, qwen3)
    trie, roots = prefix_map.trie, prefix_map.node_of_token[prefix_map.node_of_token >= 0]
    depth = np.zeros(len(prefix_map.members), dtype=np.int64)
    for node in range(1, len(trie)):
        depth[trie.start[node] : trie.end[node]] = trie.depth[node]
    lengths = Counter(np.concatenate([depth[trie.start[root] : trie.end[root]] for root in roots.tolist()]).tolist())
    assert (lengths[2], lengths[3], lengths[4]) == (12_162, 4_738, 1_091)
    assert lengths[2] + lengths[3] + lengths[4] == build_projection(llama3, qwen3).counts.multi_token
    counts = {label: count for label, count, _ in prefix_map.summary()}
    assert counts["student tokens spelled by several"] == sum(lengths.values()) - lengths[1] == 18_434
    assert counts["student tokens that the teacher cannot write"] == 253  # special ones
    vocabulary, texts = (
        CanonicalVocabulary.from_tokenizer(llama3),
        CanonicalVocabulary.from_tokenizer(qwen3).token_bytes,
    )
    ids = {text: s for s, text in enumerate(vocabulary.token_bytes)}
    # Leading tokens that are no student token themselves: a text may stop there.
    leads = [texts[t] for t in np.flatnonzero(prefix_map.leads).tolist()]
    assert len([text for text in leads if text and text not in ids]) == 133
    assert len({int(prefix_map.lead[ids[text]]) for text in (b"1", b"12", b"123")}) == 1  # digit by digit


@pytest.fixture(scope="module")
def small() -> PrefixMap:
    return build_prefix_map(packing_tokenizer(), splitting_tokenizer())


def assert_same(ours: PrefixMap, theirs: PrefixMap) -> None:
    for item in fields(PrefixMap):
        if item.name == "trie":
            assert ours.trie.num_symbols == theirs.trie.num_symbols
            for name, array in ours.trie.arrays().items():
                assert np.array_equal(array, theirs.trie.arrays()[name]), name
        else:
            assert np.array_equal(getattr(ours, item.name), getattr(theirs, item.name)), item.name


def test_a_byte_piece_never_stands_for_bytes_that_a_spelled_token_has() -> None:
    """As receiver of mass, or as the token that text with these bytes is written in."""
    student = llama2_style(420)
    prefix_map, written = (
        build_prefix_map(student, packing_tokenizer()),
        preferred(CanonicalVocabulary.from_tokenizer(student)),
    )
    for receivers in (prefix_map.longest, prefix_map.fallback):
        assert set(receivers[receivers >= 0].tolist()) <= written


def test_a_saved_map_is_loaded_unchanged(small: PrefixMap, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "map.safetensors"
    small.save(path)
    assert_same(PrefixMap.load(path), small)
    assert [file.name for file in path.parent.iterdir()] == ["map.safetensors"], "nothing is left beside it"
    content = path.read_bytes()
    with pytest.raises(UserError, match="exists and is not overwritten"):
        small.save(path)
    assert path.read_bytes() == content
    small.save(path, overwrite=True)


def test_a_map_for_other_tokenizers_is_refused_and_the_side_is_named(small: PrefixMap) -> None:
    student, teacher, other = (
        CanonicalVocabulary.from_tokenizer(make())
        for make in (packing_tokenizer, splitting_tokenizer, reversing_tokenizer)
    )
    small.check_belongs_to(student, teacher)
    with pytest.raises(ValueError, match=rf"its student tokenizer.*{other.fingerprint}"):
        small.check_belongs_to(other, teacher)
    with pytest.raises(ValueError, match=rf"its teacher tokenizer.*{other.fingerprint}"):
        small.check_belongs_to(student, other)


def test_damaged_and_foreign_files_are_refused(small: PrefixMap, tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    with pytest.raises(UserError, match="there is none at"):
        PrefixMap.load(path)
    small.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is truncated or damaged"):
        PrefixMap.load(path)
    build_projection(packing_tokenizer(), splitting_tokenizer()).save(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="prefix_map must be a file of format"):
        PrefixMap.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["lead", "longest", "members", "node_of_rest", "fallback", "order"])
def test_arrays_that_do_not_fit_are_refused(small: PrefixMap, name: str) -> None:
    broken = getattr(small, name).copy()
    broken[3] = 10**6
    with pytest.raises(ValueError, match=rf"{name} of a prefix map must be in \[-1, \d+\), got .* to 1000000"):
        replace(small, **{name: broken})
    if name in ("members", "node_of_rest", "fallback"):
        with pytest.raises(ValueError, match=rf"{name} of a prefix map must be \d+, got \d+"):
            replace(small, **{name: getattr(small, name)[:-1]})


def test_command_writes_the_map_and_prints_its_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: PrefixMap
) -> None:
    monkeypatch.chdir(tmp_path)
    packing_tokenizer().save_pretrained("student")
    splitting_tokenizer().save_pretrained("teacher")
    arguments = ["prefix_map", "--student", "student", "--teacher", "teacher", "--output", "map.safetensors"]
    main(arguments)
    printed = capsys.readouterr().out
    for label, count, _ in small.summary():
        assert f"{label:<52}{count:>9,}" in printed
    assert_same(PrefixMap.load("map.safetensors"), small)
    with pytest.raises(UserError, match="exists and is not overwritten"):
        main(arguments)


def test_a_stored_map_gives_the_same_loss_and_a_foreign_one_is_refused(small: PrefixMap, tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    small.save(path)
    pair = Pair.of(packing_tokenizer(), splitting_tokenizer())
    stored = BytePrefixKL(prefix_map=str(path))
    stored.bind(pair.student, pair.teacher, None)
    block = pair.block(*pair.rows())
    assert torch.equal(stored(block).loss, pair.loss(block).loss)
    with pytest.raises(ValueError, match="must belong to the tokenizers"):
        BytePrefixKL(prefix_map=str(path)).bind(pair.teacher, pair.student, None)


@pytest.mark.parametrize(
    "tokenizers", [(packing_tokenizer, splitting_tokenizer), (reversing_tokenizer, packing_tokenizer)]
)
def test_position_statistics_count_the_groups_of_the_reference(
    tokenizers: tuple[Callable[[], PreTrainedTokenizerFast], Callable[[], PreTrainedTokenizerFast]],
) -> None:
    pair = Pair.of(*(make() for make in tokenizers))
    found = PositionStatistics.from_text(pair.student, pair.teacher, TEXT)
    reference = pair.reference()
    ids, teacher_ids = (pair.window[name] for name in ("student_ids", "t/ids"))
    ids, teacher_ids = ids[len(pair.student.prefix_ids) :], teacher_ids[len(pair.teacher.prefix_ids) :]
    rows = [[1 / len(pair.teacher)] * len(pair.teacher)] * len(teacher_ids)
    expected: Counter[str] = Counter()
    for row in (pair.batch.student.rows[pair.spans.student_span < len(pair.spans)] + 1).tolist():
        index = row - len(pair.student.prefix_ids)
        groups = [tokens for _, tokens in reference.groups(index, ids, teacher_ids, rows).values()]
        (size,) = [len(tokens) for tokens in groups if ids[index] in tokens]
        start = sum(len(pair.student.token_bytes[s]) or 1 for s in ids[:index])
        ends = np.cumsum([len(pair.teacher.token_bytes[t]) or 1 for t in teacher_ids])
        is_inside = start > 0 and start not in ends
        expected["inside" if is_inside else "single" if size == 1 else "grouped"] += 1
    assert (found.single, found.grouped, found.inside) == tuple(expected[k] for k in ("single", "grouped", "inside"))
    assert found.skipped == len(pair.batch.student.labels) - expected.total()
    assert found.single > 100
