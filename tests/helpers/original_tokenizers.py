"""Directories of tokenizers without a tokenizer.json: SentencePiece models, tekken.json, and code around tiktoken."""

import base64
import io
import json
import pydoc_data.topics
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from real_tokenizers import O200K_SPLIT, ranks_of
from sentencepiece import SentencePieceTrainer

NUM_TOKENS = 20_000
#: Among them spaces as Gemma's, a piece that begins with another, and two that overlap.
SYMBOLS = ["<tool>", "<tool>x", "▁▁", "▁▁▁", "\n", "\n\n", "the", "hen", "▁of"]
#: Options of SentencePiece models that have an exact fast form.
EXACT_OPTIONS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"},
    "bpe_as_it_is": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "user_defined_symbols": SYMBOLS,
    },
    "unigram": {
        "model_type": "unigram",
        "character_coverage": 1.0,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
}
# As in Kimi's and Qwen's own code: a slow tokenizer around a tiktoken encoding.
_CODE = """
import base64, json, os, unicodedata
import tiktoken
from transformers import PreTrainedTokenizer

class SlowTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "ranks.tiktoken"}

    def __init__(self, vocab_file, **kwargs):
        with open(vocab_file, "rb") as file:
            lines = [line.split() for line in file]
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        special = {token: len(ranks) + behind for token, behind in SPECIAL.items()}
        self.encoding = tiktoken.Encoding("slow", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
        self.names = {rank: token.decode("latin-1") for token, rank in ranks.items()}
        self.names |= {rank: token for token, rank in special.items()}
        self.ranks = {name: rank for rank, name in self.names.items()}
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return self.encoding.n_vocab

    def get_vocab(self):
        return dict(self.ranks)

    def _tokenize(self, text):
        return [self.names[token] for token in self.encoding.encode_ordinary(REWRITE(text))]

    def _convert_token_to_id(self, token):
        return self.ranks[token]

    def _convert_id_to_token(self, index):
        return self.names[index]
"""

# As in RWKV's own code.
_LONGEST_MATCH = """
import ast
from transformers import PreTrainedTokenizer

class SlowTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "rwkv.txt"}

    def __init__(self, vocab_file, **kwargs):
        self.ranks = {}
        with open(vocab_file, encoding="utf-8") as file:
            for line in file:
                token = ast.literal_eval(line[line.index(" ") : line.rindex(" ")].strip())
                self.ranks[token if isinstance(token, bytes) else token.encode()] = int(line[: line.index(" ")])
        self.names = {rank: token.decode("latin-1") for token, rank in self.ranks.items()}
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return 65536

    def get_vocab(self):
        return {name: rank for rank, name in self.names.items()}

    def _tokenize(self, text):
        found, left = [], text.encode()
        while left:
            length = next(length for length in range(min(128, len(left)), 0, -1) if left[:length] in self.ranks)
            found.append(left[:length].decode("latin-1"))
            left = left[length:]
        return found

    def _convert_token_to_id(self, token):
        return self.ranks[token.encode("latin-1")]

    def _convert_id_to_token(self, index):
        return self.names[index]
"""


def write_sentencepiece(folder: Path, **options: Any) -> Path:
    """Trains a SentencePiece model of 1,000 pieces on Python's help texts, and writes it as Llama's files are."""
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    lines = [line for text in list(pydoc_data.topics.topics.values())[:12] for line in text.splitlines() if line]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        minloglevel=2,
        num_threads=1,
        **{"vocab_size": 1000, **options},
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return folder


