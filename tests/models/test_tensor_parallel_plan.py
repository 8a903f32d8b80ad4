"""Which models can be split over processes, and what is said of the others, from their configuration alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from split_models import settings_of
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from xtoken_pl.models.adapters import add_adapter
from xtoken_pl.models.tensor_parallel_plan import check_can_be_split
from xtoken_pl.specs import LoRA
from xtoken_pl.utilities.errors import UserError


def bare(name: str, **changes: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(name, **settings_of(name, **changes))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gemma3_text", "gpt_neox", "qwen3_5_text", "olmo2"])
def test_dense_architectures_with_a_plan_can_be_split(name: str) -> None:
    check_can_be_split(bare(name), 2, role="student")


@pytest.mark.parametrize(
    ("name", "size", "changes", "said"),
    [
        ("gpt2", 2, {}, r"student \(GPT2LMHeadModel\) has no plan"),
        ("qwen3_moe", 2, {}, r"has the style '(packed_colwise|moe_tp_experts)' for layers\.0\.mlp\.experts"),
        ("deepseek_v3", 2, {}, r"style '\w+' for layers\.\d"),
        ("llama", 4, {}, r"got 4 for the 2 heads of layers\.0\.self_attn\.k_proj"),
        ("llama", 2, {"num_attention_heads": 3, "num_key_value_heads": 3}, r"got 2 for the 3 heads of layers\.0"),
        ("llama", 2, {"intermediate_size": 43}, r"got 2 for the 43 features of layers\.0\.mlp\.gate_proj"),
        (
            "gpt_neox",
            3,
            {"hidden_size": 24, "head_dim": None},
            r"(3 for num_attention_heads=4|got 3 for the \d+ heads)",
        ),
    ],
)
def test_others_are_refused_by_name_with_the_way_out(name: str, size: int, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"{said}.*tensor_parallel_size"):
        check_can_be_split(bare(name, **changes), size, role="student")


def test_a_weight_between_split_layers_needs_a_plan() -> None:
    """Qwen 3 normalizes the queries and keys of each process's heads: of its weights each process has a part."""
    model = bare("qwen3")
    plan = model.config.base_model_tp_plan
    model.config.base_model_tp_plan = {name: style for name, style in plan.items() if not name.endswith("q_norm")}
    with pytest.raises(UserError, match=r"names none for layers\.0\.self_attn\.q_norm\.weight"):
        check_can_be_split(model, 2, role="teacher 'large'")


@pytest.mark.slow  # imports PEFT
def test_a_model_with_an_adapter_is_refused() -> None:
    model = bare("llama")
    add_adapter(model, LoRA(rank=2))
    with pytest.raises(UserError, match=r"without adapters, and the teacher 'large' \(LlamaForCausalLM\) has one; set"):
        check_can_be_split(model, 2, role="teacher 'large'")


def test_a_plan_for_a_weight_alone_is_refused() -> None:
    model = bare("llama")
    plan = model.config.base_model_tp_plan  # the class's own
    model.config.base_model_tp_plan = {**plan, "layers.*.mlp.up_proj.weight": "replicated_with_grad_allreduce"}
    with pytest.raises(UserError, match=r"style 'replicated_with_grad_allreduce' for layers\.0\.mlp\.up_proj\.weight"):
        check_can_be_split(model, 2, role="student")
