"""The fast form of a tokenizer that tiktoken runs: that of a slow tokenizer, or of Mistral's tekken.json."""

from __future__ import annotations

import base64
import json
import re
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from xtoken_pl.tokenization.vocabulary import BYTE_TO_UNICODE

if TYPE_CHECKING:
    from tiktoken import Encoding

# One line of a file of ranks: a token in base64 and its rank.
_RANK = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
#: Special tokens of a tekken.json that lists none, before version 7; all others are named by their ids.
_FIRST_SPECIAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]"),
)
# "{1,3}+" keeps what it has matched in tiktoken, and repeats the group in Oniguruma.
_POSSESSIVE_INTERVAL = re.compile(r"(\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|[^\\\[\](){}|])(\{\d*,?\d*\})\+")


def find_encoding(tokenizer: Any) -> Encoding | None:
    """Finds the tiktoken encoding that a slow tokenizer runs, an attribute of it; None if it has none."""
    try:
        from tiktoken import Encoding
    except ImportError:
        return None
    return next((value for value in vars(tokenizer).values() if isinstance(value, Encoding)), None)


def has_ranks(file: Path) -> bool:
    """Whether a file holds tiktoken's ranks: a token and its rank in each line."""
    with file.open("rb") as lines:
        return _RANK.fullmatch(lines.readline(1024)) is not None


def read_tekken(file: Path) -> Encoding:
    """Reads a tekken.json: tokens in order of rank behind the special ones, which have the lowest ids.

    Raises:
        ImportError: If tiktoken is not installed.
        KeyError: If the file is not a tekken.json.
    """
    from tiktoken import Encoding

    content = json.loads(file.read_text(encoding="utf-8"))
    config = content["config"]
    named = content.get("special_tokens") or [
        {"token_str": token, "rank": rank} for rank, token in enumerate(_FIRST_SPECIAL)
    ]
    special = {token["token_str"]: token["rank"] for token in named}
    num_special = config.get("default_num_special_tokens") or len(special)
    taken = set(special.values())
    special |= {f"<SPECIAL_{rank}>": rank for rank in range(num_special) if rank not in taken}
    size = config.get("default_vocab_size")
    tokens = content["vocab"] if size is None else content["vocab"][: size - num_special]
    ranks = {base64.b64decode(token["token_bytes"]): rank for rank, token in zip(count(num_special), tokens)}
    return Encoding(file.stem, pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens=special)


def fast_form(encoding: Encoding) -> Tokenizer:
    """Builds the byte-level BPE with the ids, ranks, pattern and special tokens of a tiktoken encoding.

    Where two neighbouring pairs make the same token, tiktoken joins the left one. Here, so does a merge of two equal
    pairs; different pairs that make the same token, such as a|bc and ab|c, are merges with ranks of their own, of which
    the first one is joined, wherever it is. Whether that changes ids is found by the probes that every form must pass.
    """
    ranks: dict[bytes, int] = encoding._mergeable_ranks
    special: dict[str, int] = encoding._special_tokens
    spelled = {token: "".join(map(BYTE_TO_UNICODE.__getitem__, token)) for token in ranks}
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in splits if left in ranks and right in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(spelled[left], spelled[right]) for left, right in known]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()} | special
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(_as_oniguruma(encoding._pat_str)), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    in_order = sorted(special, key=special.__getitem__)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in in_order])
    return tokenizer


def _as_oniguruma(pattern: str) -> str:
    """Writes a split pattern of tiktoken for Oniguruma, which `tokenizers` uses."""
    return _POSSESSIVE_INTERVAL.sub(r"(?>\1\2)", pattern)
