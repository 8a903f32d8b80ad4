"""Export of a student that learned by an adapter: merged, or the adapter alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from adapted_students import logits_of, student_of
from peft import PeftModel
from safetensors.torch import load_file
from small_models import packing_tokenizer
from started_helpers import run_helper
from transformers import AutoModelForCausalLM, AutoTokenizer

from xtoken_pl import Student
from xtoken_pl.cli import main
from xtoken_pl.cli.export import export


def test_merged_export_and_base_with_adapter_equal_the_trained_student(workspace: Path, resumed: Any) -> None:
    merged = AutoModelForCausalLM.from_pretrained(workspace / "merged")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    base = AutoModelForCausalLM.from_pretrained(workspace / "student")
    before = logits_of(base)
    adapted = PeftModel.from_pretrained(base, workspace / "adapter")
    expected = logits_of(resumed[0].student)
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_of(adapted), expected, rtol=1e-5, atol=1e-5)
    for form in ("merged", "adapter"):
        assert AutoTokenizer.from_pretrained(workspace / form)("12")["input_ids"] == packing_tokenizer()("12").input_ids


def test_an_adapter_names_its_base(workspace: Path, resumed: Any) -> None:
    config = json.loads((workspace / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(workspace / "student")
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 32, "CAUSAL_LM")


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_command_and_callback_write_the_same_weights(
    workspace: Path, whole: Any, resumed: Any, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(workspace / "whole/step=4.ckpt"), "--output", str(tmp_path / "x")]
    main(["export", *arguments, "--form", form, "--dtype", "auto"])
    assert ("peft.PeftModel" in capsys.readouterr().out) == (form == "adapter")
    names = sorted(path.name for path in (workspace / form).iterdir())
    assert names == sorted(path.name for path in (tmp_path / "x").iterdir())
    weights = "model.safetensors" if form == "merged" else "adapter_model.safetensors"
    assert (tmp_path / "x" / weights).read_bytes() == (workspace / form / weights).read_bytes()


def test_a_distributed_checkpoint_gives_the_same_adapter(
    workspace: Path, whole: Any, resumed: Any, tmp_path: Path
) -> None:
    state: dict[str, Any] = torch.load(workspace / "whole/step=4.ckpt", weights_only=True)
    dcp.save({"state_dict": state.pop("state_dict")}, checkpoint_id=tmp_path / "sharded.ckpt")
    torch.save(state, tmp_path / "sharded.ckpt/meta.pt")
    export(str(tmp_path / "sharded.ckpt"), str(tmp_path / "x"), form="adapter", dtype="auto")
    name = "adapter_model.safetensors"
    assert (tmp_path / "x" / name).read_bytes() == (workspace / "adapter" / name).read_bytes()


def test_an_adapter_is_not_merged_into_other_weights(workspace: Path, whole: Any, tmp_path: Path) -> None:
    path = str(workspace / "whole/step=4.ckpt")
    with pytest.raises(ValueError, match="trained on other weights than those of"):
        export(path, str(tmp_path / "x"), student=Student(model=str(workspace / "other")))


def test_a_bare_checkpoint_is_exported_with_the_given_adapter(
    workspace: Path, whole: Any, resumed: Any, tmp_path: Path
) -> None:
    state = torch.load(workspace / "whole/step=4.ckpt", weights_only=True)
    torch.save({"state_dict": state["state_dict"]}, tmp_path / "bare.ckpt")
    bare = str(tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match=r"holds an adapter without its configuration.*--student\.adapter\.rank"):
        export(bare, str(tmp_path / "x"), student=Student(model=str(workspace / "student")))
    export(bare, str(tmp_path / "x"), student=student_of(workspace), dtype="auto")
    merged = "model.safetensors"
    assert (tmp_path / "x" / merged).read_bytes() == (workspace / "merged" / merged).read_bytes()


@pytest.mark.slow
def test_two_processes_train_save_and_export_the_adapter_of_one(workspace: Path) -> None:
    """Covers sharded, split and whole models, and resuming from a checkpoint of one process."""
    root = workspace / "processes"
    for name in ("one", "ddp", "fsdp2", "distributed", "tensor"):
        run_helper("adapted_processes", name, workspace, timeout=400)
    found = {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/losses.json")}
    one = found["one"]["whole"]
    assert len(one) == 4
    for name, runs in found.items():
        tolerance = 1e-2 if name == "distributed" else 1e-5  # in bfloat16
        for run, steps in runs.items():
            for mine, theirs in zip(one[-len(steps) :], steps, strict=True):
                assert theirs == pytest.approx(mine, rel=tolerance), (name, run)
        assert runs["resumed"] == runs["whole"][2:]
    assert "after one" in found["fsdp2"].keys() & found["tensor"].keys()
    for name in ("ddp", "fsdp2", "tensor"):
        state = torch.load(root / name / "step=4.ckpt", weights_only=True)["state_dict"]
        assert state.keys() == torch.load(root / "one/step=4.ckpt", weights_only=True)["state_dict"].keys()
        for file in ("merged/model.safetensors", "adapter/adapter_model.safetensors"):
            mine, theirs = load_file(root / "one" / file), load_file(root / name / file)
            assert mine.keys() == theirs.keys()
            for weight in mine:
                torch.testing.assert_close(theirs[weight], mine[weight], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_processes_that_share_a_batch_drop_the_same_states(workspace: Path) -> None:
    """Else the gradients of the weights that both of them hold whole would differ, and averaging would hide it."""
    run_helper("adapted_processes", "dropout", workspace, timeout=400)
    found = json.loads((workspace / "copies.json").read_text())
    assert found["draw_alike"]
    assert found["number"] >= 4
    assert found["are_equal"]
    assert found["of_gradients"] < 1e-4
