"""Canonical bytes, special roles and caching of vocabularies, on real tokenizers."""

import copy
import unicodedata

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from xtoken_pl.tokenization import CanonicalVocabulary

BYTE_LEVEL = ["llama3", "qwen3", "o200k", "smollm2"]
GEMMA3 = pytest.param("gemma3", marks=pytest.mark.slow)  # takes 20 seconds to read
METASPACE = ["llama2_style", GEMMA3]
# SmolLM2 has no token for these bytes of UTF-8 (six control characters, the planes 4 to 11).
SMOLLM2_LACKS = frozenset(b"\x04\x06\x13\x14\x16\x1d\xf1\xf2")
SPELLED_SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|begin_of_text|>", "<bos>", "<s>", "</s>", "<unk>", "<end_of_turn>"]

CHARACTERS = st.one_of(
    st.characters(codec="utf-8"),
    st.sampled_from("abzABZ019 \t\n\r.,_-#'\"<|>"),
    st.sampled_from("éßñЖ中語한글אש🙂👩\u200d\u0301\u0308\u00a0\u200b\ufeffĠĊ"),
)
TEXTS = st.text(CHARACTERS, max_size=60)


@pytest.fixture(scope="module", params=[*BYTE_LEVEL, *METASPACE])
def vocabulary(request: pytest.FixtureRequest) -> CanonicalVocabulary:
    return CanonicalVocabulary.from_tokenizer(request.getfixturevalue(request.param))


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def byte_level(request: pytest.FixtureRequest) -> CanonicalVocabulary:
    return CanonicalVocabulary.from_tokenizer(request.getfixturevalue(request.param))


@pytest.fixture(scope="module", params=METASPACE)
def metaspace(request: pytest.FixtureRequest) -> CanonicalVocabulary:
    return CanonicalVocabulary.from_tokenizer(request.getfixturevalue(request.param))


def canonical_text(vocabulary: CanonicalVocabulary, text: str) -> bytes:
    """Bytes that the tokens of a text must concatenate to; rejects texts that the tokenizer cannot write."""
    if vocabulary.components.kind == "metaspace":
        assume("▁" not in text)
        # The dummy prefix is a token's or a part of a token's bytes; the alignment drops it.
        return b" " * (vocabulary.components.dummy_prefix and text != "") + text.encode()
    assume("smollm2" not in vocabulary.name or not SMOLLM2_LACKS & {*text.encode()})
    return text.encode()


def concatenated(vocabulary: CanonicalVocabulary, ids: list[int]) -> bytes:
    return b"".join(vocabulary.token_bytes[ident] for ident in ids)


# Canonical bytes


