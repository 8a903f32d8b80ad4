"""Roles of special tokens, which have no bytes and are compared by role instead."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

# Spellings of the same marker in the common chat and fill-in-the-middle formats. The four generic roles
# (bos, eos, unk, pad) are read from the tokenizer itself.
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "turn_start": ("<|im_start|>", "<start_of_turn>", "<|start_header_id|>"),
    "turn_end": ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>"),
    "system": ("<|system|>",),
    "user": ("<|user|>",),
    "assistant": ("<|assistant|>",),
    "fim_prefix": ("<|fim_prefix|>", "<fim_prefix>"),
    "fim_middle": ("<|fim_middle|>", "<fim_middle>"),
    "fim_suffix": ("<|fim_suffix|>", "<fim_suffix>"),
}

#: All roles, by descending priority: a token that is eos as well as bos or pad is predicted as eos.
ROLES: tuple[str, ...] = ("eos", "bos", *_SPELLINGS, "unk", "pad")


def special_roles(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Maps each role that ``tokenizer`` has to a token id, in the order of :data:`ROLES`.

    One id may play several roles. A marker may be an ordinary token of this tokenizer (Qwen's ``<|fim_prefix|>``);
    the caller drops those.
    """
    vocabulary = tokenizer.get_added_vocab()
    roles: dict[str, int] = {}
    for role in ROLES:
        if role in _SPELLINGS:
            token_id = next((vocabulary[spelling] for spelling in _SPELLINGS[role] if spelling in vocabulary), None)
        else:
            token_id = getattr(tokenizer, f"{role}_token_id")
        if token_id is not None:
            roles[role] = token_id
    return roles
