"""Two processes take the step of one: balanced experts, text models of multimodal ones, adapters on shared teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_steps import CASES, COEFFICIENT, EXPORTED, STEP_TEXTS, Case, make_module, write_all
from safetensors.torch import load_file
from started_helpers import run_helper
from torch import Tensor
from transformed_steps import comparable
from transformers import AutoModelForCausalLM

from xtoken_pl.data import Windower, collate

pytestmark = pytest.mark.slow

STRATEGIES = ("ddp", "fsdp2")
#: Largest difference of a loss, relative to it, and of a gradient, relative to its largest entry.
BOUND = 1e-6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `architecture_steps.py` wrote under each strategy."""
    folder = tmp_path_factory.mktemp("architectures")
    write_all(folder)
    for strategy in STRATEGIES:
        run_helper("architecture_steps", strategy, folder, timeout=900)
    return folder


def expected_step(root: Path, case: Case, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Loss and gradients of one process with a plain module, plus the router loss of each batch by its tokens."""
    with comparable():
        module = make_module(root, case, is_plain=True)
        module.setup("fit")
        module.configure_model()
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 64)(STEP_TEXTS)
    windows = [{key: column[i] for key, column in columns.items()} for i in range(len(STEP_TEXTS))]
    step: Any = module.training_step(collate(windows, list(module.teachers)), 0)
    loss = step["loss"]
    if "router_aux_loss_coef" in case.options:
        num_learned = [int(mask.sum()) - len(mask) for _, mask in batches]
        for (ids, mask), number in zip(batches, num_learned, strict=True):
            own = module.student(input_ids=ids, attention_mask=mask, output_router_logits=True).aux_loss
            loss = loss + COEFFICIENT * own * number / sum(num_learned)
    loss.backward()
    found = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach(), **found}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", CASES)
def test_a_step_of_two_processes_is_that_of_one(root: Path, name: str, strategy: str) -> None:
    case = CASES[name]
    both = [torch.load(root / f"{strategy}-{rank}.pt", weights_only=True)[name] for rank in range(2)]
    batches = [batch for result in both for batch in result["batches"]]
    assert len(batches) == 2 * case.num_batches
    expected, found = expected_step(root, case, batches), both[0]["found"]
    assert found.keys() == expected.keys()
    assert not any("vision" in key or "projector" in key for key in found)
    largest = max(float(value.abs().max()) for key, value in expected.items() if key != "loss")
    for key, value in expected.items():
        size = float(value) if key == "loss" else largest
        assert float((found[key] - value).abs().max()) <= BOUND * size, key


@pytest.mark.parametrize("name", EXPORTED)
def test_exports_of_sharded_students_are_those_of_whole_ones(root: Path, name: str) -> None:
    """The text model of a multimodal checkpoint, and experts into which an adapter is merged."""
    ddp, fsdp2 = (load_file(root / strategy / name / "model.safetensors") for strategy in STRATEGIES)
    before = AutoModelForCausalLM.from_pretrained(root / "qwen3_moe").state_dict() if name == "experts lora" else {}
    assert ddp.keys() == fsdp2.keys()
    for key, value in ddp.items():
        torch.testing.assert_close(fsdp2[key], value, rtol=1e-4, atol=1e-5)
    exported: Any = AutoModelForCausalLM.from_pretrained(root / "fsdp2" / name)
    assert type(exported).__name__ == ("Qwen3MoeForCausalLM" if before else "Gemma3ForCausalLM")
    moved = [key for key, value in exported.state_dict().items() if before and not torch.equal(value, before[key])]
    assert len([key for key in moved if ".experts." in key]) == (4 if before else 0)
