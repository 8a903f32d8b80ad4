"""Writes texts with the ``generate`` of transformers, in the training process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from xtoken_pl.models.inference import inference_state
from xtoken_pl.rollouts.engine import Request, RolloutEngine, Sampling
from xtoken_pl.rollouts.rollout import Rollout
from xtoken_pl.rollouts.sampling import TokenSampler, uniform_numbers
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_at_least_one
from xtoken_pl.utilities.errors import UserError

# R rows, P tokens of the longest prompt, T new tokens


class TransformersEngine(RolloutEngine):
    """Writes with the student's own ``generate`` and its key-value cache, many texts at once.

    Prompts of unequal length are padded on the left. Under FSDP2 each process gathers the weights and writes at its own
    pace. The model's generation configuration has no effect.

    Args:
        batch_size: Largest number of texts that are written at once; None for all. Smaller batches need less memory
            for the cache; texts with prompts of similar length share one.
    """

    def __init__(self, *, batch_size: int | None = None) -> None:
        check_at_least_one("batch_size", batch_size, "leave it out to write all texts at once")
        self.batch_size = batch_size

    def write(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        student: PreTrainedModel,
        vocabulary: CanonicalVocabulary,
    ) -> list[Rollout]:
        if not all(len(request.prompt_ids) for request in requests):
            raise UserError("a prompt must have at least one token to write behind, got none; leave the request out")
        by_length = sorted(range(len(requests)), key=lambda place: len(requests[place].prompt_ids))
        size = self.batch_size or max(len(requests), 1)
        written: dict[int, Rollout] = {}
        # Entered without requests, too: other processes gather the weights.
        with inference_state(student), _without_generation_config(student):
            for start in range(0, len(requests), size):
                places = by_length[start : start + size]
                batch = [requests[place] for place in places]
                written |= zip(places, _write_batch(batch, sampling, student, vocabulary), strict=True)
        return [written[place] for place in range(len(requests))]


def _write_batch(
    requests: list[Request],
    sampling: Sampling,
    student: PreTrainedModel,
    vocabulary: CanonicalVocabulary,
) -> list[Rollout]:
    """Writes the texts of one batch, until all have ended."""
    length = max(len(request.prompt_ids) for request in requests)
    device = student.device
    input_ids = _padded([request.prompt_ids for request in requests], length, 0).to(device)
    attention_mask = _padded([[1] * len(request.prompt_ids) for request in requests], length, 0).to(device)
    uniform = torch.from_numpy(uniform_numbers([request.seed for request in requests], sampling.max_new_tokens))
    sequences = student.generate(
        input_ids,
        attention_mask=attention_mask,
        generation_config=GenerationConfig(max_new_tokens=sampling.max_new_tokens, do_sample=False, use_cache=True),
        logits_processor=LogitsProcessorList([TokenSampler(sampling, vocabulary, uniform, length)]),
        stopping_criteria=StoppingCriteriaList([_StopTokens([request.stop_ids for request in requests], device)]),
        synced_gpus=False,  # each process writes at its own pace
    )
    return [
        Rollout.from_ids(ids, vocabulary, request.stop_ids)
        for ids, request in zip(sequences[:, length:].tolist(), requests, strict=True)
    ]


class _StopTokens(StoppingCriteria):
    """Ends each row at one of its own stop tokens.

    Shape:
        input_ids: [R, P + tokens so far]; returns: [R].
    """

    def __init__(self, stop_ids: list[frozenset[int]], device: torch.device) -> None:
        size = max(map(len, stop_ids))
        self._stop_ids = _padded([sorted(ids) for ids in stop_ids], size, -1).to(device)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        return (input_ids[:, -1:] == self._stop_ids).any(-1)


def _padded(rows: Sequence[Sequence[int]], size: int, padding: int) -> Tensor:
    """``[rows, size]``, padded on the left."""
    return torch.tensor([[padding] * (size - len(row)) + list(row) for row in rows], dtype=torch.long)


@contextmanager
def _without_generation_config(student: PreTrainedModel) -> Iterator[None]:
    """Puts the model's generation configuration aside: ``generate`` takes from it whatever it is not given."""
    before = student.generation_config
    student.generation_config = GenerationConfig()
    try:
        yield
    finally:
        student.generation_config = before
