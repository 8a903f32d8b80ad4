"""Tokens that a teacher reads behind the cached states of a batch, against texts of their own."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from xtoken_pl.batch import TokenBatch
from xtoken_pl.models.causal_lm import hidden_states
from xtoken_pl.models.head import Head
from xtoken_pl.teachers.branches import CachedBranches, check_branches
from xtoken_pl.utilities.errors import UserError

SIZE = 50
COMMON = {
    "vocab_size": SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**COMMON, num_key_value_heads=2),
    "qwen3": Qwen3Config(**COMMON, num_key_value_heads=2, head_dim=4),
    "mistral, window": MistralConfig(**COMMON, num_key_value_heads=2, sliding_window=4),
    "gemma3, window": Gemma3TextConfig(
        **COMMON,
        num_key_value_heads=2,
        head_dim=4,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt_neox": GPTNeoXConfig(**COMMON),
    "gpt2": GPT2Config(vocab_size=SIZE, n_embd=16, n_head=4, n_layer=2, bos_token_id=1, eos_token_id=2),
}


def make(config: PreTrainedConfig, attention: str = "sdpa") -> tuple[PreTrainedModel, Head]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))  # so that attention is not even
    return model, Head(model.get_output_embeddings(), SIZE, None)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_appended_tokens_have_the_rows_of_a_text_of_their_own(name: str, attention: str) -> None:
    model, head = make(CONFIGS[name], attention)
    texts = [list(range(3, 15)), list(range(20, 27))]
    ids, mask = torch.zeros(2, 12, dtype=torch.int64), torch.zeros(2, 12, dtype=torch.int64)
    for sequence, text in enumerate(texts):
        ids[sequence, : len(text)] = torch.tensor(text)
        mask[sequence, : len(text)] = 1
    rows = torch.tensor([0, 4, 10, 12, 13, 17])
    tokens = TokenBatch(ids, mask, rows, ids.flatten()[rows + 1])
    prefixes = [texts[row // 12][: row % 12 + 1] for row in rows.tolist()]
    branches = CachedBranches(model, head, tokens, temperature=2.0)
    # Two branches behind one row, none behind another, branches of branches, and further tokens of the text.
    for behind, more in (([1, 1, 3, 2, 5], [30, 31, 32, 33, 34]), ([7, 6, 8, 0], [40, 41, 42, 43]), ([11, 13], [9, 8])):
        found = branches.append(torch.tensor(behind), torch.tensor(more))
        prefixes += [[*prefixes[row], token] for row, token in zip(behind, more, strict=True)]
        assert found.tolist() == list(range(len(prefixes) - len(more), len(prefixes)))
    log_probs = branches.log_probs(torch.arange(len(prefixes)))
    for row, prefix in enumerate(prefixes):
        alone = torch.tensor([prefix])
        with torch.no_grad():
            expected = head.log_probs(hidden_states(model, alone, torch.ones_like(alone))[0, -1:], 2.0)[0]
        torch.testing.assert_close(log_probs[row], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(branches.rows.hidden, branches.hidden[: len(rows)], atol=0, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_models_with_attention_pass_the_check(name: str) -> None:
    check_branches(*make(CONFIGS[name]), name="t")


def test_a_model_without_attention_is_refused_by_name() -> None:
    model, head = make(MambaConfig(vocab_size=SIZE, hidden_size=16, num_hidden_layers=2, state_size=4), "eager")
    with pytest.raises(UserError, match=r"teacher 't' \(MambaForCausalLM"):
        check_branches(model, head, name="t")
