"""A language model's head, cut to the ids that its tokenizer has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

# N rows, H hidden size, V real vocabulary size

#: Tokens of a head whose gradient is added at a time, where it cannot be added in place.
_TILE = 4096
#: The same where a CPU multiplies, and the hidden size from which this pays.
_CPU_TILE, _NARROW = 1024, 256


@dataclass(frozen=True)
class Head:
    """Hidden states -> log-probabilities over the tokens that exist.

    Heads are often padded beyond the tokenizer (Qwen3: 151,936 rows for 151,669 tokens). The rows beyond are cut,
    and ids that no token has (holes) get probability 0.

    Attributes:
        layer: The model's output layer; its parameters are read at every call, so that they may be moved or trained.
        vocabulary_size: V.
        holes: Ids below V that no token has, or None.
    """

    layer: nn.Linear
    vocabulary_size: int
    holes: Tensor | None

    @classmethod
    def from_model(cls, model: PreTrainedModel, vocabulary: CanonicalVocabulary) -> Head:
        """The head of ``model``, cut to ``vocabulary``.

        Raises:
            UserError: If the head is smaller than the vocabulary, or is no linear layer.
        """
        layer = model.get_output_embeddings()
        if layer is None or not isinstance(getattr(layer, "weight", None), Tensor):
            raise UserError(f"{type(model).__name__} has no linear output layer; use a causal language model")
        if layer.weight.shape[0] < len(vocabulary):
            raise UserError(
                f"a model's head must have a row for every token: {model.name_or_path or type(model).__name__!r} has "
                f"{layer.weight.shape[0]} rows, its tokenizer {vocabulary.name!r} {len(vocabulary)} tokens. "
                "Use the model's own tokenizer, or resize its embeddings"
            )
        holes = torch.from_numpy(~vocabulary.exists)
        return cls(layer, len(vocabulary), holes if holes.any() else None)

    def parameters(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight ``[V, H]`` and bias ``[V]`` of the tokens that exist, in ``dtype`` or the layer's own."""
        weight, bias = self.layer.weight[: self.vocabulary_size], getattr(self.layer, "bias", None)
        dtype = dtype or weight.dtype
        return weight.to(dtype), None if bias is None else bias[: self.vocabulary_size].to(dtype)

    def fixed(self) -> Head:
        """The same with the weights as they are now, which stay when those of the model move away."""
        layer = nn.Linear(1, 1, bias=False, device="meta")
        layer.weight = nn.Parameter(self.layer.weight.detach(), requires_grad=False)
        if (bias := getattr(self.layer, "bias", None)) is not None:
            layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return replace(self, layer=layer)

    def log_probs(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """``[N, H] -> [N, V]``, in float32 at least, whatever the precision of the product."""
        return self.normalize(logits(hidden, *self.parameters()), temperature)

    def normalize(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """``[N, V] -> [N, V]``: logits to log-probabilities, in float32 at least, -inf for holes."""
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if self.holes is not None:
            logits = logits.masked_fill(self.holes.to(logits.device), -torch.inf)
        return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)


def logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """``[N, H], [V, H], [V] -> [N, V]``: the product with a head, in the head's precision.

    Args:
        out: ``[N, V]`` memory for the result; without it a gradient can be taken.
    """
    hidden = hidden.to(weight.dtype)
    if out is None:
        return F.linear(hidden, weight, bias)
    if hidden.device.type == "cpu" and weight.shape[1] >= _NARROW:
        # A few hundred rows times a large head: the transposed product, tile by tile, is 1.2 to 1.5 x faster.
        columns = hidden.t().contiguous()
        for start in range(0, len(weight), _CPU_TILE):
            tile = slice(start, start + _CPU_TILE)
            out[:, tile].copy_((weight[tile] @ columns).t())
    else:
        torch.mm(hidden, weight.t(), out=out)
    return out if bias is None else out.add_(bias)


def accumulate_product(total: Tensor, grad: Tensor, rows: Tensor, *, is_first: bool) -> None:
    """``total += gradᵀ rows``: ``[V, H]``, ``[P, V]``, ``[P, H]``; the first product overwrites ``total``."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.t(), rows, beta=0 if is_first else 1)
        return
    # A product in half precision for a weight in single: tile by tile, so that it exists once only.
    for start in range(0, len(total), _TILE):
        tile = slice(start, start + _TILE)
        product = grad[:, tile].t() @ rows
        if is_first:
            total[tile] = product
        else:
            total[tile] += product
