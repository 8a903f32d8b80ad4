"""Kinds of tokenizers whose tokens are exact bytes, and the refusal of all others."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xtoken_pl.tokenization import CanonicalVocabulary, InexactTokenizerError, load_tokenizer
from xtoken_pl.tokenization.components import read_components


def fast(model: models.Model, decoder: decoders.Decoder | None, **names: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    if decoder is not None:
        backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path="some/tokenizer", **names)


def sentencepiece_decoder() -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def test_wordpiece_is_refused_by_name(wordpiece: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InexactTokenizerError, match="WordPiece"):
        CanonicalVocabulary.from_tokenizer(wordpiece)


def test_word_level_is_refused_by_name() -> None:
    with pytest.raises(InexactTokenizerError, match=r"'some/tokenizer'.*WordLevel"):
        read_components(fast(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"), None, unk_token="[UNK]"))


def test_word_end_suffixes_are_refused_by_name() -> None:
    clip = models.BPE({"a": 0, "b": 1, "b</w>": 2, "ab</w>": 3}, [("a", "b</w>")], end_of_word_suffix="</w>")
    with pytest.raises(InexactTokenizerError, match=r"'some/tokenizer'.*'</w>'"):
        read_components(fast(clip, decoders.BPEDecoder("</w>")))


def test_sentencepiece_bpe_without_byte_fallback_is_refused_by_name() -> None:
    model = models.BPE({"<unk>": 0, "▁": 1, "a": 2, "▁a": 3}, [("▁", "a")], unk_token="<unk>")
    with pytest.raises(InexactTokenizerError, match=r"'some/tokenizer'.*no byte fallback"):
        read_components(fast(model, sentencepiece_decoder(), unk_token="<unk>"))


def test_a_model_without_a_decoder_is_refused_by_name() -> None:
    with pytest.raises(InexactTokenizerError, match=r"'some/tokenizer'.*decoder None"):
        read_components(fast(models.BPE({"a": 0}, []), None))


def test_a_tokenizer_without_a_fast_backend_is_refused_by_name() -> None:
    class SlowTokenizer:
        name_or_path = "some/slow-tokenizer"

    with pytest.raises(InexactTokenizerError, match=r"'some/slow-tokenizer' \(SlowTokenizer\) has no fast backend"):
        read_components(SlowTokenizer())  # type: ignore[arg-type]


def test_sentencepiece_unigram_with_byte_fallback_is_exact() -> None:
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), ("▁", -2.0), ("▁a", -1.0)]
    tokenizer = fast(models.Unigram(pieces, unk_id=0, byte_fallback=True), sentencepiece_decoder(), unk_token="<unk>")
    vocabulary = CanonicalVocabulary.from_tokenizer(tokenizer)
    (ids,) = vocabulary.encode([" aé a"])
    assert b"".join(vocabulary.token_bytes[ident] for ident in ids) == " aé a".encode()


def test_sentencepiece_unigram_without_byte_fallback_is_refused_by_name() -> None:
    model = models.Unigram([("<unk>", 0.0), ("▁", -2.0), ("▁a", -1.0)], unk_id=0)
    with pytest.raises(InexactTokenizerError, match=r"'some/tokenizer'.*no byte fallback"):
        read_components(fast(model, sentencepiece_decoder(), unk_token="<unk>"))


def test_a_directory_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_tokenizer(str(tmp_path))
