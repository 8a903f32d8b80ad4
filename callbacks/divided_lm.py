"""The student as an lm-eval model; imported only by EvalHarness, since it needs lm-eval."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.processes import data_share, gather_shares

# Otherwise lm-eval forks a process per core to estimate some standard errors, next to the training processes.
os.environ.setdefault("DISABLE_MULTIPROC", "1")


class DividedLM(HFLM):
    """lm-eval's Hugging Face model, with requests divided among the processes of the run.

    lm-eval sees a single process: each process builds all requests and receives all answers, so all compute the same
    results as a run of one process. The processes of a tensor-parallel group run their passes together.

    Args:
        module: Module whose student is evaluated.
        batch_size: Requests per forward pass.
        autocast: Dtype of mixed precision; None without.
    """

    def __init__(self, module: MultiTeacherDistillModule, *, batch_size: int, autocast: torch.dtype | None) -> None:
        super().__init__(
            module.student,
            # A copy, since lm-eval sets the padding token.
            tokenizer=copy.deepcopy(module.student_vocabulary.tokenizer),
            batch_size=batch_size,
            mixed_precision_dtype=autocast,  # otherwise lm-eval disables mixed precision
            softmax_dtype=torch.float32,
        )
        self._trainer = module.trainer
        self._share, self._num_shares = data_share(module.trainer)
        self._is_first = module.global_rank == 0

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._divided(super().loglikelihood, requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self._divided(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self._divided(super().generate_until, requests, disable_tqdm)

    def _model_generate(self, *args: Any, **options: Any) -> torch.Tensor:
        # Each process generates its own texts at its own pace, without waiting for the others between tokens.
        return super()._model_generate(*args, synced_gpus=False, **options)

    def _divided(self, answer: Callable[..., list[Any]], requests: list[Instance], disable_tqdm: bool) -> list[Any]:
        """Returns the answers to all requests, in order; this process computes its share.

        Requests with the same context stay together, since one pass may answer them all.
        """
        numbers: dict[str, int] = {}
        owners = [numbers.setdefault(request.args[0], len(numbers)) % self._num_shares for request in requests]
        mine = [request for request, owner in zip(requests, owners, strict=True) if owner == self._share]
        answers = answer(mine, disable_tqdm=disable_tqdm or not self._is_first) if mine else []
        shares = [iter(share) for share in gather_shares(answers, self._trainer)]
        return [next(shares[owner]) for owner in owners]
