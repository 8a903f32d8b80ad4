"""vLLM's OpenAI-compatible server: ``/v1/completions`` with ``prompt_logprobs``."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from xtoken_pl.teachers.served.answers import Answer, Question, padded
from xtoken_pl.teachers.served.api import Api, expected_form


class VllmApi(Api):
    """Protocol of vLLM (checked with 0.32).

    The answer holds ``choices[0].prompt_logprobs``: null for the first token, then for each token a map from id (a
    string) to ``{logprob, rank, decoded_token}`` with the observed token and the k most probable ones.
    """

    path = "/v1/completions"
    top_k_option = "--max-logprobs"

    def request(self, question: Question) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": question.ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": -1 if question.top_k is None else question.top_k,
        }

    def read(self, answer: Any, question: Question) -> Answer:
        with expected_form("prompt_logprobs"):
            self.check_model(answer["model"])
            positions: list[Any] = answer["choices"][0]["prompt_logprobs"]
            self.check_length(len(positions), question)
            for place in range(1, len(positions)):
                if str(question.ids[place]) not in positions[place]:
                    self.refuse_text(f"another token than {question.ids[place]} at position {place}")
            wanted = [positions[place] for place in question.positions]
            observed = [tokens[str(label)] for tokens, label in zip(wanted, question.labels, strict=True)]
            counts = np.fromiter(map(len, wanted), dtype=np.int64, count=len(wanted))
            # An observed token that is not among the k most probable ones is an extra one.
            ranks = np.array([token["rank"] for token in observed], dtype=np.float64)
            num_top = counts if question.top_k is None else counts - (ranks > question.top_k)
            ids = np.array(list(map(int, chain.from_iterable(wanted))), dtype=np.int64)
            values = [token["logprob"] for tokens in wanted for token in tokens.values()]
            log_probs = np.array(values, dtype=np.float64)
            observed_log_probs = np.array([token["logprob"] for token in observed], dtype=np.float64)
        return Answer(*padded(ids, log_probs, counts), num_top, observed_log_probs)
