"""Token ids as canonical bytes and special roles: the basis on which two tokenizers are compared."""

from xtoken_pl.tokenization.components import Components, InexactTokenizerError, read_components
from xtoken_pl.tokenization.load import load_tokenizer
from xtoken_pl.tokenization.roles import ROLES, special_roles
from xtoken_pl.tokenization.vocabulary import CanonicalVocabulary

__all__ = [
    "ROLES",
    "CanonicalVocabulary",
    "Components",
    "InexactTokenizerError",
    "load_tokenizer",
    "read_components",
    "special_roles",
]