def write_tekken(folder: Path, pattern: str = O200K_SPLIT, *, is_old: bool = False) -> Path:
    """Writes the first tokens of o200k as a tekken.json, behind ten special tokens.

    Args:
        is_old: Whether the file names no special token; otherwise it names four.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokens = sorted(ranks_of("o200k"), key=ranks_of("o200k").__getitem__)[:NUM_TOKENS]
    special = ["<unk>", "<s>", "</s>", "[INST]"]
    content = {
        "config": {"pattern": pattern, "default_vocab_size": NUM_TOKENS + 10, "default_num_special_tokens": 10},
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(special)
        ],
    }
    if is_old:
        del content["special_tokens"]
    (folder / "tekken.json").write_text(json.dumps(content))
    return folder


def write_ranks(file: Path) -> None:
    """Writes a tiktoken file with the first tokens of o200k."""
    tokens = sorted(ranks_of("o200k"), key=ranks_of("o200k").__getitem__)[:NUM_TOKENS]
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    file.write_bytes(b"".join(lines))


def write_slow(folder: Path, pattern: str = O200K_SPLIT, rewrite: str = "text", ranks: Path | None = None) -> Path:
    """Writes a slow tokenizer with code of its own around tiktoken.

    Args:
        pattern: Pattern by which texts are split.
        rewrite: Python expression for what its code makes of ``text`` first.
        ranks: A tiktoken file; default: the first tokens of o200k.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if ranks is None:
        write_ranks(folder / "ranks.tiktoken")
    else:
        shutil.copy(ranks, folder / "ranks.tiktoken")
    special = {"<|end|>": 1, "<|start|>": 3}  # behind the ranks, with holes
    head = f"PATTERN, SPECIAL = {pattern!r}, {special}\nREWRITE = lambda text: {rewrite}\n"
    _write_code(folder, head + _CODE, eos_token="<|end|>", bos_token="<|start|>")
    return folder


def write_longest_match(folder: Path, vocabulary: Path) -> Path:
    """Writes a slow tokenizer that takes the longest token at each byte, with the tokens of RWKV's file."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(vocabulary, folder / "rwkv.txt")
    _write_code(folder, _LONGEST_MATCH)
    return folder


def _write_code(folder: Path, code: str, **settings: str) -> None:
    (folder / "slow_tokenizer.py").write_text(code)
    named = {"tokenizer_class": "SlowTokenizer", "auto_map": {"AutoTokenizer": ["slow_tokenizer.SlowTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | settings))


def is_tie(processor: Any, text: str, ids: list[int]) -> bool:
    """Whether two ways to split a text are equally probable under a unigram model, which takes one by rounding."""
    scores = [
        sum(processor.get_score(token) for token in way if not processor.is_byte(token))
        for way in (ids, processor.encode(text))
    ]
    return abs(scores[0] - scores[1]) < 1e-4 * (1 + abs(scores[0]))


def texts(number: int) -> Iterator[str]:
    """Texts of twelve scripts, of one character many times, of prose, and of any code points."""
    draw = random.Random(0)
    prose = "\n".join(list(pydoc_data.topics.topics.values())[12:16])
    blocks = [(0x20, 0x7F)] * 3 + [
        (0xA0, 0x250), (0x370, 0x500), (0x590, 0x700), (0x900, 0xA00), (0xE00, 0xE80), (0x2000, 0x2070),
        (0x3040, 0x3100), (0x4E00, 0x5000), (0xAC00, 0xAD00), (0x1F300, 0x1F700), (0, 0x20), (0, 0xD800),
    ]  # fmt: skip
    for number_of_text in range(number):
        if number_of_text % 5 == 0:
            start = draw.randrange(len(prose) - 60)
            yield prose[start : start + draw.randrange(1, 60)]
        elif number_of_text % 5 == 1:
            yield draw.choice(" a\n0\u4e2d") * draw.randrange(1, 30) + draw.choice(["", "x", " y"])
        else:
            yield "".join(chr(draw.randrange(*draw.choice(blocks))) for _ in range(draw.randrange(1, 16)))


def texts_with_symbols(number: int) -> Iterator[str]:
    """Texts with the symbols at both ends, inside a word, beside spaces, and one behind the other."""
    draw = random.Random(0)
    spelled = [symbol.replace("▁", " ") for symbol in SYMBOLS]
    parts = [*spelled, *spelled, "a", " ", "  ", "▁", "of", "then", "<", "x"]
    for text in texts(number):
        yield "".join(draw.choice(parts) for _ in range(draw.randrange(1, 9)))
        place = draw.randrange(len(text) + 1)
        yield text[:place] + draw.choice(spelled) + text[place:]
