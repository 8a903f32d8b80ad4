"""A language model's head, cut to the ids that its tokenizer has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtoken_pl.tokenization import CanonicalVocabulary

# N rows, H hidden size, V real vocabulary size


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
    def of(cls, model: PreTrainedModel, vocabulary: CanonicalVocabulary) -> Head:
        """The head of ``model``, cut to ``vocabulary``.

        Raises:
            ValueError: If the head is smaller than the vocabulary, or is no linear layer.
        """
        layer = model.get_output_embeddings()
        if layer is None or not isinstance(getattr(layer, "weight", None), Tensor):
            raise ValueError(f"{type(model).__name__} has no linear output layer; use a causal language model")
        if layer.weight.shape[0] < len(vocabulary):
            raise ValueError(
                f"a model's head must have a row for every token: {model.name_or_path or type(model).__name__!r} has "
                f"{layer.weight.shape[0]} rows, its tokenizer {vocabulary.name!r} {len(vocabulary)} tokens. "
                "Use the model's own tokenizer, or resize its embeddings"
            )
        holes = torch.from_numpy(~vocabulary.exists)
        return cls(layer, len(vocabulary), holes if holes.any() else None)

    def log_probs(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """``[N, H] -> [N, V]``, in float32 at least, whatever the precision of the product."""
        weight = self.layer.weight[: self.vocabulary_size]
        bias = getattr(self.layer, "bias", None)
        logits = F.linear(hidden.to(weight.dtype), weight, None if bias is None else bias[: self.vocabulary_size])
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if self.holes is not None:
            logits = logits.masked_fill(self.holes.to(logits.device), -torch.inf)
        return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)
