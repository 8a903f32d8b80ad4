"""Loads and saves tokenizers: the only place where a tokenizer is read from a directory or the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from xtoken_pl.tokenization import sentencepiece_form
from xtoken_pl.tokenization.converted import as_original, find_original, from_tekken, refuse_ranks, require
from xtoken_pl.tokenization.tiktoken_form import has_ranks
from xtoken_pl.tokenization.tokenizer_file import difference, from_file, read_file, tokens_missing_in_file
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import first_of, reason_of

_FILE = "tokenizer.json"
_TEKKEN = "tekken.json"
_CONFIG = "tokenizer_config.json"
#: Names of the files that hold a tokenizer: the file of `tokenizers`, and others that transformers converts.
_FILES = (_FILE, "tokenizer.model", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", _TEKKEN)
#: Names under which models have a SentencePiece model or tiktoken's ranks; a directory may have them under any other.
_MODELS = (
    *("tokenizer.model", "spm.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model"),
    *("qwen.tiktoken", "multilingual.tiktoken", "gpt2.tiktoken"),
)
#: Other files in which a tokenizer may declare special tokens.
_DECLARATIONS = (_CONFIG, "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer from ``source``, a directory or a hub id.

    Its token ids are those that the `tokenizers` library gives with tokenizer.json. If the class that transformers
    chooses gives others, the file itself is loaded, and a log message says so. Ordinary tokens that only other files of
    the tokenizer declare are left out, with a warning. Without a tokenizer.json, the ids are those of SentencePiece, or
    of tiktoken: of the encoding in the tokenizer's own code, or in Mistral's tekken.json.

    Raises:
        UserError: If no tokenizer can be loaded from ``source``, or it does not give the ids of its tokenizer.json.
    """
    folder = Path(source)
    if folder.suffix == ".gguf" or (folder.is_dir() and not _has(folder, _FILES) and _has(folder, ["*.gguf"])):
        raise UserError(
            f"a tokenizer must be exact, and that of a GGUF file is not: {source!r} holds its tokens, but not how it "
            "splits a text. Write a model directory from the file and the original's tokenizer, and give that "
            "(python -m xtoken_pl convert)"
        )
    try:
        if folder.is_dir() and not _has(folder, _FILES) and not _may_lack_files(source):
            raise UserError(
                f"a tokenizer must be a directory with a tokenizer.json or a hub id; the directory {source!r} has no "
                "tokenizer.json. Copy the tokenizer's files into it, or check the path"
            )
        if file := _find_file(source, _FILE, revision):
            tokenizer = _load_with_file(source, revision, trust_remote_code)
            tokenizer = _as_in_file(tokenizer, file, source, revision)
        else:
            tokenizer = _load_without_file(source, revision, trust_remote_code)
        if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # what some classes make of files that they lack
            raise UserError(
                f"a tokenizer must have ordinary tokens, but that of {source!r} has special or added ones alone "
                f"({len(tokenizer)}), under the class {type(tokenizer).__name__}; check that the files of its "
                "vocabulary are there, and that model_type and tokenizer_class fit them"
            )
        return tokenizer
    except UserError:
        raise
    except Exception as error:  # `tokenizers` raises bare exceptions for an invalid tokenizer.json
        raise UserError(
            f"a tokenizer must be a directory with a tokenizer.json or a hub id; {source!r} could not be loaded. Check "
            f"the path (relative paths start at the working directory) or the id. Reason: {reason_of(error)}"
        ) from error