@given(text=TEXTS)
def test_tokens_of_a_text_concatenate_to_its_utf8_bytes(vocabulary: CanonicalVocabulary, text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    expected = canonical_text(vocabulary, text)
    assert concatenated(vocabulary, vocabulary.encode([text])[0]) == expected


@given(before=TEXTS, after=TEXTS, data=st.data())
def test_text_that_spells_a_special_token_is_text(
    vocabulary: CanonicalVocabulary, before: str, after: str, data: st.DataObject
) -> None:
    own = [token.content for token in vocabulary.tokenizer.added_tokens_decoder.values() if token.special]
    text = unicodedata.normalize("NFC", before + data.draw(st.sampled_from(SPELLED_SPECIAL + own)) + after)
    expected = canonical_text(vocabulary, text)
    ids = vocabulary.encode([text])[0]
    assert not vocabulary.is_special[ids].any()
    assert concatenated(vocabulary, ids) == expected


@pytest.mark.parametrize("text", ["<|endoftext|>", "<|im_end|>", "<bos>", "</s>"])
def test_text_that_is_nothing_but_a_special_tokens_name_is_text(vocabulary: CanonicalVocabulary, text: str) -> None:
    ids = vocabulary.encode([text])[0]
    assert not vocabulary.is_special[ids].any()
    assert concatenated(vocabulary, ids).lstrip(b" ") == text.encode()


def test_byte_level_tokens_are_their_bytes_in_gpt2s_table(byte_level: CanonicalVocabulary) -> None:
    undo = {character: byte for byte, character in bytes_to_unicode().items()}
    added = byte_level.tokenizer.added_tokens_decoder
    wrong = {
        token: byte_level.token_bytes[ident]
        for token, ident in byte_level.tokenizer.get_vocab().items()
        if ident not in added and byte_level.token_bytes[ident] != bytes(undo[character] for character in token)
    }
    assert not wrong
    assert byte_level.components.kind == "byte_level"
    assert not byte_level.is_byte_piece.any()


def test_byte_level_spells_out_space_newline_and_every_known_byte(llama3: PreTrainedTokenizerFast) -> None:
    vocabulary = CanonicalVocabulary.from_tokenizer(llama3)
    assert vocabulary.token_bytes[llama3.convert_tokens_to_ids("Ġ")] == b"\x20"
    assert vocabulary.token_bytes[llama3.convert_tokens_to_ids("Ċ")] == b"\x0a"
    assert vocabulary.token_bytes[llama3.convert_tokens_to_ids("_")] == b"_"
    assert {token[0] for token in vocabulary.token_bytes if len(token) == 1} == set(range(256))


def test_metaspace_tokens_have_a_space_for_every_lower_block_character(metaspace: CanonicalVocabulary) -> None:
    seen = 0
    for token, ident in metaspace.tokenizer.get_vocab().items():
        if metaspace.is_special[ident] or metaspace.is_byte_piece[ident]:
            continue
        seen += "▁▁" in token
        assert metaspace.token_bytes[ident] == token.encode().replace("▁".encode(), b"\x20"), token
    assert seen, "the vocabulary has no token with several spaces to look at"
    assert metaspace.components.kind == "metaspace"


def test_byte_pieces_are_one_byte_each(metaspace: CanonicalVocabulary) -> None:
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = metaspace.tokenizer.convert_tokens_to_ids(names)
    assert [metaspace.token_bytes[ident] for ident in ids] == [bytes([byte]) for byte in range(256)]
    assert np.flatnonzero(metaspace.is_byte_piece).tolist() == sorted(ids)


def test_only_a_tokenizer_that_prepends_a_space_has_a_dummy_prefix(
    vocabulary: CanonicalVocabulary, llama2_style: PreTrainedTokenizerFast
) -> None:
    first = vocabulary.token_bytes[vocabulary.encode(["word"])[0][0]]
    assert vocabulary.components.dummy_prefix == first.startswith(b" ") == (vocabulary.tokenizer is llama2_style)


def test_special_tokens_carry_no_bytes(vocabulary: CanonicalVocabulary) -> None:
    special = {ident for ident, token in vocabulary.tokenizer.added_tokens_decoder.items() if token.special}
    special |= {*vocabulary.tokenizer.all_special_ids}
    assert np.flatnonzero(vocabulary.is_special).tolist() == sorted(special)
    assert {vocabulary.token_bytes[ident] for ident in special} == {b""}
    assert not (vocabulary.num_bytes[vocabulary.exists & ~vocabulary.is_special] == 0).any()


def test_added_tokens_that_are_not_special_are_text(qwen3: PreTrainedTokenizerFast) -> None:
    vocabulary = CanonicalVocabulary.from_tokenizer(qwen3)
    ids = vocabulary.encode(["<think>é</think>"])[0]
    assert {"<think>", "</think>"} <= {*qwen3.convert_ids_to_tokens(ids)}
    assert concatenated(vocabulary, ids) == "<think>é</think>".encode()


def test_an_id_that_no_token_has_does_not_exist_and_has_no_bytes() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "Ġb": 2}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    vocabulary = CanonicalVocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert vocabulary.exists.tolist() == [True, False, True]
    assert vocabulary.token_bytes == [b"a", b"", b" b"]
    assert len(vocabulary) == 3


@given(text=TEXTS)
def test_byte_stream_is_the_tokens_bytes_and_lengths(llama3: PreTrainedTokenizerFast, text: str) -> None:
    vocabulary = CanonicalVocabulary.from_tokenizer(llama3)
    ids = llama3(text)["input_ids"]  # begins with bos, a token of no bytes
    stream, lengths = vocabulary.byte_stream(np.array(ids, dtype=np.int64))
    assert stream.tobytes() == text.encode()
    assert lengths.tolist() == [0] + [len(vocabulary.token_bytes[ident]) for ident in ids[1:]]


