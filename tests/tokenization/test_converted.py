"""Tokenizers without a tokenizer.json have the ids of the program that they were written for, or are refused."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from original_tokenizers import NUM_TOKENS, is_tie, texts, write_ranks, write_sentencepiece, write_slow, write_tekken
from sentencepiece import SentencePieceProcessor
from tokenizers import normalizers
from transformers import AutoTokenizer
from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

from xtoken_pl.tokenization import CanonicalVocabulary, InexactTokenizerError, converted, load_tokenizer
from xtoken_pl.tokenization.sentencepiece_form import read_model
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
        "character_coverage": 1.0,
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
    ],
    ids=["unigram", "bpe", "nmt_nfkc", "nfkc_cf", "char", "suffix"],
)
def test_a_sentencepiece_model_without_an_exact_fast_form_is_refused_by_what_breaks_it(
    options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    vocabulary = {} if options["model_type"] != "char" else {"vocab_size": 90}
    folder = write_sentencepiece(tmp_path, **options, **vocabulary)
    with pytest.raises(InexactTokenizerError, match=rf"'tokenizer.model' has no exact fast form: .*{reason}"):
        load_tokenizer(str(folder))


def test_a_model_with_unused_pieces_is_refused(tmp_path: Path) -> None:
    folder = write_sentencepiece(tmp_path, **EXACT["bpe"])
    model = read_model(folder / "tokenizer.model")
    model.pieces[-1].type = 5  # unused
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(InexactTokenizerError, match="pieces of the type unused"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("add_dummy_prefix", [False, True])
def test_spaces_at_the_ends_of_a_text_stay_in_the_middle_of_one(add_dummy_prefix: bool, tmp_path: Path) -> None:
    options = EXACT["bpe"] | {"add_dummy_prefix": add_dummy_prefix, "remove_extra_whitespaces": True}
    vocabulary = CanonicalVocabulary.from_tokenizer(load_tokenizer(str(write_sentencepiece(tmp_path, **options))))

    def read_by(ids: list[int]) -> bytes:
        return b"".join(vocabulary.token_bytes[ident] for ident in ids)

    with vocabulary.mid_text_backend() as backend:
        assert read_by(backend.encode(" the ", add_special_tokens=False).ids) == b" the "
    assert read_by(vocabulary.encode([" the "])[0]) == b" " * add_dummy_prefix + b"the"


@pytest.mark.parametrize("kind", EXACT)
def test_a_text_that_spells_a_special_token_or_a_byte_piece_stays_text(kind: str, tmp_path: Path) -> None:
    vocabulary = CanonicalVocabulary.from_tokenizer(load_tokenizer(str(write_sentencepiece(tmp_path, **EXACT[kind]))))
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


def test_a_tekken_file_gives_the_ids_of_tiktoken_behind_its_special_tokens(tmp_path: Path) -> None:
    folder = write_tekken(tmp_path)
    encoding = read_tekken(folder / "tekken.json")
    tokenizer = load_tokenizer(str(folder))
    vocabulary = CanonicalVocabulary.from_tokenizer(tokenizer)
    drawn = list(texts(3000))
    assert vocabulary.encode(drawn) == [encoding.encode_ordinary(text) for text in drawn]
    assert len(vocabulary) == NUM_TOKENS + 10
    assert vocabulary.roles == {"eos": 2, "bos": 1, "unk": 0}


def test_a_tekken_file_that_names_no_special_tokens_has_those_of_its_time(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_tekken(tmp_path, is_old=True)))
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 9]) == ["<unk>", "<s>", "</s>", "[INST]", "[TOOL_CALLS]"]
    assert CanonicalVocabulary.from_tokenizer(tokenizer).prefix_ids == (1,)


def test_a_tekken_file_takes_roles_and_chat_template_of_the_files_beside_it(tmp_path: Path) -> None:
    folder = write_tekken(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[INST]", "chat_template": "old"}))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer.pad_token_id, tokenizer.chat_template) == (3, "{{ messages[0].content }}")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    drawn = list(texts(200))
    assert again(drawn)["input_ids"] == tokenizer(drawn)["input_ids"]


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


def test_code_that_composes_characters_first_gets_a_fast_form_that_does(tmp_path: Path) -> None:
    folder = write_slow(tmp_path, rewrite="unicodedata.normalize('NFC', text)")  # as Qwen's
    tokenizer = load_tokenizer(str(folder), trust_remote_code=True)
    slow = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert tokenizer.backend_tokenizer.normalizer.normalize_str("e\u0301") == "é"
    drawn = list(texts(1000)) + ["e\u0301", "\u1112\u1161\u11ab"]
    assert tokenizer(drawn, add_special_tokens=False)["input_ids"] == slow(drawn, add_special_tokens=False)["input_ids"]


def test_code_that_rewrites_texts_in_another_way_is_refused_with_an_example(tmp_path: Path) -> None:
    folder = write_slow(tmp_path, rewrite="text.lower()")
    with pytest.raises(UserError, match=r'encoding of SlowTokenizer gives "I\'LL won\'t.*" the ids'):
        load_tokenizer(str(folder), trust_remote_code=True)


@pytest.mark.parametrize("name", ["tokenizer.model", "tiktoken.model", "qwen.tiktoken", "multilingual.tiktoken"])
@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "PreTrainedTokenizerFast"}, {"auto_map": {}}])
def test_ranks_of_tiktoken_without_a_pattern_are_refused(
    name: str, settings: dict[str, Any] | None, tmp_path: Path
) -> None:
    write_ranks(tmp_path / name)
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=rf"no pattern by which texts are split, got '.*{name}'"):
        load_tokenizer(str(tmp_path))


def test_bytes_as_tokens_have_the_ids_of_byt5(tmp_path: Path) -> None:
    slow = ByT5Tokenizer()
    slow.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    vocabulary = CanonicalVocabulary.from_tokenizer(tokenizer)
    drawn = list(texts(3000))
    assert vocabulary.encode(drawn) == [[byte + 3 for byte in text.encode()] for text in drawn]
    assert tokenizer(drawn[:100])["input_ids"] == slow(drawn[:100])["input_ids"]
    assert vocabulary.roles == {"eos": 1, "unk": 2, "pad": 0}
    assert len(vocabulary) == 256 + 3 + 125


def test_code_that_is_not_trusted_is_not_needed_beside_a_tokenizer_json(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_tekken(tmp_path / "tekken")))
    folder = tmp_path / "with code"
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["code.Slow", None]}, "tokenizer_class": "Slow"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text("raise AssertionError('this code was not trusted')")
    loaded = load_tokenizer(str(folder))
    drawn = list(texts(300))
    assert loaded(drawn)["input_ids"] == tokenizer(drawn)["input_ids"]
    assert loaded.eos_token == "</s>"


@pytest.mark.parametrize(
    ("missing", "write"),
    [("tiktoken", write_tekken), ("sentencepiece", lambda folder: write_sentencepiece(folder, **EXACT["bpe"]))],
)
def test_a_missing_package_is_named_with_its_extra(
    missing: str, write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path)
    monkeypatch.setattr(converted, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(UserError, match=rf"is read with {missing}, which is not installed.*xtoken_pl\[tokenizers\]"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json"])
def test_a_tokenizer_in_the_cache_of_the_hub_is_loaded_without_a_connection(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    repository = tmp_path / "models--someone--something"
    folder = repository / "snapshots" / commit
    if name == "tokenizer.model":
        write_sentencepiece(folder, **EXACT["bpe"])
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    else:
        write_tekken(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / ".no_exist" / commit).mkdir(parents=True)
    (repository / ".no_exist" / commit / "tokenizer.json").touch()  # what the hub had answered
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    loaded, expected = load_tokenizer("someone/something"), load_tokenizer(str(folder))
    drawn = list(texts(200))
    assert loaded(drawn)["input_ids"] == expected(drawn)["input_ids"]
