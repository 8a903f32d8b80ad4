"""Directories with a tokenizer.json and whatever makes transformers choose a class that does not fit it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

#: Values of ``model_type`` in config.json and of ``tokenizer_class`` in tokenizer_config.json; None leaves it out.
PAIRS: list[tuple[str | None, str | None]] = [
    (None, None),
    (None, "CodeLlamaTokenizer"),
    (None, "ByT5Tokenizer"),
    ("bert", None),
    ("cohere", "CohereTokenizer"),
    ("gemma3_text", None),
    ("gemma3_text", "GemmaTokenizer"),
    ("gpt2", None),
    ("gpt_neox", None),
    ("llama", "GPT2Tokenizer"),
    ("llama", "LlamaTokenizer"),
    ("llama", "NoSuchTokenizer"),
    ("llama", "Qwen2Tokenizer"),
    ("llama", "T5Tokenizer"),
    ("mistral", "LlamaTokenizerFast"),
    ("phi3", "LlamaTokenizer"),
    ("qwen2", None),
    ("qwen2", "PreTrainedTokenizerFast"),
    ("qwen3", "LlamaTokenizerFast"),
    ("roberta", None),
    ("roberta", "RobertaTokenizerFast"),
]


def write_folder(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    model_type: str | None = None,
    tokenizer_class: str | None = None,
    **config: Any,
) -> Path:
    """Writes a tokenizer, a ``model_type`` and a ``tokenizer_class``.

    Args:
        config: Further entries of tokenizer_config.json; None removes one.
    """
    tokenizer.save_pretrained(folder)
    config = {"tokenizer_class": tokenizer_class, **config}
    file = folder / "tokenizer_config.json"
    entries = json.loads(file.read_text()) | config
    file.write_text(json.dumps({name: value for name, value in entries.items() if value is not None}))
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def change_file(folder: Path, **entries: Any) -> None:
    """Changes entries of a tokenizer.json."""
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def first_tokens(tokenizer: PreTrainedTokenizerFast, count: int) -> PreTrainedTokenizerFast:
    """The first tokens of a byte-level BPE, the merges among them, and behind them the tokens with roles."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = {token: ident for token, ident in state["model"]["vocab"].items() if ident < count}
    merges = [merge for merge in state["model"]["merges"] if {*merge, "".join(merge)} <= vocab.keys()]
    state["model"] |= {"vocab": vocab, "merges": merges}
    roles = tokenizer.special_tokens_map
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in roles.values()]
    ids = {}
    for token in state["added_tokens"]:
        ids[token["content"]] = token["id"] = vocab.get(token["content"], len(vocab) + len(ids))
    for processor in (state["post_processor"] or {}).get("processors", []):
        for name, token in processor.get("special_tokens", {}).items():
            token["ids"] = [ids[name]]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **roles)


def empty_in_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """Gives the empty directory of a hub id in a cache of the hub, and that id; it has no tokenizer.json."""
    commit, repository = "0" * 40, cache / "models--someone--something"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / ".no_exist" / commit).mkdir(parents=True)
    (repository / ".no_exist" / commit / "tokenizer.json").touch()  # what the hub had answered
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    return folder, "someone/something"
