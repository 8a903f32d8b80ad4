"""Offloaded, sharded, compiled and quantized models, and the layout of their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from architectures import write_architecture
from small_models import packing_tokenizer, splitting_tokenizer, write_model
from torch import nn
from transformers import PreTrainedModel

from xtoken_pl import OptimizerRecipe, Student, Teacher
from xtoken_pl.checkpoints.run_state import number_by_module, share_tied_weights
from xtoken_pl.models import load_model
from xtoken_pl.models.loading import load_causal_lm
from xtoken_pl.models.sharding import compile_layers, layers
from xtoken_pl.teachers.local import FrozenModel, place_teachers
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("teacher"), splitting_tokenizer(), tied=True)


def frozen(folder: str, *, cpu_offload: bool) -> FrozenModel:
    vocabulary = CanonicalVocabulary.from_tokenizer(splitting_tokenizer())
    teachers = {"t": Teacher(model=folder, cpu_offload=cpu_offload)}
    return place_teachers(teachers, {"t": vocabulary}, None, "cpu")["t"]


def test_an_offloaded_model_leaves_only_its_head_on_the_device(folder: str) -> None:
    model = frozen(folder, cpu_offload=True)
    original = {name: weight.data_ptr() for name, weight in model.model.named_parameters()}
    ids = torch.arange(6)[None]
    hidden, head = model.run(ids, torch.ones_like(ids))
    assert {name: weight.data_ptr() for name, weight in model.model.named_parameters()} == original
    assert (
        head.layer.weight.data_ptr() != model.head.layer.weight.data_ptr()
    )  # tied to the embedding, which was moved back
    expected, plain_head = frozen(folder, cpu_offload=False).run(ids, torch.ones_like(ids))
    torch.testing.assert_close(hidden, expected, rtol=0, atol=0)
    torch.testing.assert_close(head.log_probs(hidden[0]), plain_head.log_probs(expected[0]), rtol=0, atol=0)


def test_an_offloaded_model_is_moved_back_after_an_error(folder: str) -> None:
    model = frozen(folder, cpu_offload=True)
    original = [weight.data_ptr() for weight in model.model.parameters()]
    ids = torch.full((1, 3), 10**6)  # no such token
    with pytest.raises(IndexError):
        model.run(ids, torch.ones_like(ids))
    assert [weight.data_ptr() for weight in model.model.parameters()] == original


def test_layers_are_the_repeated_blocks(folder: str) -> None:
    found = layers(frozen(folder, cpu_offload=False).model)
    assert [type(layer).__name__ for layer in found] == ["LlamaDecoderLayer"] * 2


@pytest.mark.parametrize(("name", "layer"), [("mamba", "MambaBlock"), ("falcon_mamba", "FalconMambaBlock")])
def test_parts_of_layers_that_a_model_names_as_well_are_no_layers(tmp_path: Path, name: str, layer: str) -> None:
    source = Student(model=write_architecture(tmp_path, name, packing_tokenizer()))
    model = load_causal_lm(source, role="student")
    assert {layer, layer.replace("Block", "Mixer")} <= set(model._no_split_modules or ())
    assert [type(found).__name__ for found in layers(model)] == [layer] * 2


def test_a_model_without_layers_is_refused_by_name() -> None:
    class Unknown(nn.Module):
        _no_split_modules = None

    with pytest.raises(ValueError, match="Unknown does not name its layers"):
        layers(cast(PreTrainedModel, Unknown()))


def test_every_layer_is_compiled_by_itself(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    compile_layers(frozen(folder, cpu_offload=False).model)
    assert compiled == ["LlamaDecoderLayer"] * 2


def test_quantization_without_its_library_says_what_to_install(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtoken_pl.models.loading.find_spec", lambda name: None)
    vocabulary = CanonicalVocabulary.from_tokenizer(splitting_tokenizer())
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        load_model(Teacher(model=folder, quantization="8bit"), vocabulary, role="teacher 'x'")


def test_quantized_and_offloaded_exclude_each_other(folder: str) -> None:
    with pytest.raises(ValueError, match="leave one out"):
        Teacher(model=folder, quantization="4bit", cpu_offload=True)


def test_tied_weights_are_one_tensor_in_a_checkpoint(tmp_path: Path) -> None:
    source = Student(model=write_model(tmp_path, packing_tokenizer(), tied=True))
    student = load_model(source, CanonicalVocabulary.from_tokenizer(packing_tokenizer()), role="student").model
    gathered = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    share_tied_weights(gathered, student)
    assert gathered["lm_head.weight"] is gathered["model.embed_tokens.weight"]
    assert len({id(tensor) for tensor in gathered.values()}) == len(gathered) - 1


def test_optimizer_states_are_numbered_by_the_module_and_still_load() -> None:
    # The recipe puts matrices first; the module begins with a bias.
    module = nn.ModuleList([nn.LayerNorm(3), nn.Linear(3, 3), nn.LayerNorm(3)])
    optimizer, _ = OptimizerRecipe().build(module.parameters(), 10)
    for number, parameter in enumerate(module.parameters()):
        parameter.grad = torch.full_like(parameter, 1.0 + number)
    optimizer.step()
    state: Any = optimizer.state_dict()
    by_groups = {**state["state"]}
    number_by_module(state, optimizer, module)
    assert by_groups.keys() == state["state"].keys()
    for number, parameter in enumerate(module.parameters()):
        assert state["state"][number]["exp_avg"].shape == parameter.shape
        expected = torch.full_like(parameter, 0.1 * (1 + number))
        torch.testing.assert_close(state["state"][number]["exp_avg"], expected)
    again, _ = OptimizerRecipe().build(module.parameters(), 10)
    again.load_state_dict(state)
    for parameter in module.parameters():
        torch.testing.assert_close(again.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])
    number_by_module(state, optimizer, module)  # numbered already: as it is
    assert state["param_groups"][0]["params"] == [2]
