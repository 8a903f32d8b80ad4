"""Kinds of tokenizers whose tokens are exact bytes, and the refusal of all others."""

from pathlib import Path

import pytest
from real_tokenizers import llama2_style
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xtoken_pl.alignment import SpanAligner
from xtoken_pl.tokenization import CanonicalVocabulary, InexactTokenizerError, load_tokenizer
from xtoken_pl.tokenization.components import read_components
from xtoken_pl.tokenization.vocabulary import BYTE_TO_UNICODE


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


def test_a_unigram_tokenizer_reads_a_spelled_byte_piece_as_that_byte_which_is_in_no_span() -> None:
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), ("▁", -2.0), ("a", -1.0)]
    tokenizer = fast(models.Unigram(pieces, unk_id=0, byte_fallback=True), sentencepiece_decoder(), unk_token="<unk>")
    aligner = SpanAligner(tokenizer, PreTrainedTokenizerFast(tokenizer_object=byte_level()))
    student, teacher = (side.encode(["a <0x41>a"])[0] for side in (aligner.student, aligner.teacher))
    assert [aligner.student.token_bytes[ident] for ident in student] == [b"a", b" ", b"A", b"a"]
    assert aligner.align(student, teacher).to_array().tolist() == [[0, 1, 0, 1], [1, 2, 1, 2], [3, 4, 8, 9]]


def test_sentencepiece_unigram_without_byte_fallback_is_refused_by_name() -> None:
    model = models.Unigram([("<unk>", 0.0), ("▁", -2.0), ("▁a", -1.0)], unk_id=0)
    with pytest.raises(InexactTokenizerError, match=r"'some/tokenizer'.*no byte fallback"):
        read_components(fast(model, sentencepiece_decoder(), unk_token="<unk>"))


def test_byte_pieces_that_the_model_does_not_fall_back_to_are_no_byte_fallback() -> None:
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), ("▁", -2.0), ("▁a", -1.0)]
    unigram = models.Unigram(pieces, unk_id=0, byte_fallback=False)
    bpe = models.BPE({piece: index for index, (piece, _) in enumerate(pieces)}, [], unk_token="<unk>")
    for model in (unigram, bpe):
        tokenizer = fast(model, sentencepiece_decoder(), unk_token="<unk>")
        assert tokenizer("é")["input_ids"] == [0]
        with pytest.raises(InexactTokenizerError, match=r"'some/tokenizer'.*no byte fallback"):
            read_components(tokenizer)


@pytest.mark.parametrize(
    ("left_out", "added", "reason"),
    [
        ("<0xC7>", [], "no piece for the byte 0xC7"),
        ("<0x0A>", [], "no piece for the byte 0x0A"),
        ("<0x20>", ["▁"], None),
        ("<0x0A>", ["\n"], None),
        ("<0xC0>", [], None),  # no byte of UTF-8
    ],
)
def test_byte_fallback_needs_a_piece_for_each_byte_of_utf8(left_out: str, added: list[str], reason: str | None) -> None:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" != left_out), *added]
    model = models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = fast(model, sentencepiece_decoder(), unk_token="<unk>")
    if reason is None:
        assert read_components(tokenizer).kind == "metaspace"
    else:
        with pytest.raises(InexactTokenizerError, match=rf"'some/tokenizer'.*{reason}"):
            read_components(tokenizer)


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_added_tokens_have_the_bytes_that_they_stand_for(kind: str) -> None:
    backend = llama2_style(space_first=False).backend_tokenizer if kind == "metaspace" else byte_level()
    vocabulary = with_added(backend, ["éÅ", "<tool>", "ĠĠ", "  "])
    texts = ["éÅ and <tool>", "ĠĠ▁x", "  <tool>▁▁"]
    for text, ids in zip(texts, vocabulary.encode(texts), strict=True):
        assert any(ident >= len(backend.get_vocab()) for ident in ids)
        expected = text.replace("▁", " ") if kind == "metaspace" else text
        assert b"".join(vocabulary.token_bytes[ident] for ident in ids) == expected.encode()


def test_an_added_token_with_the_id_of_a_byte_is_refused() -> None:
    with pytest.raises(InexactTokenizerError, match="the added token 'Ġ', and elsewhere stands for the bytes b' '"):
        with_added(byte_level(), ["Ġ"])


