"""Directories of tokenizers without a tokenizer.json: SentencePiece models, tekken.json, and code around tiktoken."""

import base64
import io
import json
import pydoc_data.topics
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from real_tokenizers import O200K_SPLIT, ranks_of
from sentencepiece import SentencePieceTrainer

NUM_TOKENS = 20_000
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
        special = {"<|end|>": len(ranks) + 1, "<|start|>": len(ranks) + 3}
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


def write_slow(folder: Path, pattern: str = O200K_SPLIT, rewrite: str = "text") -> Path:
    """Writes a slow tokenizer with code of its own around the first tokens of o200k.

    Args:
        rewrite: Python expression for what its code makes of ``text`` first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_ranks(folder / "ranks.tiktoken")
    head = f"PATTERN = {pattern!r}\nREWRITE = lambda text: {rewrite}\n"
    (folder / "slow_tokenizer.py").write_text(head + _CODE)
    settings = {
        "tokenizer_class": "SlowTokenizer",
        "auto_map": {"AutoTokenizer": ["slow_tokenizer.SlowTokenizer", None]},
        "eos_token": "<|end|>",
        "bos_token": "<|start|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


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
