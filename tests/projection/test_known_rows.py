"""Rows of W on real vocabularies: known values, and the parameters of the construction."""

import math
import string

import pytest
import torch
from projections import Built
from transformers import PreTrainedTokenizerFast

from xtoken_pl.projection import ProjectionParameters

TWO_DIGITS = [f"{number:02}".encode() for number in range(100)]
THREE_DIGITS = [f"{number:03}".encode() for number in range(1000)]


@pytest.mark.parametrize(
    ("text", "row"),
    [
        (b"12", {b"1": 0.9091, b"2": 0.0909}),
        (b"123", {b"1": 0.9009, b"2": 0.0901, b"3": 0.0090}),
        (b"&ZeroWidthSpace", {b"&": 0.9001, b"Zero": 0.0900, b"Width": 0.0090, b"Space": 0.0009}),
        (b" republika", {b" rep": 0.9001, b"ub": 0.0900, b"li": 0.0090, b"ka": 0.0009}),
    ],
)
def test_tokens_of_several_teacher_tokens_have_the_papers_weights(
    llama3_from_qwen3: Built, text: bytes, row: dict[bytes, float]
) -> None:
    assert llama3_from_qwen3.row(text) == pytest.approx(row, abs=1e-4)
    assert llama3_from_qwen3.num_exact([text]) == 0


@pytest.mark.parametrize(
    ("text", "row"),
    [
        (b"11", {b"1": 1.0}),
        (b"112", {b"1": 0.99 / 0.999, b"2": 0.009 / 0.999}),
        (b"122", {b"1": 0.9 / 0.999, b"2": 0.099 / 0.999}),
        (b"121", {b"1": 0.909 / 0.999, b"2": 0.09 / 0.999}),
    ],
)
def test_weights_of_a_repeated_teacher_token_add_up(
    llama3_from_qwen3: Built, text: bytes, row: dict[bytes, float]
) -> None:
    assert llama3_from_qwen3.row(text) == pytest.approx(row, abs=1e-6)
    assert llama3_from_qwen3.num_exact([text]) == 0


def test_a_token_of_more_than_four_teacher_tokens_has_a_zero_row(llama3_from_qwen3: Built) -> None:
    """`.:.:.:.:` is five Qwen3 tokens: `.`, three times `:.`, and `:`."""
    assert llama3_from_qwen3.row(b".:.:.:.:") == {}


def test_numerals_are_not_exact_under_a_teacher_that_splits_digits(llama3_from_qwen3: Built) -> None:
    assert llama3_from_qwen3.num_exact(TWO_DIGITS) == 0
    assert llama3_from_qwen3.num_exact(THREE_DIGITS) == 0


def test_numerals_are_exact_under_a_teacher_that_groups_digits_alike(llama3_from_o200k: Built) -> None:
    assert llama3_from_o200k.num_exact(TWO_DIGITS) == 100
    assert llama3_from_o200k.num_exact(THREE_DIGITS) == 1000
    assert all(llama3_from_o200k.row(text) == {text: 1.0} for text in TWO_DIGITS + THREE_DIGITS)


@pytest.mark.parametrize("name", ["llama3_from_qwen3", "llama3_from_o200k"])
def test_digits_and_ascii_punctuation_are_exact(request: pytest.FixtureRequest, name: str) -> None:
    built: Built = request.getfixturevalue(name)
    texts = [character.encode() for character in string.digits + string.punctuation]
    assert built.num_exact(texts) == len(texts) == 42
    assert all(built.row(text) == {text: 1.0} for text in texts)


def test_special_tokens_are_mapped_by_role(llama3_from_qwen3: Built, llama3_from_o200k: Built) -> None:
    """Llama 3's <|begin_of_text|>, <|end_of_text|>, <|start_header_id|> and <|eot_id|>; the others have no role."""
    bos, eos, turn_start, turn_end = 128_000, 128_001, 128_006, 128_009
    special = range(128_000, 128_256)
    rows = llama3_from_qwen3.rows()
    assert {s: rows[s] for s in special if s in rows} == {
        eos: {151_645: 1.0},  # <|im_end|> ends texts and turns; Qwen3 has no bos
        turn_start: {151_644: 1.0},
        turn_end: {151_645: 1.0},
    }
    rows = llama3_from_o200k.rows()
    assert {s: rows[s] for s in special if s in rows} == {bos: {199_999: 1.0}, eos: {199_999: 1.0}}
    assert llama3_from_o200k.projection.is_exact[[bos, eos]].all()


def test_a_token_of_several_roles_is_mapped_by_the_first_that_decides(
    smollm2_first_2000: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast
) -> None:
    """SmolLM2's <|im_end|> is eos, turn end and pad: it maps to Qwen3's <|im_end|>, not to its pad <|endoftext|>."""
    rows = Built(smollm2_first_2000, qwen3).rows()
    assert qwen3.pad_token_id < qwen3.eos_token_id
    assert rows[2] == {qwen3.eos_token_id: 1.0}


# Parameters


def test_beta_cancels_out(small_pair: Built) -> None:
    other = Built(small_pair.student.tokenizer, small_pair.teacher.tokenizer, beta=0.3)
    torch.testing.assert_close(other.projection.weights, small_pair.projection.weights)
    assert other.projection.indices.equal(small_pair.projection.indices)


def test_gamma_is_the_ratio_of_neighbouring_weights(
    llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast
) -> None:
    assert Built(llama3, qwen3, gamma=0.5).row(b"123") == pytest.approx({b"1": 4 / 7, b"2": 2 / 7, b"3": 1 / 7})
    assert Built(llama3, qwen3, gamma=1.0).row(b"123") == pytest.approx({b"1": 1 / 3, b"2": 1 / 3, b"3": 1 / 3})


def test_max_tokens_and_top_limit_a_row(llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast) -> None:
    """`.:.:.:.:` is encoded as `.`, three times `:.`, and `:`."""
    longer = Built(llama3, qwen3, max_tokens=5)
    total = 0.9 + 0.0999 + 0.00009
    row = {b".": 0.9 / total, b":.": 0.0999 / total, b":": 0.00009 / total}
    assert longer.row(b".:.:.:.:") == pytest.approx(row, rel=1e-5)
    narrow = Built(llama3, qwen3, max_tokens=5, top=2)
    row = {b".": 0.9 / 0.9999, b":.": 0.0999 / 0.9999}
    assert narrow.row(b".:.:.:.:") == pytest.approx(row, rel=1e-5)
    assert narrow.projection.indices.shape == (len(narrow.student), 2)
    assert Built(llama3, qwen3, max_tokens=2).row(b"123") == {}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0"),
        ({"beta": -0.9}, "beta must be > 0, got -0.9"),
        ({"beta": math.nan}, "beta must be > 0, got nan"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\], got 0"),
        ({"gamma": 1.5}, r"gamma must be in \(0, 1\], got 1.5"),
        ({"gamma": math.nan}, r"gamma must be in \(0, 1\], got nan"),
        ({"max_tokens": 0}, "max_tokens and top must be >= 1, got 0 and 4"),
        ({"top": 0}, "max_tokens and top must be >= 1, got 4 and 0"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectionParameters(**parameters)
