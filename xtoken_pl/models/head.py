"""A language model's head, cut to the ids that its tokenizer has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtoken_pl.models.logit_transform import LogitTransform
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

# N rows, H hidden size, V real vocabulary size

#: Number of tokens per tile when a gradient of the head cannot be added in place.
_TILE = 4096
#: Number of tokens per tile for products on a CPU, and the hidden size from which tiles are faster.
_CPU_TILE, _NARROW = 1024, 256


@dataclass(frozen=True)
class Head:
    """Output layer that maps hidden states to log-probabilities over the tokens that exist.

    Heads are often padded beyond the tokenizer (Qwen3: 151,936 rows for 151,669 tokens). The padding is cut off, and
    ids that no token has (holes) get probability 0.

    Attributes:
        layer: The model's output layer; its parameters are read at every call, so that they may be moved or trained.
        vocabulary_size: Size of the tokenizer's vocabulary, V.
        holes: ``[V]`` bool, True for ids that no token has; None if there are none.
        transform: What the model does to its logits behind the layer; None for nothing.
    """

    layer: nn.Linear
    vocabulary_size: int
    holes: Tensor | None
    transform: LogitTransform | None = None

    @classmethod
    def from_model(cls, model: PreTrainedModel, vocabulary: CanonicalVocabulary) -> Head:
        """Creates the head of ``model``, cut to ``vocabulary``.

        Raises:
            UserError: If the head is smaller than the vocabulary, or is not a linear layer.
        """
        layer = model.get_output_embeddings()
        if layer is None or not isinstance(getattr(layer, "weight", None), Tensor):
            raise UserError(
                f"a model must have a linear output layer, but {type(model).__name__} has none; use a causal language "
                "model"
            )
        if layer.weight.shape[0] < len(vocabulary):
            raise UserError(
                f"a model's head must have a row for every token: {model.name_or_path or type(model).__name__!r} has "
                f"{layer.weight.shape[0]} rows, its tokenizer {vocabulary.name!r} {len(vocabulary)} tokens. "
                "Use the model's own tokenizer, or resize its embeddings"
            )
        holes = torch.from_numpy(~vocabulary.exists)
        return cls(layer, len(vocabulary), holes if holes.any() else None)

    def parameters(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns weight ``[V, H]`` and bias ``[V]`` (or None), without padding, in ``dtype`` or the layer's own."""
        weight, bias = self.layer.weight[: self.vocabulary_size], getattr(self.layer, "bias", None)
        dtype = dtype or weight.dtype
        return weight.to(dtype), None if bias is None else bias[: self.vocabulary_size].to(dtype)

    def fixed(self) -> Head:
        """Returns a detached head on the current weights, which stay in place when the model's own are moved."""
        layer = nn.Linear(1, 1, bias=False, device="meta")
        layer.weight = nn.Parameter(self.layer.weight.detach(), requires_grad=False)
        if (bias := getattr(self.layer, "bias", None)) is not None:
            layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return replace(self, layer=layer)

    def log_probs(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Computes log-probabilities, ``[N, H] -> [N, V]``, in float32 at least."""
        return self.normalize(logits(hidden, *self.parameters()), temperature)

    def normalize(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Converts the layer's logits to log-probabilities, ``[N, V] -> [N, V]``: float32 at least, -inf for holes."""
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if self.transform is not None:
            logits = self.transform(logits)
        if self.holes is not None:
            logits = logits.masked_fill(self.holes.to(logits.device), -torch.inf)
        return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)


def logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Applies a head to hidden states, ``[N, H], [V, H], [V] -> [N, V]``, in the head's precision.

    Args:
        hidden: ``[N, H]`` hidden states.
        weight: ``[V, H]`` weight of the head.
        bias: ``[V]`` bias of the head, or None.
        out: ``[N, V]`` memory for the result; only without it is the result differentiable.
    """
    hidden = hidden.to(weight.dtype)
    if out is None:
        return F.linear(hidden, weight, bias)
    if hidden.device.type == "cpu" and weight.shape[1] >= _NARROW:
        # For a few hundred rows and a large head, the transposed product, tile by tile, is 1.2 to 1.5 times faster.
        columns = hidden.t().contiguous()
        for start in range(0, len(weight), _CPU_TILE):
            tile = slice(start, start + _CPU_TILE)
            out[:, tile].copy_((weight[tile] @ columns).t())
    else:
        torch.mm(hidden, weight.t(), out=out)
    return out if bias is None else out.add_(bias)


def accumulate_product(total: Tensor, grad: Tensor, rows: Tensor, *, is_first: bool) -> None:
    """Adds ``gradᵀ rows`` to ``total``: ``[V, H]``, ``[P, V]``, ``[P, H]``; the first product overwrites ``total``."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.t(), rows, beta=0 if is_first else 1)
        return
    # Half-precision product, single-precision total: added tile by tile, so that the product is never held whole.
    for start in range(0, len(total), _TILE):
        tile = slice(start, start + _TILE)
        product = grad[:, tile].t() @ rows
        if is_first:
            total[tile] = product
        else:
            total[tile] += product
