"""A student that learns by an adapter: what is trained and saved, how a run resumes, what it needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from adapted_students import checkpoints, logits_of, student_of, train
from lightning.pytorch.trainer.states import TrainerFn
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from xtoken_pl import LoRA, MultiTeacherDistillModule, Student
from xtoken_pl.callbacks import HFExport
from xtoken_pl.cli import main
from xtoken_pl.models import hidden_states
from xtoken_pl.models.adapters import add_adapter
from xtoken_pl.models.loading import load_causal_lm
from xtoken_pl.plan.advice import single_changes
from xtoken_pl.plan.moments import MemoryPlan
from xtoken_pl.plan.replay import replay
from xtoken_pl.plan.report import table
from xtoken_pl.plan.run import Run
from xtoken_pl.plan.skeleton import Skeleton


def test_a_resumed_run_equals_an_uninterrupted_one(whole: Any, resumed: Any) -> None:
    assert len(whole[1]) == 4
    assert resumed[1] == whole[1][2:]
    for name, weight in whole[0].student.named_parameters():
        assert torch.equal(weight, dict(resumed[0].student.named_parameters())[name]), name


def test_only_the_adapter_is_trained(workspace: Path, whole: Any) -> None:
    base = AutoModelForCausalLM.from_pretrained(workspace / "student").state_dict()
    trained = dict(whole[0].student.named_parameters())
    for name, weight in trained.items():
        if not weight.requires_grad:
            assert torch.equal(weight, base[name.replace(".base_layer", "")]), name
    learned = [name for name, weight in trained.items() if weight.requires_grad]
    assert len(learned) == 2 * 2 * 7  # A and B of seven linear layers in each of two layers
    assert all(trained[name].abs().max() > 0 for name in learned)  # B began at zero


def test_a_checkpoint_holds_the_adapter_and_the_learned_projection_only(workspace: Path, whole: Any) -> None:
    path = workspace / "whole/step=4.ckpt"
    state = torch.load(path, weights_only=True)
    learned = [name for name, weight in whole[0].named_parameters() if weight.requires_grad]
    assert set(learned) <= state["state_dict"].keys()
    assert all(".lora_" in name or name.startswith("losses.split.learned.") for name in state["state_dict"])
    assert len(state["optimizer_states"][0]["state"]) == len(learned)
    adapter = sum(tensor.numel() for name, tensor in state["state_dict"].items() if ".lora_" in name)
    assert adapter < 0.3 * sum(weight.numel() for weight in whole[0].student.parameters() if not weight.requires_grad)


# Which runs resume ---------------------------------------------------------------------------------------------------

OTHERS: dict[str, tuple[Callable[[Path], Student], str]] = {
    "rank": (lambda folder: student_of(folder, rank=5), "another rank than in the checkpoint: 4 there, 5 here"),
    "alpha": (lambda folder: student_of(folder, alpha=8), "another alpha than in the checkpoint: 32 there, 8 here"),
    "targets": (
        lambda folder: student_of(folder, target_modules=["v_proj", "q_proj"]),
        r"another target_modules .*: all-linear there, \['q_proj', 'v_proj'\] here",
    ),
    "base": (lambda folder: student_of(folder, "other"), "another base than in the checkpoint: sha256"),
    "quantization": (
        lambda folder: Student(model=str(folder / "student"), adapter=LoRA(rank=4), quantization="4bit"),
        "another quantization than in the checkpoint: None there, 4bit here",
    ),
    "all weights": (
        lambda folder: Student(model=str(folder / "student")),
        "holds an adapter of a student, and this run trains all weights",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_run_with_another_adapter_is_refused_by_name(workspace: Path, whole: Any, other: str) -> None:
    make, message = OTHERS[other]
    with pytest.raises(ValueError, match=f"{message}.*start a new run from its exported student"):
        train(workspace, make(workspace), num_steps=4, ckpt_path=workspace / "whole/step=2.ckpt")


def test_an_adapter_is_not_evaluated_on_other_weights(workspace: Path, whole: Any) -> None:
    checkpoint = torch.load(workspace / "whole/step=2.ckpt", weights_only=True)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.state.fn = TrainerFn.VALIDATING
    for student, message in (
        (student_of(workspace, rank=4, alpha=64), "another alpha"),
        (student_of(workspace, "other", rank=4), "another base"),
    ):
        module = MultiTeacherDistillModule(student, kd_weight=0)
        module.trainer = trainer
        module.setup("validate")
        with pytest.raises(ValueError, match=f"the student's adapter has {message} than in the checkpoint"):
            module.on_load_checkpoint(dict(checkpoint))


def test_a_checkpoint_of_all_weights_is_refused_by_a_run_with_an_adapter(workspace: Path, tmp_path: Path) -> None:
    student = Student(model=str(workspace / "student"))
    train(workspace, student, checkpoints(tmp_path), num_steps=1)
    with pytest.raises(ValueError, match="holds all weights of a student, and this run trains an adapter"):
        train(workspace, student_of(workspace), num_steps=2, ckpt_path=tmp_path / "step=1.ckpt")


def test_the_command_line_refuses_another_student_before_texts_are_read(
    workspace: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sharded run the weights are loaded before the module can check them."""

    def no_text_is_read(*_: object, **__: object) -> None:
        raise AssertionError("texts were read")

    monkeypatch.setattr("xtoken_pl.data.part_windows.load_source", no_text_is_read)
    arguments = ["--model.student.model", str(workspace / "student"), "--model.kd_weight", "0"]
    arguments += ["--data.train.path", str(workspace / "texts.jsonl"), "--trainer.logger", "false"]
    arguments += ["--ckpt_path", str(workspace / "whole/step=2.ckpt")]
    with pytest.raises(ValueError, match="holds an adapter of a student, and this run trains all weights"):
        main(["fit", *arguments])
    with pytest.raises(ValueError, match="another rank than in the checkpoint: 4 there, 8 here"):
        main(["fit", *arguments, "--model.student.adapter.rank", "8"])


