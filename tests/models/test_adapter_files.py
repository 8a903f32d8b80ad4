"""PEFT adapters as models: whole on a whole base model, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_students import logits_of, student_of
from damaged_models import damaged, rewrite, without
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from xtoken_pl.checkpoints.export import write_adapted
from xtoken_pl.models import load_causal_lm
from xtoken_pl.models.adapters import add_adapter
from xtoken_pl.models.loading import check_weights
from xtoken_pl.specs import Student, Teacher
from xtoken_pl.tokenization import load_tokenizer
from xtoken_pl.utilities.errors import UserError


@pytest.fixture
def adapter(workspace: Path, tmp_path: Path) -> Path:
    """An adapter whose both matrices are random, on the model ``student``."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(workspace / "student")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_teacher_with_an_adapter_has_the_logits_that_peft_gives_it(workspace: Path, adapter: Path) -> None:
    teacher = Teacher(model=str(adapter))
    check_weights(teacher, role="teacher 'x'")
    base = AutoModelForCausalLM.from_pretrained(workspace / "student")
    without_adapter = logits_of(base)
    expected = logits_of(PeftModel.from_pretrained(base, adapter))
    ours = logits_of(load_causal_lm(teacher, role="teacher 'x'"))
    assert (expected - without_adapter).abs().max() > 0.1
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_the_base_model_of_an_adapter_has_the_revision_that_the_adapter_names(
    workspace: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = adapter.parent / "cache"
    repository = cache / "models--someone--a-base"
    (repository / "refs").mkdir(parents=True)
    for number, (revision, change_weights) in enumerate({"main": without("layers.0.mlp"), "v1": dict}.items()):
        commit = str(number) * 40
        damaged(workspace / "student", repository / "snapshots" / commit, change_weights)
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    change(adapter / "adapter_config.json", base_model_name_or_path="someone/a-base", revision="v1")
    teacher = Teacher(model=str(adapter), revision="of-the-adapter")
    check_weights(teacher, role="teacher 'x'")
    assert load_causal_lm(teacher, role="teacher 'x'")
    change(adapter / "adapter_config.json", revision=None)
    with pytest.raises(UserError, match=r"are missing in 'someone/a-base': model\.layers\.0\.mlp"):
        load_causal_lm(Teacher(model=str(adapter)), role="teacher 'x'")


@pytest.mark.parametrize("base", [{}, {"base_model_name_or_path": None}])
def test_an_adapter_that_names_no_base_model_is_refused_when_it_is_loaded(adapter: Path, base: dict[str, None]) -> None:
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["base_model_name_or_path"]
    file.write_text(json.dumps(config | base))
    check_weights(Teacher(model=str(adapter)), role="teacher 'x'")
    with pytest.raises(UserError, match=r"teacher 'x'.*could not be loaded"):
        load_causal_lm(Teacher(model=str(adapter)), role="teacher 'x'")


def test_an_adapter_that_lacks_weights_is_refused(adapter: Path) -> None:
    rewrite(adapter / "adapter_model.safetensors", without("layers.1."))
    expected = r"teacher 'x' must be complete, but 2 of .*/adapter': model\.layers\.1\.self_attn\.q_proj\.lora_A"
    for check in (check_weights, load_causal_lm):
        with pytest.raises(UserError, match=expected):
            check(Teacher(model=str(adapter)), role="teacher 'x'")


def test_an_adapter_of_another_rank_than_its_configuration_is_refused(adapter: Path) -> None:
    change(adapter / "adapter_config.json", r=4)
    with pytest.raises(UserError, match=r"teacher 'x' must have the shapes .* is \[2, 64\], not \[4, 64\]"):
        load_causal_lm(Teacher(model=str(adapter)), role="teacher 'x'")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_an_adapter_on_a_quantized_base_lacks_nothing_either(workspace: Path, adapter: Path, bits: Any) -> None:
    teacher = Teacher(model=str(adapter), quantization=bits)
    assert load_causal_lm(teacher, role="teacher 'x'")
    base = load_causal_lm(Teacher(model=str(workspace / "student"), quantization=bits), role="teacher 'x'")
    base.save_pretrained(adapter.parent / "quantized")
    change(adapter / "adapter_config.json", base_model_name_or_path=str(adapter.parent / "quantized"))
    assert load_causal_lm(Teacher(model=str(adapter)), role="teacher 'x'")
    rewrite(adapter.parent / "quantized/model.safetensors", without("model.norm"))
    with pytest.raises(UserError, match=r"1 of \d+ are missing in '.*/quantized': model\.norm\.weight\."):
        load_causal_lm(Teacher(model=str(adapter)), role="teacher 'x'")


def test_a_base_model_that_lacks_weights_is_refused_below_its_adapter(workspace: Path, adapter: Path) -> None:
    base = damaged(workspace / "student", adapter.parent / "base", without("layers.0.mlp"))
    change(adapter / "adapter_config.json", base_model_name_or_path=base)
    for check in (check_weights, load_causal_lm):
        with pytest.raises(UserError, match=r"teacher 'x' must be complete, but 3 of 21 are missing in '.*/base'"):
            check(Teacher(model=str(adapter)), role="teacher 'x'")


def test_a_student_is_no_adapter_whose_weights_would_be_frozen(adapter: Path) -> None:
    for source in (Student(model=str(adapter)), student_of(adapter.parent, "adapter")):
        with pytest.raises(UserError, match=r"holds a PEFT adapter \(adapter_config\.json\), .*merge it into its base"):
            load_causal_lm(source, role="student")


def test_a_directory_with_a_model_and_an_adapter_is_refused(workspace: Path, adapter: Path) -> None:
    """A merged model would get its adapter a second time."""
    shutil.copytree(workspace / "student", adapter, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"teacher 'x' must hold a model or a PEFT adapter, but .* holds both"):
        load_causal_lm(Teacher(model=str(adapter)), role="teacher 'x'")


def test_a_missing_peft_is_named(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtoken_pl.models.frozen_adapters.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"the teacher 'x' needs PEFT, which is not installed; install it \(pip install "
    ):
        load_causal_lm(Teacher(model=str(adapter)), role="teacher 'x'")


@pytest.mark.parametrize("form", ["merged", "adapter"])
@pytest.mark.parametrize(
    ("lost", "added", "expected"),
    [
        ("lora_A", "", r"those of its 28 matrices, but 14 are missing: model\.layers\.0.*lora_A"),
        ("nothing", "model.layers.7.lora_A.default.weight", r"but 1 belong to no layer: model\.layers\.7\.lora_A"),
    ],
)
def test_an_adapter_is_exported_with_all_its_weights_or_not_at_all(
    workspace: Path, tmp_path: Path, form: Any, lost: str, added: str, expected: str
) -> None:
    source = student_of(workspace)
    names = [name for name, _ in _adapted(source).named_parameters() if ".lora_" in name]
    weights = dict.fromkeys([*names, *([added] if added else [])], torch.zeros(4, 64))
    tokenizer = load_tokenizer(source.model)
    with pytest.raises(UserError, match=expected):
        write_adapted(tmp_path / "export", source, without(lost)(weights), tokenizer, form=form)
    assert not (tmp_path / "export").exists()


def _adapted(source: Student) -> Any:
    model = load_causal_lm(source, role="student")
    assert source.adapter is not None
    add_adapter(model, source.adapter)
    return model
