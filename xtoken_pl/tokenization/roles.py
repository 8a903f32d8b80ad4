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
    roles: dict[str, int | None] = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    for role, spellings in _SPELLINGS.items():
        roles[role] = next((vocabulary[spelling] for spelling in spellings if spelling in vocabulary), None)
    return {role: token_id for role in ROLES if (token_id := roles[role]) is not None}
