"""Tiny tokenizers and models, engines that write a script, and training steps on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from module_steps import step_of
from small_models import write_neox
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.batch import DistillBatch, Prompt
from xtoken_pl.data import collate
from xtoken_pl.rollouts import Request, Rollout, RolloutEngine

EOS = "<eos>"


def tiny_tokenizer(letters: str, *merged: tuple[str, str]) -> PreTrainedTokenizerFast:
    """BPE over a few letters with a few merges; its last token is eos, and it has no bos."""
    tokens = [*letters, *("".join(pair) for pair in merged)]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, list(merged)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(EOS, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS)


def write_double(folder: Path, tokenizer: PreTrainedTokenizerFast, *, seed: int, scale: float = 20.0) -> str:
    """A model that computes in double precision, and is sure of some tokens; returns its path."""
    path = write_neox(folder, tokenizer, seed=seed)

    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    model.save_pretrained(path)
    return path


class ScriptedEngine(RolloutEngine):
    """Writes given ids, in order, and notes what it was asked for."""

    def __init__(self, *texts: Sequence[int]) -> None:
        self.texts = texts
        self.requests: list[Request] = []

    def write(self, requests: Any, sampling: Any, student: Any, vocabulary: Any) -> list[Rollout]:
        self.requests = list(requests)
        return [
            Rollout.from_ids(ids, vocabulary, request.stop_ids)
            for ids, request in zip(self.texts, requests, strict=True)
        ]


def prompts_batch(module: MultiTeacherDistillModule, prompts: Sequence[Prompt | None]) -> DistillBatch:
    """A batch of the data that has nothing to learn but its prompts."""
    blank = {"student_ids": [0], "loss_mask": [0]}
    batch = collate([blank] * len(prompts), list(module.teachers))
    batch.prompts = cast(Any, list(prompts))
    return batch


def prompt_of(module: MultiTeacherDistillModule, text: str) -> Prompt:
    sides = {"": module.student_vocabulary, **module.teacher_vocabularies}
    ids = {name: side.tokenizer.encode(text, add_special_tokens=False) for name, side in sides.items()}
    return Prompt(ids, is_chat=False)


def written_step(
    module: MultiTeacherDistillModule, texts: Sequence[Sequence[int]], prompts: Sequence[Prompt | None]
) -> dict[str, Any]:
    """The result of an on-policy step whose texts are given; the gradients are those of this step alone."""
    assert module.rollouts is not None
    module.rollouts.engine = ScriptedEngine(*texts)
    module.zero_grad()
    step = step_of(module, prompts_batch(module, prompts))
    step["loss"].backward()
    return step
