"""Tokenizers without a tokenizer.json have the ids of the program that they were written for, or are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from original_tokenizers import NUM_TOKENS, texts, write_slow, write_tekken
from transformers import AutoTokenizer
from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.tokenization.tiktoken_form import read_tekken
from xtoken_pl.utilities.errors import UserError

SPECIAL = {"__type": "AddedToken", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


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


@pytest.mark.parametrize(
    ("settings", "prefix", "roles"),
    [
        ({}, (1,), {"eos": 2, "bos": 1, "unk": 0}),
        ({"add_bos_token": True}, (1,), {"eos": 2, "bos": 1, "unk": 0}),
        ({"add_bos_token": False}, (), {"eos": 2, "bos": 1, "unk": 0}),
        ({"bos_token": None}, (), {"eos": 2, "unk": 0}),
        ({"bos_token": "[INST]"}, (3,), {"eos": 2, "bos": 3, "unk": 0}),
        ({"bos_token": SPECIAL | {"content": "[INST]"}}, (3,), {"eos": 2, "bos": 3, "unk": 0}),
        ({"pad_token": SPECIAL | {"content": "<unk>"}}, (1,), {"eos": 2, "bos": 1, "unk": 0, "pad": 0}),
    ],
)
def test_roles_of_a_tekken_file_are_those_of_its_settings(
    settings: dict[str, Any], prefix: tuple[int, ...], roles: dict[str, int], tmp_path: Path
) -> None:
    folder = write_tekken(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(folder))
    vocabulary = CanonicalVocabulary.from_tokenizer(tokenizer)
    assert (vocabulary.prefix_ids, vocabulary.roles) == (prefix, roles)
    assert tokenizer("a")["input_ids"] == [*prefix, *vocabulary.encode(["a"])[0]]


def test_a_role_whose_token_a_tekken_file_lacks_is_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = write_tekken(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": SPECIAL | {"content": "<padding>"}}))
    with pytest.warns(UserWarning, match="left out, whose tokens tekken.json lacks: pad_token '<padding>'"):
        tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token is None


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


def test_settings_of_a_slow_tokenizer_are_those_of_its_fast_form(tmp_path: Path) -> None:
    folder = write_slow(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    given = {"padding_side": "left", "truncation_side": "left", "model_max_length": 777}
    given |= {"model_input_names": ["input_ids"], "clean_up_tokenization_spaces": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | given))
    tokenizer = load_tokenizer(str(folder), trust_remote_code=True)
    assert {name: getattr(tokenizer, name) for name in given} == given
