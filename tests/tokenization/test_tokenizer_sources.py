"""Files of a tokenizer without a tokenizer.json: found alike in a directory and behind a hub id, or refused."""

import json
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from original_tokenizers import EXACT_OPTIONS, texts, write_ranks, write_sentencepiece, write_tekken
from sentencepiece import SentencePieceProcessor
from tokenizer_folders import empty_in_cache
from transformers import AutoTokenizer

from xtoken_pl.tokenization import CanonicalVocabulary, converted, load_tokenizer, save_tokenizer
from xtoken_pl.utilities.errors import UserError


@pytest.mark.parametrize("in_cache", [False, True], ids=["directory", "hub"])
@pytest.mark.parametrize("model_type", [None, "qwen2"])
@pytest.mark.parametrize("name", ["tokenizer.model", "tiktoken.model", "qwen.tiktoken", "multilingual.tiktoken"])
@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "PreTrainedTokenizerFast"}, {"auto_map": {}}])
def test_ranks_of_tiktoken_without_a_pattern_are_refused(
    name: str,
    settings: dict[str, Any] | None,
    model_type: str | None,
    in_cache: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, hub_id = empty_in_cache(tmp_path, monkeypatch)
    write_ranks(folder / name)
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if model_type is not None:  # whose class takes a vocabulary of one token
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UserError, match=rf"no pattern by which texts are split, got '.*{name}'"):
        load_tokenizer(hub_id if in_cache else str(folder))


def test_ranks_are_refused_before_packages_that_could_not_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ranks(tmp_path / "tokenizer.model")
    monkeypatch.setattr(converted, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="no pattern by which texts are split"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("in_cache", [False, True], ids=["directory", "hub"])
@pytest.mark.parametrize("name", ["spm.model", "spiece.model", "sentencepiece.bpe.model"])
def test_a_sentencepiece_model_of_another_name_is_read_whatever_the_class(
    name: str, in_cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, hub_id = empty_in_cache(tmp_path, monkeypatch)
    write_sentencepiece(folder, **EXACT_OPTIONS["bpe"])
    (folder / "tokenizer.model").rename(folder / name)
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    processor = SentencePieceProcessor(model_file=str(folder / name))
    vocabulary = CanonicalVocabulary.from_tokenizer(load_tokenizer(hub_id if in_cache else str(folder)))
    drawn = list(texts(500))
    assert vocabulary.encode(drawn) == processor.encode(drawn)


@pytest.mark.parametrize("in_cache", [False, True], ids=["directory", "hub"])
@pytest.mark.parametrize("name", ["vocab.json", "tokens.model"])
def test_a_vocabulary_without_ordinary_tokens_is_refused(
    name: str, in_cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, hub_id = empty_in_cache(tmp_path, monkeypatch)
    (folder / name).write_text("{}")
    if name == "vocab.json":
        (folder / "merges.txt").touch()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(UserError, match=r"must have ordinary tokens.*alone \(1\), under the class Qwen2Tokenizer"):
        load_tokenizer(hub_id if in_cache else str(folder))


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json"])
def test_a_tokenizer_in_the_cache_of_the_hub_is_loaded_without_a_connection(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, hub_id = empty_in_cache(tmp_path, monkeypatch)
    if name == "tokenizer.model":
        write_sentencepiece(folder, **EXACT_OPTIONS["bpe"])
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    else:
        write_tekken(folder)
    loaded, expected = load_tokenizer(hub_id), load_tokenizer(str(folder))
    drawn = list(texts(200))
    assert loaded(drawn)["input_ids"] == expected(drawn)["input_ids"]


@pytest.mark.parametrize(
    ("missing", "write"),
    [("tiktoken", write_tekken), ("sentencepiece", lambda folder: write_sentencepiece(folder, **EXACT_OPTIONS["bpe"]))],
)
def test_a_missing_package_is_named_with_its_extra(
    missing: str, write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path)
    monkeypatch.setattr(converted, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(UserError, match=rf"is read with {missing}, which is not installed.*xtoken_pl\[tokenizers\]"):
        load_tokenizer(str(folder))


def test_protobuf_is_missing_where_no_package_of_google_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google", None)  # as if nothing had the name
    monkeypatch.delitem(sys.modules, "google.protobuf", raising=False)
    with pytest.raises(ModuleNotFoundError):
        find_spec("google.protobuf")
    with pytest.raises(UserError, match=r"tokenizer\.model is read with protobuf, which is not installed"):
        converted.require({"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}, "tokenizer.model")


def test_settings_that_are_no_json_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=rf"{tmp_path}.*could not be loaded"):
        load_tokenizer(str(tmp_path))


def test_saving_a_tokenizer_says_why_auto_tokenizer_cannot_load_it(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_tekken(tmp_path / "tekken")))
    assert save_tokenizer(tokenizer, tmp_path / "saved") is None
    (tmp_path / "saved" / "config.json").write_text("{")
    assert re.search("cannot load it: .*not a valid JSON", save_tokenizer(tokenizer, tmp_path / "saved") or "")


def test_saving_a_tokenizer_says_nothing_of_code_that_needs_trust(tmp_path: Path) -> None:
    folder, saved = tmp_path / "with_code", tmp_path / "saved"
    load_tokenizer(str(write_tekken(tmp_path / "tekken"))).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": [None, "own_code.Own"]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    code = "from transformers import PreTrainedTokenizerFast\n\nclass Own(PreTrainedTokenizerFast):\n    pass\n"
    (folder / "own_code.py").write_text(code)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=True)
    assert save_tokenizer(tokenizer, saved) is None
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoTokenizer.from_pretrained(saved, trust_remote_code=False)
