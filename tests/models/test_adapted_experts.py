"""Adapters on a mixture's fused experts: training, resume, export; and what an adapter cannot reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_students import checkpoints, logits_of, student_of, train
from architectures import ARCHITECTURES, write_architecture
from peft import PeftModel
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from transformers import AutoModelForCausalLM

from xtoken_pl import LoRA, MultiTeacherDistillModule, Student
from xtoken_pl.callbacks import HFExport
from xtoken_pl.cli import main
from xtoken_pl.models.adapters import add_adapter, check_adapter
from xtoken_pl.models.reach import freeze_unreached
from xtoken_pl.utilities.errors import UserError

#: One of each kind; the others are slow in sum.
_FAST = {"llama", "gpt2", "falcon", "llama4_text", "jamba", "falcon_h1", "qwen3_5_moe_text"}
every_architecture = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _FAST else pytest.mark.slow) for name in ARCHITECTURES]
)
#: Architecture -> layers whose weights the layer around them reads. An adapter would change nothing there.
READ = {
    **{name: {"out_proj"} for name in ("falcon_h1", "mamba2", "bamba", "granitemoehybrid", "nemotron_h")},
    **{name: {"x_proj", "dt_proj", "out_proj"} for name in ("mamba", "falcon_mamba")},
    "jamba": {"dt_proj"},
    "gemma3n_text": {"correction_coefs", "prediction_coefs"},  # clamped
}
#: Architecture -> routers whose class only derives from a linear layer.
ROUTERS = {"llama4_text": {"router"}, "phimoe": {"router"}}
#: Architecture -> layers that only choose tokens, which gives them no gradient.
FROZEN = {name: {"wq_b", "wk", "weights_proj"} for name in ("deepseek_v32", "glm_moe_dsa")}


@pytest.fixture(scope="module", params=["qwen3_moe", "deepseek_v3"])
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts, a teacher, and texts; DeepSeek's has a dense layer and a shared expert, too."""
    folder = tmp_path_factory.mktemp("mixture")
    write_architecture(folder / "student", request.param, packing_tokenizer(), seed=1, scale=1.0)
    write_model(folder / "split", splitting_tokenizer(), seed=2)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text[:200]}) + "\n" for text in TEXTS[:3]))
    return folder


@pytest.fixture(scope="module")
def trained(mixture: Path) -> tuple[MultiTeacherDistillModule, list[float]]:
    """Four steps with an adapter, its checkpoints, and both forms of export."""
    exports = [HFExport(str(mixture / form), form=form) for form in ("merged", "adapter")]
    student = student_of(mixture, dropout=0.0)
    return train(mixture, student, checkpoints(mixture / "whole"), *exports, num_steps=4)


def test_the_experts_learn(mixture: Path, trained: Any) -> None:
    learned = {name: weight for name, weight in trained[0].student.named_parameters() if weight.requires_grad}
    experts = [name for name in learned if ".experts." in name]
    fused = [name for name, weight in trained[0].student.named_parameters() if weight.dim() == 3]
    assert len(experts) == 2 * len(fused) > 0  # A and B of each
    dense = {name.partition(".mlp.")[2].partition(".lora_")[0] for name in learned if ".mlp." in name} - {"experts"}
    if "deepseek" in type(trained[0].student).__name__.lower():
        parts = {"gate_proj", "up_proj", "down_proj"}
        assert dense == {"experts.base_layer"} | parts | {f"shared_experts.{part}" for part in parts}
    assert all(weight.abs().max() > 0 for weight in learned.values())  # B began at zero
    assert trained[1][3] < trained[1][0]


def test_a_resumed_run_equals_an_uninterrupted_one(mixture: Path, trained: Any) -> None:
    student = student_of(mixture, dropout=0.0)
    again = train(mixture, student, num_steps=4, ckpt_path=mixture / "whole/step=2.ckpt")
    assert again[1] == trained[1][2:]
    for name, weight in trained[0].student.named_parameters():
        assert torch.equal(weight, dict(again[0].student.named_parameters())[name]), name


def test_both_exports_are_the_trained_student(mixture: Path, trained: Any) -> None:
    merged: Any = AutoModelForCausalLM.from_pretrained(mixture / "merged")
    base: Any = AutoModelForCausalLM.from_pretrained(mixture / "student")
    before = dict(base.named_parameters())
    for name, weight in merged.named_parameters():
        if ".experts." in name:
            assert (weight - before[name]).abs().amax(dim=(1, 2)).min() > 0, name  # of every expert
    expected = logits_of(trained[0].student)
    assert (expected - logits_of(base)).abs().max() > 0.1
    adapted = PeftModel.from_pretrained(base, mixture / "adapter")
    for model in (merged, adapted):
        torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=1e-5)


