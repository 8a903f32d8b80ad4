"""Tokenizers that rewrite texts, and texts that they rewrite."""

import unicodedata
from functools import cache

from hypothesis import strategies as st
from small_models import packing_tokenizer, splitting_tokenizer
from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.normalizers import Normalizer
from transformers import PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary

NORMALIZERS: dict[str, Normalizer | None] = {
    "none": None,
    "NFC": normalizers.NFC(),
    "NFD": normalizers.NFD(),
    "NFKC": normalizers.NFKC(),
    "NFKD": normalizers.NFKD(),
    "lowercase": normalizers.Lowercase(),
    "lowercase, NFKC": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
    "spaces": normalizers.Replace(Regex(" {2,}"), " "),
    "quotes": normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Strip()]),
    "bytes": normalizers.Sequence([normalizers.NFC(), normalizers.ByteLevel()]),
}
VIETNAMESE = "Việt Nam có khí hậu nhiệt đới, một mùa đông lạnh và hè nóng ẩm. "
DECOMPOSED = unicodedata.normalize("NFD", VIETNAMESE)
REWRITTEN = st.text(
    st.sampled_from("aeAE é\u0301\u0323\u0308ếÅ\u212bﬁ①ＡＢ７½ẞİΣ가\u1100\u1161\u11a8\u0958``  \n\u00a0\u3000▁ガﾊﾞ"),
    max_size=30,
)
TEXTS = st.one_of(st.text(max_size=30), REWRITTEN)


@cache
def rewriting(name: str, *, splits: bool = False) -> CanonicalVocabulary:
    """The vocabulary of a small tokenizer with a normalizer of NORMALIZERS."""
    tokenizer = splitting_tokenizer() if splits else packing_tokenizer()
    return with_normalizer(tokenizer, NORMALIZERS[name], writes_bytes=name == "bytes")


def with_normalizer(
    tokenizer: PreTrainedTokenizerFast, normalizer: Normalizer | None, *, writes_bytes: bool = False
) -> CanonicalVocabulary:
    """The vocabulary of a copy with a normalizer.

    Args:
        writes_bytes: Whether the normalizer writes GPT-2's characters for bytes, and the pre-tokenizer does not.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if normalizer is not None:
        backend.normalizer = normalizer
    if writes_bytes:
        backend.pre_tokenizer = None
    special = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
    changed = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    changed.chat_template = tokenizer.chat_template
    return CanonicalVocabulary.from_tokenizer(changed)
