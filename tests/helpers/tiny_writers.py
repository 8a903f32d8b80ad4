"""Tiny students that write single letters, and slow references of what they write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.rollouts import Request, Sampling

EOS, HOLE, NUM_IDS = 0, 3, 6


@cache
def letters() -> CanonicalVocabulary:
    """Ids 0 to 5: eos, a, b, none (a hole), c, d."""
    ids = {"</s>": EOS, "a": 1, "b": 2, "c": 4, "d": 5}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return CanonicalVocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"))


def tiny_config(config: type = LlamaConfig, **options: Any) -> Any:
    defaults = {
        "vocab_size": NUM_IDS,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    return config(**{**defaults, **options})


def tiny_student(
    model: type = LlamaForCausalLM, *, seed: int = 0, scale: float = 30.0, **options: Any
) -> PreTrainedModel:
    """A random model in float64, in training mode; ``scale`` multiplies its head, so that it is far from uniform."""
    torch.manual_seed(seed)
    student = model(tiny_config(model.config_class, **options)).double().train()
    with torch.no_grad():
        student.get_output_embeddings().weight.mul_(scale)
    return student


def requests(prompts: Sequence[Sequence[int]], stop_ids: Sequence[int] = (EOS,), seed: int = 0) -> list[Request]:
    return [Request(ids, frozenset(stop_ids), (seed, 3, place, 0)) for place, ids in enumerate(prompts)]


#: Prompts of unequal length.
PROMPTS = [
    [1 + (place * step) % 2 + 3 * (step % 2 == place % 3) for step in range(place % 7 + 1)] for place in range(9)
]


def filtered(logits: NDArray[np.float64], sampling: Sampling) -> NDArray[np.float64]:
    """Probabilities of the existing tokens after temperature, top_k and top_p, by sorting, in float64."""
    exists = letters().exists[: len(logits)]
    if sampling.temperature == 0:
        return np.arange(len(logits)) == max(np.flatnonzero(exists), key=lambda token: logits[token])
    weights = np.where(exists, np.exp((logits - logits[exists].max()) / sampling.temperature), 0)
    order = np.argsort(-weights)[: sampling.top_k]
    kept = weights[order] / weights[order].sum()
    before = np.cumsum(kept) - kept  # a token is kept unless those before it have top_p already
    kept[before >= sampling.top_p] = 0
    probs = np.zeros(len(logits))
    probs[order] = kept / kept.sum()
    return probs


def next_logits(student: PreTrainedModel, ids: Sequence[int]) -> NDArray[np.float64]:
    """Logits behind a text, without cache or padding."""
    modes = {module: module.training for module in student.modules()}
    student.eval()
    with torch.no_grad():
        logits = student(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    for module, mode in modes.items():
        module.training = mode
    return logits.double().numpy()


def enumerated(
    student: PreTrainedModel, prompt: Sequence[int], sampling: Sampling, stop_id: int = EOS
) -> dict[tuple[int, ...], float]:
    """Probabilities of all texts that can be written behind a prompt."""

    def extend(ids: tuple[int, ...], probability: float) -> Iterator[tuple[tuple[int, ...], float]]:
        if len(ids) == sampling.max_new_tokens or (ids and ids[-1] == stop_id):
            yield ids, probability
            return
        for token, p in enumerate(filtered(next_logits(student, [*prompt, *ids]), sampling)):
            if p > 0:
                yield from extend((*ids, token), probability * p)

    return dict(extend((), 1.0))


def slowly_written(student: PreTrainedModel, request: Request, sampling: Sampling) -> tuple[int, ...]:
    """The text of a request, token by token, without cache, padding or other texts."""
    uniform = np.random.Generator(np.random.Philox(np.random.SeedSequence(request.seed))).random(1000)
    ids: list[int] = []
    for number in uniform[: sampling.max_new_tokens]:
        probs = filtered(next_logits(student, [*request.prompt_ids, *ids]), sampling)
        ids.append(next(token for token in range(len(probs)) if probs[: token + 1].sum() > number * probs.sum()))
        if ids[-1] in request.stop_ids:
            break
    return tuple(ids)