def test_the_command_exports_the_same(mixture: Path, trained: Any, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(mixture / "whole/step=4.ckpt"), "--dtype", "auto"]
    for form, file in (("merged", "model.safetensors"), ("adapter", "adapter_model.safetensors")):
        main(["export", *arguments, "--output", str(tmp_path / form), "--form", form])
        assert (tmp_path / form / file).read_bytes() == (mixture / form / file).read_bytes()


def test_dropout_leaves_the_experts_out_and_says_which_share(mixture: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(mixture / "student")
    kinds = ("experts", "shared_experts", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    left = [weight.numel() for name, weight in model.named_parameters() if any(f"{kind}." in name for kind in kinds)]
    share = sum(left) / sum(weight.numel() for weight in model.parameters())
    assert 0.1 < share < 0.9
    message = (
        rf"leaves {len(left)} weights of the student as they are \({share:.1%} .*which have no dropout; set adapter"
    )
    with pytest.warns(UserWarning, match=message):
        add_adapter(model, LoRA(rank=2, dropout=0.1))
    assert not any(".experts." in name for name, weight in model.named_parameters() if weight.requires_grad)


@pytest.mark.parametrize("targets", [["down_proj"], ["q_a_proj", "down_proj"], r".*\.(down|kv_b)_proj"])
def test_dropout_is_refused_for_named_layers_that_have_none(tmp_path: Path, targets: Any) -> None:
    """PEFT takes ``down_proj`` for experts, also that of the dense layer."""
    write_architecture(tmp_path / "student", "deepseek_v3", packing_tokenizer(), seed=1)
    message = r"no dropout, got .*PEFT takes model\.layers\.0\.mlp\.down_proj.*set adapter\.dropout to 0, or name other"
    with pytest.raises(UserError, match=message):
        check_adapter(student_of(tmp_path, dropout=0.1, target_modules=targets))
    check_adapter(student_of(tmp_path, dropout=0.0, target_modules=targets))
    check_adapter(student_of(tmp_path, dropout=0.1, target_modules=["q_a_proj"]))


@every_architecture
def test_every_part_of_an_adapter_learns(tmp_path: Path, name: str, recwarn: pytest.WarningsRecorder) -> None:
    """Otherwise DDP would wait for its gradient, and an export would lack what training had."""
    model: Any = AutoModelForCausalLM.from_pretrained(write_architecture(tmp_path, name, packing_tokenizer(), seed=1))
    linear = {path for path, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    experts = {path.rpartition(".")[0] for path, weight in model.named_parameters() if weight.dim() == 3}
    experts = {path for path in experts if path.endswith(".experts")}
    add_adapter(model, LoRA(rank=2))
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.requires_grad or not weight.any():  # a random model begins with factors of 0, such as Gemma 3n's
            weight.data.normal_(std=0.1)
    freeze_unreached(model)
    learned = {path: weight for path, weight in model.named_parameters() if weight.requires_grad}
    ids = torch.arange(3, 35)[None]
    logits = model.train()(input_ids=ids, use_cache=False).logits
    logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum().backward()
    assert [path for path, weight in learned.items() if weight.grad is None or not weight.grad.any()] == []
    head = next(path for path, layer in model.named_modules() if layer is model.get_output_embeddings())
    left_out = {path.rpartition(".")[2] for path in linear if f"{path}.lora_A.default.weight" not in learned}
    assert all(any(f"{path}." in name for name in learned) for path in experts)
    expected = (kind.get(name, set()) for kind in (READ, ROUTERS, FROZEN))
    assert left_out - {head} == set().union(*expected)
    told = [str(warning.message) for warning in recwarn if "the adapter leaves" in str(warning.message)]
    assert len(told) == (name in READ)
    if told:
        assert "layers that the model reads rather than calls" in told[0]


def test_a_quantized_layer_that_peft_takes_for_experts_is_refused_by_name(tmp_path: Path) -> None:
    path = write_architecture(tmp_path, "deepseek_v3", packing_tokenizer())
    with pytest.raises(UserError, match=r"PEFT does not take for experts, but it does '.*\.mlp\.down_proj' and 5 more"):
        check_adapter(Student(model=path, quantization="4bit", adapter=LoRA(rank=2)))
    check_adapter(Student(model=path, quantization="4bit", adapter=LoRA(rank=2, target_modules=["o_proj"])))


def test_a_layer_that_its_mixer_reads_is_refused_by_name(tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(write_architecture(tmp_path, "jamba", packing_tokenizer()))
    with pytest.raises(UserError, match=r"mamba\.dt_proj' is read by the layer around it rather than called"):
        add_adapter(model, LoRA(rank=2, target_modules=["dt_proj"]))
