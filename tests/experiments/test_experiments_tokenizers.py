"""The tokenizers of students and teachers differ in numbers, ids and words, and lose nothing."""

from __future__ import annotations

from itertools import accumulate, combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from experiments.prepare import prepare
from experiments.problems import Task, noisy_lines, problems
from experiments.suites import ROOT, read_yaml
from experiments.tokenizers import TokenizerName, make_tokenizer
from xtoken_pl import CanonicalVocabulary, build_projection
from xtoken_pl.projection.partition import VocabularyPartition

NAMES: tuple[TokenizerName, ...] = ("student", "splitting", "packing")
OF_LETTERS: tuple[TokenizerName, ...] = ("pairs", "halves")
ALL = (*NAMES, *OF_LETTERS)
TOKENIZERS = {name: make_tokenizer(name) for name in ALL}
NUMBERS = list(map(str, range(1000)))
SEQUENCE_LENGTH = read_yaml(ROOT / "configs/model.yaml")["data"]["sequence_length"]


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["student", "packing"])
def test_every_number_to_999_is_one_token_wherever_it_stands(name: TokenizerName) -> None:
    tokenizer = TOKENIZERS[name]
    assert [len(ids(tokenizer, number)) for number in NUMBERS] == [1] * 1000
    for text in ("{}+{}={}\n", "has {} pens, gets {} and {}."):
        for number in NUMBERS[::7]:
            assert tokenizer.tokenize(text.format(number, number, number)).count(number) == 3


def test_splitting_tokenizer_has_no_token_of_two_digits() -> None:
    digits = [sum(char.isdigit() for char in token) for token in TOKENIZERS["splitting"].get_vocab()]
    assert max(digits) == 1
    assert [TOKENIZERS["splitting"].tokenize(number) for number in NUMBERS] == [[*number] for number in NUMBERS]


@pytest.mark.parametrize(("one", "other"), [*combinations(NAMES, 2)])
def test_no_two_tokenizers_share_their_ids_or_cut_words_alike(one: TokenizerName, other: TokenizerName) -> None:
    first, second = TOKENIZERS[one], TOKENIZERS[other]
    shared = first.get_vocab().keys() & second.get_vocab().keys()
    assert len(shared) > 256
    assert sum(first.get_vocab()[token] == second.get_vocab()[token] for token in shared) < 0.02 * len(shared)
    assert first.bos_token_id != second.bos_token_id
    words = {word for problem in problems("words", 200, seed=1) for word in problem.prompt.split() if word.isalpha()}
    cut_otherwise = [word for word in words if first.tokenize(f" {word}") != second.tokenize(f" {word}")]
    assert len(cut_otherwise) > len(words) / 4
    for tokenizer, others in ((first, second), (second, first)):  # each has merged words that the other has not
        assert [token for token in tokenizer.get_vocab().keys() - others.get_vocab().keys() if not token.isdigit()]


@pytest.mark.parametrize(
    ("text", "pairs", "halves"),
    [
        ("KQXB>BKQX", "KQ X B > BK Q X", "K QX B > BK QX"),
        ("DCBA>ABCD", "DC BA > AB CD", "D C B A > ABC D"),
        ("KXZB>BKXZ", "K X Z B > BK X Z", "K XZ B > BK XZ"),
        ("SVTU>STUV", "S V T U > ST U V", "SV T U > STU V"),
    ],
)
def test_tokenizers_of_letters_cut_runs_of_capitals_otherwise(text: str, pairs: str, halves: str) -> None:
    assert TOKENIZERS["pairs"].tokenize(text) == pairs.split()
    assert TOKENIZERS["halves"].tokenize(text) == halves.split()
    assert TOKENIZERS["splitting"].tokenize(text) == [*text]
    for name in OF_LETTERS:
        assert TOKENIZERS[name].tokenize("Tom has 12") == TOKENIZERS[name].tokenize("Tom") + ["Ġhas", "Ġ", "1", "2"]


def test_letters_have_spans_of_all_four_kinds_under_the_teacher_that_merges_otherwise() -> None:
    def ends(name: TokenizerName, line: str) -> set[int]:
        return {*accumulate(map(len, TOKENIZERS[name].tokenize(line)))}

    kinds = set()
    for line in noisy_lines("letters", 200, 0.0, seed=0):
        student, teacher = ends("pairs", line), ends("halves", line)
        for start, end in pairwise([0, *sorted(student & teacher)]):
            kinds.add(tuple(sum(start < at <= end for at in side) > 1 for side in (student, teacher)))
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


@pytest.mark.parametrize("name", ["splitting", "packing"])
def test_gold_and_hybrid_kl_differ_in_words_alone(name: TokenizerName) -> None:
    """A number of the student has its own text as a token of the packing teacher; of the splitting one it has none."""
    student, teacher = (CanonicalVocabulary.from_tokenizer(TOKENIZERS[of]) for of in ("student", name))
    strict = VocabularyPartition.strict(student, teacher)
    enlarged = VocabularyPartition.enlarged(student, teacher, build_projection(TOKENIZERS["student"], TOKENIZERS[name]))
    added = {*enlarged.student_common.tolist()} - {*strict.student_common.tolist()}
    added_tokens = TOKENIZERS["student"].convert_ids_to_tokens(sorted(added))
    assert added_tokens
    assert not [token for token in added_tokens if any(char.isdigit() for char in token)]


@pytest.mark.parametrize("name", ALL)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.from_regex(r"[0-9 +=a-zA-Z\n]*", fullmatch=True))
def test_every_text_round_trips(name: TokenizerName, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert tokenizer.decode(ids(tokenizer, text)) == text
    assert tokenizer(text)["input_ids"] == [tokenizer.bos_token_id, *ids(tokenizer, text)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("task", ["addition", "words", "letters"])
def test_every_line_fits_a_window_with_the_end_of_its_text(name: TokenizerName, task: Task) -> None:
    lines = [line for share in (0.0, 1.0) for line in noisy_lines(task, 1500, share, seed=0)]
    assert max(map(len, TOKENIZERS[name](lines)["input_ids"])) + 1 <= SEQUENCE_LENGTH


def test_written_tokenizers_are_read_as_they_were_made(tmp_path: Path) -> None:
    prepare(tmp_path)
    folders = dict.fromkeys(("student", "teacher_student"), "student")
    folders |= {"teacher_splitting": "splitting", "teacher_packing": "packing"}
    folders |= {"student_splitting": "splitting", "student_pairs": "pairs", "teacher_halves": "halves"}
    assert {path.name for path in (tmp_path / "models").iterdir()} == {*folders}
    text = noisy_lines("words", 1, 0.0, seed=0)[0] + "é 7,000€ KQXB>BKQX"
    for folder, name in folders.items():
        read, made = AutoTokenizer.from_pretrained(tmp_path / "models" / folder), make_tokenizer(name)  # type: ignore[arg-type]
        assert read.get_vocab() == made.get_vocab()
        assert read(text)["input_ids"] == made(text)["input_ids"]
        assert (read.bos_token_id, read.eos_token_id) == (made.bos_token_id, made.eos_token_id)