def test_no_texts_have_no_tokens(vocabulary: CanonicalVocabulary) -> None:
    assert vocabulary.encode([]) == []
    assert vocabulary.encode([""]) == [[]]


# Roles


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "llama3",
            {
                "bos": "<|begin_of_text|>",
                "eos": "<|end_of_text|>",
                "turn_start": "<|start_header_id|>",
                "turn_end": "<|eot_id|>",
            },
        ),
        ("o200k", {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>"}),
        (
            "smollm2",
            {
                "bos": "<|im_start|>",
                "turn_start": "<|im_start|>",
                "eos": "<|im_end|>",
                "turn_end": "<|im_end|>",
                "pad": "<|im_end|>",
                "unk": "<|endoftext|>",
            },
        ),
        ("llama2_style", {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}),
        pytest.param(
            "gemma3",
            {
                "bos": "<bos>",
                "eos": "<eos>",
                "turn_start": "<start_of_turn>",
                "turn_end": "<end_of_turn>",
                "unk": "<unk>",
                "pad": "<pad>",
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_roles_are_those_of_the_tokenizers_special_tokens(
    request: pytest.FixtureRequest, name: str, expected: dict[str, str]
) -> None:
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(name)
    roles = CanonicalVocabulary.from_tokenizer(tokenizer).roles
    assert {role: tokenizer.convert_ids_to_tokens(ident) for role, ident in roles.items()} == expected


def test_a_role_is_missing_where_the_tokenizer_has_no_such_token(qwen3: PreTrainedTokenizerFast) -> None:
    roles = CanonicalVocabulary.from_tokenizer(qwen3).roles
    assert "bos" not in roles
    assert "unk" not in roles
    assert roles["eos"] == roles["turn_end"] == qwen3.convert_tokens_to_ids("<|im_end|>")
    assert roles["pad"] == qwen3.convert_tokens_to_ids("<|endoftext|>")


def test_a_token_with_a_role_carries_no_bytes(vocabulary: CanonicalVocabulary) -> None:
    with_bytes = {role: vocabulary.token_bytes[ident] for role, ident in vocabulary.roles.items()}
    assert {role: text for role, text in with_bytes.items() if text} == {}


@pytest.mark.parametrize(
    ("name", "prefix"), [("llama3", ["<|begin_of_text|>"]), ("llama2_style", ["<s>"]), ("qwen3", []), ("smollm2", [])]
)
def test_prefix_is_what_the_tokenizer_prepends_to_a_text(
    request: pytest.FixtureRequest, name: str, prefix: list[str]
) -> None:
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(name)
    assert tokenizer.convert_ids_to_tokens(CanonicalVocabulary.from_tokenizer(tokenizer).prefix_ids) == prefix


# Caching


def test_a_vocabulary_is_read_once_for_each_tokenizer_object(llama2_style: PreTrainedTokenizerFast) -> None:
    assert CanonicalVocabulary.from_tokenizer(llama2_style) is CanonicalVocabulary.from_tokenizer(llama2_style)


def test_a_copy_of_a_tokenizer_has_its_own_vocabulary(llama2_style: PreTrainedTokenizerFast) -> None:
    before = CanonicalVocabulary.from_tokenizer(llama2_style)
    other = copy.deepcopy(llama2_style)
    other.eos_token = "<unk>"
    after = CanonicalVocabulary.from_tokenizer(other)
    assert after.tokenizer is other
    assert after.roles["eos"] == other.eos_token_id != before.roles["eos"]
    assert after.fingerprint != before.fingerprint


def test_vocabulary_is_read_again_when_the_tokenizer_has_grown(smollm2_first_2000: PreTrainedTokenizerFast) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(smollm2_first_2000.backend_tokenizer.to_str())
    )
    before = len(CanonicalVocabulary.from_tokenizer(tokenizer))
    tokenizer.add_tokens(["a new token"])
    grown = CanonicalVocabulary.from_tokenizer(tokenizer)
    assert len(grown) == before + 1
    assert grown.token_bytes[-1] == b"a new token"