def _has(folder: Path, patterns: Sequence[str]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str | None:
    """Saves a tokenizer in a directory that already has the configuration of its model.

    Returns:
        What ``AutoTokenizer`` would change in the saved tokenizer.json, or why it fails; None if nothing, or if it
        asks for trust in code that comes with the model, since what that changes is not known.
    """
    tokenizer.save_pretrained(folder)
    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # `tokenizers` raises bare exceptions
        return None if "trust_remote_code" in str(error) else f"cannot load it: {reason_of(error)}"
    return difference(loaded, read_file(folder / _FILE), _declared_texts(str(folder), None))


def _load_with_file(source: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Loads a tokenizer that has a tokenizer.json; code of its own is not needed for that."""
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except ValueError:  # among others, for code that is not trusted
        if trust_remote_code or "auto_map" not in _settings(source, revision):
            raise
        return PreTrainedTokenizerFast.from_pretrained(source, revision=revision)


def _load_without_file(source: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Loads the fast form of a tokenizer that has no tokenizer.json."""
    settings = _settings(source, revision)
    if file := _find_file(source, _TEKKEN, revision):
        tokenizer: PreTrainedTokenizerBase = from_tekken(file, settings)
        tokenizer.name_or_path = source
        return tokenizer
    files = _find_models(source, revision)
    if "auto_map" not in settings or not trust_remote_code:
        for file in files:
            refuse_ranks(file)
    found = next((file for file in files if file.suffix == ".model" and not has_ranks(file)), None)
    if found is not None:
        require({"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}, found.name)
        if model := sentencepiece_form.read_model(found):
            sentencepiece_form.check(model, found.name)  # before transformers spends minutes on a conversion
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    named = getattr(tokenizer, "vocab_file", None) or tokenizer.init_kwargs.get("vocab_file")
    original = find_original(tokenizer, Path(named) if isinstance(named, str) else found)
    if original is None:
        return tokenizer
    exact = as_original(tokenizer, original)
    exact.name_or_path = source
    return exact


def _find_models(source: str, revision: str | None) -> list[Path]:
    """Finds the files that may hold a SentencePiece model or tiktoken's ranks, a tokenizer.model first."""
    named = [file for name in _MODELS if (file := _find_file(source, name, revision))]
    others = sorted((*Path(source).glob("*.model"), *Path(source).glob("*.tiktoken")))
    names = {file.name for file in named}
    return [*named, *(file for file in others if file.name not in names)]


def _settings(source: str, revision: str | None) -> dict[str, Any]:
    """Reads tokenizer_config.json, and the chat template that may stand beside it."""
    file = _find_file(source, _CONFIG, revision)
    settings: dict[str, Any] = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    if template := _find_file(source, "chat_template.jinja", revision):
        settings["chat_template"] = template.read_text(encoding="utf-8")
    return settings


def _may_lack_files(source: str) -> bool:
    """Whether the tokenizer of a directory has code of its own, or is ByT5's, which has no file of tokens."""
    if not (Path(source) / _CONFIG).is_file():
        return False
    settings = _settings(source, None)
    return "auto_map" in settings or settings.get("tokenizer_class") == "ByT5Tokenizer"


def _as_in_file(
    tokenizer: PreTrainedTokenizerBase, file: Path, source: str, revision: str | None
) -> PreTrainedTokenizerBase:
    """Returns ``tokenizer`` if its ids are those of ``file``, otherwise the tokenizer of the file itself."""
    original = read_file(file)
    if getattr(original.model, "dropout", None):
        raise UserError(
            f"a tokenizer must give a text the same ids every time, but the tokenizer.json of {source!r} has a dropout "
            f"of {original.model.dropout}; set it to null"
        )
    declared = _declared_texts(source, revision)
    changed = difference(tokenizer, original, declared)
    if changed is None:
        return tokenizer
    left_out = tokens_missing_in_file(tokenizer, original, declared)
    declared -= set(left_out)
    rebuilt = from_file(file, tokenizer, original, declared)
    rebuilt.name_or_path = source
    if remaining := difference(rebuilt, original, declared):
        raise UserError(
            f"a tokenizer must give the ids of its tokenizer.json, but for {source!r} transformers {remaining}; use a "
            "tokenizer.json that PreTrainedTokenizerFast loads unchanged"
        )
    # Lightning takes seconds to import, and most commands that load a tokenizer do not need it.
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

    if left_out:
        rank_zero_warn(
            f"tokenizer {source!r}: ordinary tokens that only tokenizer_config.json or added_tokens.json adds, and "
            f"tokenizer.json lacks, are left out, so that texts never become them: {first_of(left_out)}"
        )
    rank_zero_info(f"tokenizer {source!r}: loaded tokenizer.json itself, because transformers {changed}")
    return rebuilt


def _find_file(source: str, name: str, revision: str | None) -> Path | None:
    """Finds a file of a directory or of a hub id, which is downloaded unless it is cached; None if there is none."""
    found = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def _declared_texts(source: str, revision: str | None) -> set[str]:
    """Collects all strings in the files in which a tokenizer may declare special tokens."""
    files = (_find_file(source, name, revision) for name in _DECLARATIONS)
    contents = (json.loads(file.read_text(encoding="utf-8")) for file in files if file is not None)
    return {text for content in contents for text in _strings(content)}


def _strings(content: Any) -> Iterator[str]:
    """Yields the strings of a JSON value, keys included."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list | dict):
        for part in content:
            yield from _strings(part)
        if isinstance(content, dict):
            yield from _strings(list(content.values()))