def test_a_space_that_is_no_text_is_written_behind_each_added_token_too() -> None:
    """The library normalizes each stretch between added tokens by itself; the space has no counterpart elsewhere."""
    vocabulary = with_added(llama2_style().backend_tokenizer, ["<tool>"])
    (ids,) = vocabulary.encode(["a<tool>b<tool>"])
    assert [vocabulary.token_bytes[ident] for ident in ids] == [b" a", b"<tool>", b" b", b"<tool>"]
    aligner = SpanAligner(vocabulary.tokenizer, with_added(byte_level(), ["<tool>"]).tokenizer)
    spans = aligner.align(ids, aligner.teacher.encode(["a<tool>b<tool>"])[0]).to_array()
    assert spans.tolist() == [[0, 1, 0, 1], [1, 2, 1, 2], [3, 4, 3, 4]]


def with_added(backend: Tokenizer, tokens: list[str]) -> CanonicalVocabulary:
    changed = Tokenizer.from_str(backend.to_str())
    changed.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    return CanonicalVocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=changed))


@pytest.mark.parametrize(
    "stripping",
    [
        normalizers.Strip(),
        normalizers.Strip(left=True, right=False),
        normalizers.Sequence([normalizers.NFC(), normalizers.Sequence([normalizers.Strip()])]),
        normalizers.Replace(Regex(r"\A\s+|\s+\z"), ""),
        normalizers.Sequence([normalizers.Replace(Regex(r"\A *"), ""), normalizers.Replace(Regex(r"\s\z"), "")]),
        normalizers.Sequence([normalizers.Replace(" ", "▁"), normalizers.Replace(Regex(r"\A▁+|▁+\z"), "")]),
    ],
    ids=["Strip", "Strip left", "nested", "Replace", "two of them", "behind ▁"],
)
@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_white_space_at_the_ends_stays_in_the_middle_of_a_text(kind: str, stripping: normalizers.Normalizer) -> None:
    is_metaspace = kind == "metaspace"
    backend = Tokenizer.from_str(
        (llama2_style(space_first=False).backend_tokenizer if is_metaspace else byte_level()).to_str()
    )
    backend.normalizer = normalizers.Sequence(
        [stripping, normalizers.Replace(" ", "▁")] if is_metaspace else [stripping]
    )
    vocabulary = with_added(backend, [])

    def read(ids: list[int]) -> bytes:
        text = b"".join(vocabulary.token_bytes[ident] for ident in ids)
        return text.replace("▁".encode(), b" ")

    whole = read(vocabulary.encode([" the end "])[0])
    assert whole != b" the end "
    assert whole.strip() == b"the end"
    with vocabulary.mid_text_backend() as middle:
        assert read(middle.encode(" the end ", add_special_tokens=False).ids) == b" the end "


@pytest.mark.parametrize("pattern", [r"\s+", " {2,}", r"(?<=a) ", r"\A#+"])
def test_what_a_normalizer_removes_inside_a_text_is_removed_in_the_middle_of_one(pattern: str) -> None:
    backend = byte_level()
    backend.normalizer = normalizers.Replace(Regex(pattern), "")
    vocabulary = with_added(backend, [])
    with vocabulary.mid_text_backend() as middle:
        for text in ("#a b  c ", " a "):
            assert middle.encode(text, add_special_tokens=False).ids == vocabulary.encode([text])[0]


@pytest.mark.parametrize("pattern", [r"\A +| +\z| {2,}", "^ +", r"\s+$"])  # ^ and $ are the ends of lines
def test_a_step_that_removes_spaces_at_the_ends_and_inside_is_refused_in_the_middle_of_a_text(pattern: str) -> None:
    backend = byte_level()
    backend.normalizer = normalizers.Replace(Regex(pattern), "")
    vocabulary = with_added(backend, [])
    with (
        pytest.raises(InexactTokenizerError, match="at the ends of a text and also inside"),
        vocabulary.mid_text_backend(),
    ):
        pass


def byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE({character: byte for byte, character in BYTE_TO_UNICODE.items()}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def test_a_directory_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_tokenizer(str(tmp_path))
