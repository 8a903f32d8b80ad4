"""Which weights a loss on text has a gradient for."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtoken_pl.models.causal_lm import hidden_states
from xtoken_pl.utilities.words import first_of

_NUM_TOKENS = 8


def freeze_unreached(model: PreTrainedModel) -> None:
    """Freezes the weights of a student that a loss on text has no gradient for, and logs their names.

    Examples are the bias that balances AFMoE's experts, and DeepSeek-V3.2's indexer, both of which only choose. DDP
    would wait for their gradients. They are found in the graph of a short input's hidden states, without a backward
    pass. Experts are left alone: whether they are reached depends on the tokens.
    """
    head = model.get_output_embeddings()
    ids = torch.arange(_NUM_TOKENS, device=model.device)[None] % model.config.get_text_config().vocab_size
    reached = _leaves(hidden_states(model, ids, torch.ones_like(ids))) | {id(weight) for weight in head.parameters()}
    unreached: dict[str, nn.Parameter] = {
        name: weight
        for name, weight in model.named_parameters()
        if weight.requires_grad and id(weight) not in reached and "experts" not in name.split(".")
    }
    for weight in unreached.values():
        weight.requires_grad_(False)
    if unreached:
        rank_zero_info(f"student: weights that a loss on text does not reach stay as they are: {first_of(unreached)}")


def _leaves(result: Tensor) -> set[int]:
    """Identities of the trainable tensors that ``result`` depends on."""
    leaves, seen, nodes = set(), set(), [result.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the end of a path
            leaves.add(id(node.variable))
        nodes += [previous for previous, _ in node.next_functions]
    return leaves
