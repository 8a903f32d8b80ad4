"""Texts are rewritten exactly as the tokenizers themselves rewrite them."""

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from normalizing import DECOMPOSED, NORMALIZERS, TEXTS, VIETNAMESE, rewriting, with_normalizer
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.tokenization.normalization import CommonNormalizer, Normalizer, rewritten_share
from xtoken_pl.utilities.errors import UserError


def read_by(vocabulary: CanonicalVocabulary, text: str) -> str:
    """The text that the tokens of a text stand for."""
    stream, _ = vocabulary.byte_stream(np.array(vocabulary.encode([text])[0], dtype=np.int64))
    return stream.tobytes().decode()


@pytest.mark.parametrize("name", NORMALIZERS)
@settings(max_examples=60)
@given(text=TEXTS)
def test_a_normalizer_writes_what_the_tokens_of_the_text_stand_for(name: str, text: str) -> None:
    assert Normalizer(rewriting(name))(text) == read_by(rewriting(name), text)


@settings(max_examples=60)
@given(text=TEXTS)
@example(text="▁a  b▁")
def test_a_sentencepiece_tokenizer_rewrites_only_its_character_for_a_space(
    llama2_style: PreTrainedTokenizerFast, text: str
) -> None:
    vocabulary = CanonicalVocabulary.from_tokenizer(llama2_style)
    rewritten = Normalizer(vocabulary)(text)
    assert rewritten == text.replace("▁", " ")
    assert read_by(vocabulary, text) == " " * bool(text) + rewritten


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_long_text_is_rewritten_as_a_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (VIETNAMESE + DECOMPOSED + "``a''  ＡＢ７ﬁ \u1100\u1161\u11a8 ") * 3
    whole = Normalizer(rewriting(name))(text)
    for length in (1, 7, 50):
        monkeypatch.setattr("xtoken_pl.tokenization.normalization._PIECE_LENGTH", length)
        assert Normalizer(rewriting(name))(text) == whole


@settings(max_examples=200)
@given(text=TEXTS)
@pytest.mark.parametrize(
    "names", [("none", "NFC"), ("NFC", "lowercase, NFKC"), ("NFKD", "quotes"), ("bytes", "spaces")]
)
def test_no_tokenizer_changes_a_text_that_was_rewritten_for_all(names: tuple[str, str], text: str) -> None:
    vocabularies = {name: rewriting(name) for name in names}
    rewritten = CommonNormalizer(vocabularies)(text)
    assert {read_by(vocabulary, rewritten) for vocabulary in vocabularies.values()} == {rewritten}


def test_unicode_forms_are_those_of_the_standard() -> None:
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        common = CommonNormalizer({"student": rewriting("none"), "teacher 't'": rewriting(form)})
        assert common(VIETNAMESE + DECOMPOSED) == unicodedata.normalize(form, VIETNAMESE + DECOMPOSED)
        assert common.description == f"{form} of the teacher 't'"


def test_normalizers_that_contradict_each_other_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"NFC of the student and NFD of the teacher 't'.*data\.normalize to false"):
        CommonNormalizer({"student": rewriting("NFC"), "teacher 't'": rewriting("NFD")})


def test_the_character_for_a_space_is_no_normalizer(llama2_style: PreTrainedTokenizerFast) -> None:
    common = CommonNormalizer({"student": CanonicalVocabulary.from_tokenizer(llama2_style)})
    assert common.description == "no normalizer, since no tokenizer has one"
    composed = normalizers.Sequence([normalizers.NFC(), llama2_style.backend_tokenizer.normalizer])
    assert Normalizer(with_normalizer(llama2_style, composed)).name == "NFC"


@pytest.mark.parametrize(
    ("name", "text", "share"),
    [
        ("none", "cafe\u0301 A  b", 0),
        ("NFC", "cafe\u0301 au", 5 / 8),
        ("NFC", "cafe\u0301 " * 5 + "tea " * 5, 25 / 50),
        ("NFKC", "a\u00a0b", 1 / 3),
        ("lowercase", "Aa bb", 2 / 5),
        ("spaces", "a    b", 4 / 6),
        ("spaces", "", 0),
    ],
)
def test_the_share_of_a_text_that_is_rewritten_counts_words_and_spaces(name: str, text: str, share: float) -> None:
    assert rewritten_share(Normalizer(rewriting(name)), text) == pytest.approx(share)
