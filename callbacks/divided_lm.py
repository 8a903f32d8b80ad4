"""The student as lm-eval sees it; imported by EvalHarness only, since it needs lm-eval."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.processes import gather

# lm-eval would fork a process for each core to estimate some standard errors, beside the ones that train.
os.environ.setdefault("DISABLE_MULTIPROC", "1")


class DividedLM(HFLM):
    """lm-eval's own language model, whose requests are divided among the processes of the run.

    Towards lm-eval every process is the only one: it builds all requests and gets all answers, so that all processes
    come to the same results, which are those of one process.

    Args:
        module: Whose student is evaluated.
        batch_size: Requests that run at once.
        autocast: The dtype of mixed precision, if any.
    """

    def __init__(self, module: MultiTeacherDistillModule, *, batch_size: int, autocast: torch.dtype | None) -> None:
        super().__init__(
            module.student,
            # lm-eval sets the token to pad with.
            tokenizer=copy.deepcopy(module.student_vocabulary.tokenizer),
            batch_size=batch_size,
            mixed_precision_dtype=autocast,  # or lm-eval would turn mixed precision off
            softmax_dtype=torch.float32,
        )
        self._num_processes = module.trainer.world_size
        self._process = module.global_rank

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._divided(super().loglikelihood, requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self._divided(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self._divided(super().generate_until, requests, disable_tqdm)

    def _model_generate(self, *args: Any, **options: Any) -> torch.Tensor:
        # Each process is done with its own texts when it is; none waits for another between two tokens.
        return super()._model_generate(*args, synced_gpus=False, **options)

    def _divided(self, answer: Callable[..., list[Any]], requests: list[Instance], disable_tqdm: bool) -> list[Any]:
        """Answers of all requests, in their order; this process computes its share.

        Requests with the same context stay together: one pass may answer them all.
        """
        numbers: dict[str, int] = {}
        owners = [numbers.setdefault(request.args[0], len(numbers)) % self._num_processes for request in requests]
        mine = [request for request, owner in zip(requests, owners, strict=True) if owner == self._process]
        answers = answer(mine, disable_tqdm=disable_tqdm or self._process > 0) if mine else []
        shares = [iter(share) for share in gather(answers)]
        return [next(shares[owner]) for owner in owners]
