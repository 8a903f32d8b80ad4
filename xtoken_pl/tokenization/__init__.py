"""Token ids as canonical bytes and special roles: the basis on which two tokenizers are compared."""

from xtoken_pl.tokenization.components import InexactTokenizerError
from xtoken_pl.tokenization.load import load_tokenizer, save_tokenizer
from xtoken_pl.tokenization.vocabulary import CanonicalVocabulary

__all__ = [
    "CanonicalVocabulary",
    "InexactTokenizerError",
    "load_tokenizer",
    "save_tokenizer",
]
