"""Answers of vLLM and SGLang for the rows of a text, as the stand-in server gives them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Token(NamedTuple):
    """A token of a row."""

    token_id: int
    log_prob: float
    rank: int


class Row(NamedTuple):
    """The prediction of one token: the observed token and the most probable ones."""

    observed: Token
    top: list[Token]


@torch.no_grad()
def rows_of_text(model: PreTrainedModel, ids: list[int], top_k: int) -> list[Row | None]:
    """Rows of all tokens of a text, None for the first; ``top_k`` -1 asks for all tokens."""
    device = model.device
    log_probs = model(torch.tensor([ids], device=device)).logits[0].double().log_softmax(-1).cpu()
    rows: list[Row | None] = [None]
    for row, token_id in zip(log_probs[:-1], ids[1:], strict=True):
        best = row.topk(len(row) if top_k == -1 else top_k)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = [Token(best_id, log_prob, rank) for rank, (best_id, log_prob) in enumerate(pairs, 1)]
        rank = int((row >= row[token_id]).sum())
        rows.append(Row(Token(token_id, float(row[token_id]), rank), top))
    return rows


def vllm_answer(rows: list[Row | None], name: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Answer of vLLM: the observed token comes first, with its rank, unless it is among the best."""
    positions: list[dict[str, Any] | None] = []
    for row in rows:
        if row is None:
            positions.append(None)
            continue
        # A key keeps its place where a later entry of the same token replaces its value.
        entries = {token.token_id: token for token in (row.observed, *row.top)}
        texts = tokenizer.convert_ids_to_tokens(list(entries))
        positions.append(
            {
                str(token_id): {"logprob": token.log_prob, "rank": token.rank, "decoded_token": text}
                for (token_id, token), text in zip(entries.items(), texts, strict=True)
            }
        )
    choice = {
        "index": 0,
        "text": "",
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
        "token_ids": None,
        "prompt_logprobs": positions,
        "prompt_token_ids": None,
        "routed_experts": None,
    }
    usage = {"prompt_tokens": len(rows), "total_tokens": len(rows) + 1, "completion_tokens": 1}
    return {
        "id": "cmpl-0",
        "object": "text_completion",
        "created": 0,
        "model": name,
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": "stand-in",
        "usage": usage | {"prompt_tokens_details": None, "completion_tokens_details": None},
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def vllm_models(name: str, max_model_len: int) -> dict[str, Any]:
    """Answer of vLLM to ``/v1/models``."""
    card = {"id": name, "object": "model", "created": 0, "owned_by": "stand-in", "root": name, "parent": None}
    return {"object": "list", "data": [card | {"max_model_len": max_model_len, "permission": []}]}


def vllm_refusal(
    prompt: list[int], top_k: int, *, vocab_size: int, max_logprobs: int, max_model_len: int
) -> tuple[str, str | None] | None:
    """Message and parameter of vLLM's error for a request; None for a good one."""
    wanted = vocab_size if top_k == -1 else top_k
    if max_logprobs != -1 and wanted > max_logprobs:
        reason = f"Requested prompt logprobs of {wanted}, which is greater than max allowed: {max_logprobs}"
        return f"{reason} (parameter=prompt_logprobs, value={wanted})", "prompt_logprobs"
    if len(prompt) > max_model_len:
        return (
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
            f"{len(prompt)} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
            f"length of the input prompt. (parameter=input_tokens, value={len(prompt)})"
        ), "input_tokens"
    if len(prompt) == max_model_len:
        return "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", "max_tokens"
    if (unknown := max(prompt)) >= vocab_size:
        return f"Token id {unknown} is out of vocabulary", None
    return None


def sglang_answer(rows: list[Row | None], ids: list[int]) -> dict[str, Any]:
    """Answer of SGLang."""
    tokens: list[Any] = []
    tops: list[Any] = []
    for token_id, row in zip(ids, rows, strict=False):
        tokens.append([None, token_id, None] if row is None else [row.observed.log_prob, row.observed.token_id, None])
        tops.append(None if row is None else [[token.log_prob, token.token_id, None] for token in row.top])
    meta = {
        "id": "0",
        "finish_reason": {"type": "length", "length": 0},
        "prompt_tokens": len(rows),
        "completion_tokens": 0,
        "cached_tokens": 0,
        "input_token_logprobs": tokens,
        "input_top_logprobs": tops,
        "output_token_logprobs": [],
        "output_top_logprobs": [],
    }
    return {"text": "", "meta_info": meta}