def test_a_run_resumes_with_another_dropout_and_a_moved_base(
    workspace: Path, whole: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(workspace / "student", workspace / "moved", dirs_exist_ok=True)
    student = student_of(workspace, "moved", dropout=0.2)
    with caplog.at_level("INFO"):
        train(workspace, student, num_steps=3, ckpt_path=workspace / "whole/step=2.ckpt")
    assert "resuming with another dropout of the adapter: 0.2, 0.1 in the checkpoint" in caplog.text


def test_a_checkpoint_without_a_part_of_the_adapter_is_refused(workspace: Path, whole: Any, tmp_path: Path) -> None:
    """Lightning does not check for missing weights, since the frozen ones are always missing."""
    state = torch.load(workspace / "whole/step=2.ckpt", weights_only=True)
    lost = next(name for name in state["state_dict"] if ".lora_B." in name)
    del state["state_dict"][lost]
    torch.save(state, tmp_path / "cut.ckpt")
    with pytest.raises(ValueError, match=f"1 are here only, '{lost}' among them"):
        train(workspace, student_of(workspace), num_steps=4, ckpt_path=tmp_path / "cut.ckpt")


# Other ways to train ------------------------------------------------------------------------------------------------


def test_activation_checkpointing_has_the_same_losses(workspace: Path) -> None:
    plain, saving = student_of(workspace, dropout=0.0), student_of(workspace, dropout=0.0)
    saving.activation_checkpointing = True
    assert train(workspace, saving, num_steps=2)[1] == train(workspace, plain, num_steps=2)[1]


def test_an_adapter_on_half_precision_weights_is_trained_in_single(workspace: Path) -> None:
    student = student_of(workspace)
    student.dtype = "bfloat16"
    module, _ = train(workspace, student, num_steps=1)
    dtypes = {weight.requires_grad: weight.dtype for weight in module.student.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


@pytest.mark.parametrize(("bits", "tolerance"), [("4bit", 1e-5), pytest.param("8bit", 5e-3, marks=pytest.mark.slow)])
def test_a_quantized_student_is_resumed_and_exported_as_it_was_trained(
    workspace: Path, tmp_path: Path, bits: Any, tolerance: float
) -> None:
    """In 8 bits a layer also rounds its inputs, which the merged model does not."""
    student = Student(model=str(workspace / "student"), adapter=LoRA(rank=4), quantization=bits)
    _, losses = train(workspace, student, checkpoints(tmp_path), num_steps=4)
    exports = [HFExport(str(tmp_path / form), form=form) for form in ("merged", "adapter")]
    module, later = train(workspace, student, *exports, num_steps=4, ckpt_path=tmp_path / "step=2.ckpt")
    assert later == losses[2:]
    assert all(".lora_" in n or "losses." in n for n in torch.load(tmp_path / "step=2.ckpt")["state_dict"])
    expected = logits_of(module.student)
    scale = expected.abs().max()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert (logits_of(merged) - expected).abs().max() < tolerance * scale
    adapted = PeftModel.from_pretrained(load_causal_lm(student, role="student"), tmp_path / "adapter")
    assert (logits_of(adapted) - expected).abs().max() < 1e-5 * scale
    unquantized = AutoModelForCausalLM.from_pretrained(workspace / "student")
    difference = (logits_of(PeftModel.from_pretrained(unquantized, tmp_path / "adapter")) - expected).abs().max()
    assert difference > (1e-3 if bits == "4bit" else 1e-4) * scale  # the quantization matters


# What it needs ------------------------------------------------------------------------------------------------------


def plan_of(student: Student, **options: Any) -> MemoryPlan:
    return MemoryPlan.from_run(Run(student, {}, batch_size=4, sequence_length=64, logits_memory=10_000_000, **options))


def test_plan_counts_gradients_and_optimizer_of_the_adapter_alone(workspace: Path) -> None:
    source = student_of(workspace)
    model = load_causal_lm(source, role="student")
    assert source.adapter is not None
    add_adapter(model, source.adapter)
    weights = sum(weight.nbytes for weight in model.parameters())
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    for spread, shards in (("alone", 1), ("sharded", 2)):
        options = {"spread": spread, "num_gpus": shards, "data_parallel_size": shards}
        plan, full = plan_of(source, **options), plan_of(replace(source, adapter=None), **options)
        terms = plan.peak.terms
        assert terms["student: weights"] == pytest.approx(weights / shards, rel=0.01)  # and buffers
        assert terms["student: gradients"] == trained // shards
        assert terms["student: optimizer"] == 2 * trained // shards
        assert not any("student: gradient of the head" in moment.terms for moment in plan.moments)
        assert plan.peak.total < full.peak.total


def test_planned_activations_are_those_that_a_pass_with_an_adapter_keeps(workspace: Path) -> None:
    """Frozen layers save no inputs for the backward pass; A saves its inputs and outputs."""
    source = student_of(workspace, dropout=0.0)
    model: Any = load_causal_lm(source, role="student").train()
    assert source.adapter is not None
    add_adapter(model, source.adapter)
    own = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    input_ids = torch.zeros(8, 128, dtype=torch.long)
    mask = torch.ones_like(input_ids)
    mask[0, 64:] = 0
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        states = hidden_states(model, input_ids, mask)
    assert states.requires_grad
    planned = replay(Skeleton.from_source(source, role="student"), 8, 128, autocast=None, trains=True)
    assert planned.in_step.total == pytest.approx(sum(kept.values()), rel=0.1)


def test_plan_offers_to_quantize_what_is_not_trained(workspace: Path) -> None:
    source = student_of(workspace)
    plan = plan_of(source)
    changes = {change.text: change.saves for change in single_changes(plan)}
    assert changes["model.student.quantization: 4bit"] > changes["model.student.quantization: 8bit"] > 0
    quantized = plan_of(replace(source, quantization="4bit"))
    assert not any("Strategy" in change.text for change in single_changes(quantized))
    assert "4bit" in table(quantized, 10**9, [], None)
    assert "of them are trained (adapter)" in table(plan, 10**9, [], None)
