"""SentencePiece models have the ids of SentencePiece in the `tokenizers` library, or are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from original_tokenizers import EXACT_OPTIONS, SYMBOLS, is_tie, texts, texts_with_symbols, write_sentencepiece
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from xtoken_pl.tokenization import CanonicalVocabulary, InexactTokenizerError, load_tokenizer
from xtoken_pl.tokenization.converted import as_original, find_original
from xtoken_pl.tokenization.sentencepiece_form import read_model
from xtoken_pl.tokenization.tokenizer_file import PROBES
from xtoken_pl.tokenization.vocabulary import encode_texts


@pytest.mark.parametrize("kind", EXACT_OPTIONS)
def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(kind: str, tmp_path: Path) -> None:
    folder = write_sentencepiece(tmp_path, **EXACT_OPTIONS[kind])
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocabulary = CanonicalVocabulary.from_tokenizer(load_tokenizer(str(folder)))
    drawn = [*texts(3000), *texts_with_symbols(2000)]
    differ = [text for text, ids in zip(drawn, vocabulary.encode(drawn), strict=True) if ids != processor.encode(text)]
    if kind == "unigram":  # which of several equally probable ways is taken depends on rounding
        differ = [text for text in differ if not is_tie(processor, text, vocabulary.encode([text])[0])]
    assert not differ


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram"}, "no byte fallback"),
        ({"model_type": "bpe"}, "no byte fallback"),
        ({"model_type": "bpe", "byte_fallback": True}, r"rewriting rules \(nmt_nfkc\).*U\+0354 behind U\+2049"),
        ({"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "nfkc_cf"}, r"\(nfkc_cf\)"),
        ({"model_type": "char"}, "of the kind word or char"),
        (
            {
                "model_type": "bpe",
                "byte_fallback": True,
                "normalization_rule_name": "identity",
                "treat_whitespace_as_suffix": True,
            },
            "space as ▁ before a word",
        ),
        (
            EXACT_OPTIONS["bpe_as_it_is"] | {"add_dummy_prefix": True},
            "user-defined pieces, such as '<tool>', and puts a space before a text",
        ),
        (
            EXACT_OPTIONS["bpe_as_it_is"] | {"remove_extra_whitespaces": True},
            "user-defined pieces, such as '<tool>', and removes extra spaces",
        ),
        (
            EXACT_OPTIONS["unigram"] | {"user_defined_symbols": ["<tool>"]},
            "user-defined pieces, such as '<tool>', whose scores",
        ),
    ],
    ids=["unigram", "bpe", "nmt_nfkc", "nfkc_cf", "char", "suffix", "prefix", "extra spaces", "symbols of unigram"],
)
def test_a_sentencepiece_model_without_an_exact_fast_form_is_refused_by_what_breaks_it(
    options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    vocabulary = {} if options["model_type"] != "char" else {"vocab_size": 90}
    folder = write_sentencepiece(tmp_path, **options, **vocabulary)
    with pytest.raises(InexactTokenizerError, match=rf"'tokenizer.model' has no exact fast form: .*{reason}"):
        load_tokenizer(str(folder))


def test_a_model_with_unused_pieces_is_refused(tmp_path: Path) -> None:
    folder = write_sentencepiece(tmp_path, **EXACT_OPTIONS["bpe"])
    model = read_model(folder / "tokenizer.model")
    model.pieces[-1].type = 5  # unused
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(InexactTokenizerError, match="pieces of the type unused"):
        load_tokenizer(str(folder))


def test_a_model_with_a_user_defined_piece_that_has_a_space_is_refused(tmp_path: Path) -> None:
    folder = write_sentencepiece(tmp_path, **EXACT_OPTIONS["bpe_as_it_is"])
    model = read_model(folder / "tokenizer.model")
    next(piece for piece in model.pieces if piece.piece == "<tool>").piece = "<the tool>"
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(InexactTokenizerError, match="'<the tool>' has a space that is not written as ▁"):
        load_tokenizer(str(folder))


def test_a_fast_form_that_misses_user_defined_pieces_is_not_accepted(tmp_path: Path) -> None:
    """Pieces with ▁ that are looked for before spaces are written as ▁, as transformers does."""
    folder = write_sentencepiece(tmp_path, **EXACT_OPTIONS["bpe_as_it_is"] | {"user_defined_symbols": ["▁▁of"]})
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    state = json.loads(load_tokenizer(str(folder)).backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["normalized"] = False
    misses = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    assert encode_texts(misses, list(PROBES)) == processor.encode(list(PROBES))
    original = find_original(misses, folder / "tokenizer.model")
    for tokenizer, is_exact in ((misses, False), (as_original(misses, original), True)):
        assert (encode_texts(tokenizer, ["a  of b"]) == [processor.encode("a  of b")]) == is_exact


def test_user_defined_pieces_have_the_bytes_of_their_text(tmp_path: Path) -> None:
    folder = write_sentencepiece(tmp_path, **EXACT_OPTIONS["bpe_as_it_is"])
    vocabulary = CanonicalVocabulary.from_tokenizer(load_tokenizer(str(folder)))
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for symbol in SYMBOLS:
        ident = processor.piece_to_id(symbol)
        assert (vocabulary.is_special[ident], vocabulary.token_bytes[ident]) == (
            False,
            symbol.replace("▁", " ").encode(),
        )


def test_user_defined_pieces_stay_exact_in_a_saved_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_sentencepiece(tmp_path, **EXACT_OPTIONS["bpe_as_it_is"])))
    tokenizer.save_pretrained(tmp_path / "saved")
    drawn = [*texts_with_symbols(300)]
    assert load_tokenizer(str(tmp_path / "saved"))(drawn)["input_ids"] == tokenizer(drawn)["input_ids"]


@pytest.mark.parametrize("add_dummy_prefix", [False, True])
def test_spaces_at_the_ends_of_a_text_stay_in_the_middle_of_one(add_dummy_prefix: bool, tmp_path: Path) -> None:
    options = EXACT_OPTIONS["bpe"] | {"add_dummy_prefix": add_dummy_prefix, "remove_extra_whitespaces": True}
    vocabulary = CanonicalVocabulary.from_tokenizer(load_tokenizer(str(write_sentencepiece(tmp_path, **options))))

    def read_by(ids: list[int]) -> bytes:
        return b"".join(vocabulary.token_bytes[ident] for ident in ids)

    with vocabulary.mid_text_backend() as backend:
        assert read_by(backend.encode(" the ", add_special_tokens=False).ids) == b" the "
    assert read_by(vocabulary.encode([" the "])[0]) == b" " * add_dummy_prefix + b"the"


@pytest.mark.parametrize("kind", EXACT_OPTIONS)
def test_a_text_that_spells_a_special_token_or_a_byte_piece_stays_text(kind: str, tmp_path: Path) -> None:
    vocabulary = CanonicalVocabulary.from_tokenizer(
        load_tokenizer(str(write_sentencepiece(tmp_path, **EXACT_OPTIONS[kind])))
    )
    for text in ("<s>", "</s>a", "<unk><0x0A>", "a <0xE4><0xB8>"):
        (ids,) = vocabulary.encode([text])
        assert b"".join(vocabulary.token_bytes[ident] for ident in ids).removeprefix(b" ") == text.encode()
        assert not vocabulary.is_special[ids].any()


def test_the_tokenizers_library_loses_characters_under_rewriting_rules(tmp_path: Path) -> None:
    """The reason for which such models are refused."""
    folder = write_sentencepiece(tmp_path, model_type="bpe", byte_fallback=True)
    model = read_model(folder / "tokenizer.model")
    rules = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert rules.normalize_str("\u2049") == "!?"
    assert rules.normalize_str("\u2049\u0354") == "!?"
    assert processor.normalize("\u2049\u0354") == "▁!?\u0354"
