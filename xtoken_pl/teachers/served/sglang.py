"""SGLang's own protocol: ``/generate`` with ``return_logprob``."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from xtoken_pl.teachers.served.answers import Answer, Question, padded
from xtoken_pl.teachers.served.api import Api, expected_form


class SglangApi(Api):
    """Protocol of SGLang, written from its public code; it has not been tried on a running SGLang server.

    The answer holds ``meta_info.input_token_logprobs``, ``[log-probability, id, text or null]`` for each token of the
    prompt, with null for the first token's log-probability, and ``meta_info.input_top_logprobs``: null for the first
    token, then for each token a list of its k most probable alternatives in the same form. Log-probabilities of a
    prompt are not scaled by the temperature. No model is named: its name and its weights are checked by the list of
    models and the probe (:mod:`xtoken_pl.teachers.served.checks`).
    """

    path = "/generate"

    def request(self, question: Question) -> dict[str, Any]:
        assert question.top_k is not None, "refused by check_server"
        return {
            "input_ids": question.ids,
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": question.top_k,
        }

    def read(self, answer: Any, question: Question) -> Answer:
        with expected_form("input_token_logprobs and input_top_logprobs"):
            tokens: list[Any] = answer["meta_info"]["input_token_logprobs"]
            tops: list[Any] = answer["meta_info"]["input_top_logprobs"]
            self.check_length(min(len(tokens), len(tops)), question)
            for place, (_, token_id, _) in enumerate(tokens):
                if token_id != question.ids[place]:
                    self.refuse_text(f"token {token_id} instead of {question.ids[place]} at position {place}")
            wanted = [tops[place] for place in question.positions]
            counts = np.fromiter(map(len, wanted), dtype=np.int64, count=len(wanted))
            flat = list(chain.from_iterable(wanted))
            ids = np.array([token_id for _, token_id, _ in flat], dtype=np.int64)
            log_probs = np.array([log_prob for log_prob, _, _ in flat], dtype=np.float64)
            observed = np.array([tokens[place][0] for place in question.positions], dtype=np.float64)
        return Answer(*padded(ids, log_probs, counts), counts, observed)
