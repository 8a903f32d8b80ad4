"""Tokenizers without a tokenizer.json have the ids of the program that they were written for, or are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from tests.helpers.original_tokenizers import NUM_TOKENS, texts, write_sentencepiece, write_slow, write_tekken
from xtoken_pl.tokenization import CanonicalVocabulary, InexactTokenizerError, load_tokenizer
from xtoken_pl.tokenization.tiktoken_form import read_tekken
from xtoken_pl.utilities.errors import UserError

EXACT: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"},
    "bpe_as_it_is": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "user_defined_symbols": ["<tool>"],
    },
    "unigram": {
        "model_type": "unigram",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
}


@pytest.mark.parametrize("kind", EXACT)
def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(kind: str, tmp_path: Path) -> None:
    folder = write_sentencepiece(tmp_path, **EXACT[kind])
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocabulary = CanonicalVocabulary.from_tokenizer(load_tokenizer(str(folder)))
    drawn = list(texts(3000))
    differ = [text for text, ids in zip(drawn, vocabulary.encode(drawn), strict=True) if ids != processor.encode(text)]
    if kind == "unigram":  # which of several equally probable ways is taken depends on rounding
        differ = [text for text in differ if not _is_tie(processor, text, vocabulary)]
    assert not differ


def _is_tie(processor: Any, text: str, vocabulary: CanonicalVocabulary) -> bool:
    ours = vocabulary.encode([text])[0]
    theirs = processor.encode(text)
    scores = [
        sum(processor.get_score(token) for token in ids if not processor.is_byte(token)) for ids in (ours, theirs)
    ]
    return abs(scores[0] - scores[1]) < 1e-4 * (1 + abs(scores[0]))


def test_a_normalized_text_gives_the_ids_of_sentencepiece_under_its_default_rules(tmp_path: Path) -> None:
    folder = write_sentencepiece(tmp_path, model_type="bpe", byte_fallback=True)
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocabulary = CanonicalVocabulary.from_tokenizer(load_tokenizer(str(folder)))
    drawn = [processor.normalize(text).replace("▁", " ").strip() for text in texts(3000)]
    normal = [text for text in drawn if processor.normalize(text).replace("▁", " ").strip() == text]
    assert len(normal) > 2500
    assert vocabulary.encode(normal) == processor.encode(normal)


def test_a_sentencepiece_model_without_byte_fallback_is_refused_by_that_name(tmp_path: Path) -> None:
    folder = write_sentencepiece(tmp_path, model_type="unigram")
    with pytest.raises(InexactTokenizerError, match="no byte fallback"):
        CanonicalVocabulary.from_tokenizer(load_tokenizer(str(folder)))


def test_a_tekken_file_gives_the_ids_of_tiktoken_behind_its_special_tokens(tmp_path: Path) -> None:
    folder = write_tekken(tmp_path)
    encoding = read_tekken(folder / "tekken.json")
    tokenizer = load_tokenizer(str(folder))
    vocabulary = CanonicalVocabulary.from_tokenizer(tokenizer)
    drawn = list(texts(3000))
    assert vocabulary.encode(drawn) == [encoding.encode_ordinary(text) for text in drawn]
    assert len(vocabulary) == NUM_TOKENS + 10
    assert vocabulary.roles == {"eos": 2, "bos": 1, "unk": 0}


@pytest.mark.parametrize("pattern", [r"\p{L}++|\p{N}{1,3}+|[^\p{L}\p{N}]", r"[\p{Han}]+|[\p{L}&&[^\p{Han}]]+|\s+|."])
def test_a_slow_tokenizer_around_tiktoken_gets_its_fast_form(pattern: str, tmp_path: Path) -> None:
    folder = write_slow(tmp_path, pattern)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=True)
    vocabulary = CanonicalVocabulary.from_tokenizer(tokenizer)
    encoding = read_tekken(write_tekken(tmp_path / "same", pattern) / "tekken.json")
    drawn = list(texts(3000))
    expected = [[token - 10 for token in encoding.encode_ordinary(text)] for text in drawn]
    assert vocabulary.encode(drawn) == expected
    assert (vocabulary.roles["eos"], vocabulary.roles["bos"]) == (NUM_TOKENS + 1, NUM_TOKENS + 3)
    assert not vocabulary.exists[NUM_TOKENS]


def test_ranks_of_tiktoken_without_a_pattern_are_refused(tmp_path: Path) -> None:
    folder = write_slow(tmp_path)
    (folder / "ranks.tiktoken").rename(folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(UserError, match="no pattern by which texts are split"):
        load_tokenizer(str(folder))
