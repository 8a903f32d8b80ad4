"""Fingerprints change with everything that changes tokens, and with nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer


def changed(
    tokenizer: PreTrainedTokenizerFast, change: Callable[[dict[str, Any]], object] = lambda state: None, **roles: str
) -> CanonicalVocabulary:
    """Vocabulary of a copy of a tokenizer with a changed tokenizer.json and other special tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    change(state)
    named = {role: getattr(tokenizer, role) for role in ("bos_token", "eos_token", "unk_token")} | roles
    backend = Tokenizer.from_str(json.dumps(state))
    return CanonicalVocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **named))


def exchange_two_tokens(state: dict[str, Any]) -> None:
    vocab = state["model"]["vocab"]
    vocab["th"], vocab["in"] = vocab["in"], vocab["th"]


def split_at_every_letter_e(state: dict[str, Any]) -> None:
    state["pre_tokenizer"] = {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False}


def normalize_to_nfc(state: dict[str, Any]) -> None:
    state["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, state["normalizer"]]}


def drop_the_last_thousand_merges(state: dict[str, Any]) -> None:
    del state["model"]["merges"][-1000:]


@pytest.mark.parametrize("name", ["llama2_style", "smollm2_first_2000"])
def test_a_tokenizer_loaded_twice_has_the_same_fingerprints(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(name)
    tokenizer.save_pretrained(tmp_path)
    loaded = [CanonicalVocabulary.from_tokenizer(load_tokenizer(str(tmp_path))) for _ in range(2)]
    known = CanonicalVocabulary.from_tokenizer(tokenizer)
    assert loaded[0] is not loaded[1]
    assert {vocabulary.fingerprint for vocabulary in loaded} == {known.fingerprint}
    assert {vocabulary.vocabulary_fingerprint for vocabulary in loaded} == {known.vocabulary_fingerprint}


def test_different_tokenizers_have_different_fingerprints(request: pytest.FixtureRequest) -> None:
    names = ["llama3", "qwen3", "o200k", "smollm2", "llama2_style", "smollm2_first_2000"]
    vocabularies = [CanonicalVocabulary.from_tokenizer(request.getfixturevalue(name)) for name in names]
    assert len({vocabulary.fingerprint for vocabulary in vocabularies}) == len(names)
    assert len({vocabulary.vocabulary_fingerprint for vocabulary in vocabularies}) == len(names)


def test_another_vocabulary_has_different_fingerprints(llama2_style: PreTrainedTokenizerFast) -> None:
    before, after = changed(llama2_style), changed(llama2_style, exchange_two_tokens)
    assert after.vocabulary_fingerprint != before.vocabulary_fingerprint
    assert after.fingerprint != before.fingerprint


def test_the_same_bytes_split_differently_are_another_vocabulary() -> None:
    def tiny(*tokens: str) -> CanonicalVocabulary:
        backend = Tokenizer(models.BPE({token: ident for ident, token in enumerate(tokens)}, []))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
        return CanonicalVocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))

    assert tiny("ab", "c").vocabulary_fingerprint != tiny("a", "bc").vocabulary_fingerprint
    assert tiny("ab", "c").vocabulary_fingerprint == tiny("ab", "c").vocabulary_fingerprint


@pytest.mark.parametrize(
    "change", [split_at_every_letter_e, normalize_to_nfc, drop_the_last_thousand_merges], ids=lambda f: f.__name__
)
def test_another_way_of_splitting_text_changes_the_fingerprint_only(
    llama2_style: PreTrainedTokenizerFast, change: Callable[[dict[str, Any]], object]
) -> None:
    before, after = changed(llama2_style), changed(llama2_style, change)
    assert after.fingerprint != before.fingerprint
    assert after.vocabulary_fingerprint == before.vocabulary_fingerprint


@pytest.mark.parametrize("role", ["bos_token", "eos_token", "pad_token"])
def test_another_role_changes_the_fingerprint_only(llama2_style: PreTrainedTokenizerFast, role: str) -> None:
    before, after = changed(llama2_style), changed(llama2_style, **{role: "<unk>"})
    assert after.fingerprint != before.fingerprint
    assert after.vocabulary_fingerprint == before.vocabulary_fingerprint


def test_another_name_of_a_special_token_is_another_vocabulary(llama2_style: PreTrainedTokenizerFast) -> None:
    def rename(state: dict[str, Any]) -> None:
        state["model"]["vocab"]["<end>"] = state["model"]["vocab"].pop("</s>")
        state["added_tokens"][2]["content"] = "<end>"

    before, after = changed(llama2_style), changed(llama2_style, rename, eos_token="<end>")
    assert after.token_bytes == before.token_bytes
    assert after.vocabulary_fingerprint != before.vocabulary_fingerprint


def test_a_token_added_to_a_tokenizer_changes_its_fingerprints(llama2_style: PreTrainedTokenizerFast) -> None:
    def add(state: dict[str, Any]) -> None:
        last = {"id": 2000, "content": "<think>", "special": False, "normalized": False}
        state["added_tokens"].append(last | {"single_word": False, "lstrip": False, "rstrip": False})

    before, after = changed(llama2_style), changed(llama2_style, add)
    assert after.token_bytes == [*before.token_bytes, b"<think>"]
    assert after.vocabulary_fingerprint != before.vocabulary_fingerprint
    assert after.fingerprint != before.fingerprint


def test_other_merges_change_the_fingerprint_only(smollm2_first_2000: PreTrainedTokenizerFast) -> None:
    state = json.loads(smollm2_first_2000.backend_tokenizer.to_str())
    state["model"]["merges"] = state["model"]["merges"][:-50]
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    ours, theirs = (CanonicalVocabulary.from_tokenizer(tokenizer) for tokenizer in (smollm2_first_2000, other))
    assert ours.vocabulary_fingerprint == theirs.vocabulary_fingerprint
    assert ours.fingerprint != theirs.fingerprint
