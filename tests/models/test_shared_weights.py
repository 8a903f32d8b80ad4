"""Teachers of one model share its weights, and each has the distributions of its own adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small_models import splitting_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from xtoken_pl.checkpoints.fingerprints import model_fingerprint
from xtoken_pl.models import hidden_states
from xtoken_pl.models.loading import check_weights
from xtoken_pl.specs import Server, Teacher
from xtoken_pl.teachers.local import FrozenModel, place_teachers
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.utilities.errors import UserError


@pytest.fixture
def adapters(workspace: Path, tmp_path: Path) -> dict[str, Path]:
    """Two adapters on the model ``split``, of different layers and ranks."""
    for seed, (name, layer) in enumerate({"first": "q_proj", "second": "down_proj"}.items()):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(workspace / "split")
        config = LoraConfig(r=2 + seed, target_modules=[layer], init_lora_weights=False)
        get_peft_model(base, config).save_pretrained(tmp_path / name)
    return {name: tmp_path / name for name in ("first", "second")}


def place(workspace: Path, teachers: dict[str, Teacher]) -> dict[str, FrozenModel]:
    vocabulary = CanonicalVocabulary.from_tokenizer(load_tokenizer(str(workspace / "split")))
    return place_teachers(teachers, dict.fromkeys(teachers, vocabulary), None, "cpu")


def states_of(model: FrozenModel) -> Tensor:
    ids = torch.arange(3, 15)[None]
    return model.run(ids, torch.ones_like(ids))[0]


def expected_states(workspace: Path, adapter: Path | None) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(workspace / "split").eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).get_base_model()
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        return hidden_states(model, ids, torch.ones_like(ids))


@pytest.mark.parametrize("cpu_offload", [False, True])
def test_teachers_that_share_a_model_have_the_states_of_their_own_adapters(
    workspace: Path, adapters: dict[str, Path], cpu_offload: bool
) -> None:
    base = Teacher(model=str(workspace / "split"), cpu_offload=cpu_offload)
    teachers = {name: replace(base, adapter=str(path)) for name, path in adapters.items()}
    placed = place(workspace, {"plain": base, **teachers})
    expected = {name: expected_states(workspace, adapters.get(name)) for name in placed}
    assert (expected["first"] - expected["second"]).abs().max() > 0.01
    for name in ["first", "plain", "second", "first"]:  # in turn, as steps do
        torch.testing.assert_close(states_of(placed[name]), expected[name], rtol=1e-5, atol=1e-5)


def test_the_weights_of_a_shared_model_are_there_once_and_frozen(workspace: Path, adapters: dict[str, Path]) -> None:
    base = Teacher(model=str(workspace / "split"))
    placed = place(workspace, {"plain": base, "first": replace(base, adapter=str(adapters["first"]))})
    states_of(placed["first"])
    assert placed["plain"].model is placed["first"].model
    assert not any(weight.requires_grad for weight in placed["first"].model.parameters())
    other = place(workspace, {"plain": base, "bfloat16": replace(base, dtype="bfloat16")})
    assert other["plain"].model is not other["bfloat16"].model


def test_an_adapter_that_replaces_the_head_has_a_model_of_its_own(
    workspace: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(workspace / "split"),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False),
    )
    head = model.get_base_model().get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(2.0)
    model.save_pretrained(tmp_path / "whole")
    base = Teacher(model=str(workspace / "split"))
    paths = {**adapters, "whole": tmp_path / "whole"}
    placed = place(workspace, {name: replace(base, adapter=str(path)) for name, path in paths.items()})
    assert placed["first"].model is placed["second"].model
    assert placed["whole"].model is not placed["first"].model
    for name in ("whole", "first", "whole"):
        torch.testing.assert_close(states_of(placed[name]), expected_states(workspace, paths[name]))
    states_of(placed["second"])
    torch.testing.assert_close(
        placed["whole"].head.parameters()[0], head.weight[: placed["whole"].head.vocabulary_size]
    )


def with_embedding(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.model.embed_tokens.weight"] = torch.ones(len(splitting_tokenizer()), 32)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("options", "rewrite"),
    [
        ({"bias": "lora_only"}, None),
        ({"bias": "all"}, None),
        ({"init_lora_weights": "pissa"}, None),
        ({"init_lora_weights": "olora"}, None),
        ({}, with_embedding),
    ],
    ids=["lora_only", "all", "pissa", "olora", "embedding"],
)
def test_an_adapter_that_may_change_the_model_leaves_the_plain_teacher_as_it_is(
    workspace: Path, tmp_path: Path, options: dict[str, Any], rewrite: Callable[[Path], None] | None
) -> None:
    torch.manual_seed(5)
    config = AutoConfig.from_pretrained(workspace / "split", attention_bias=True)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "biased")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **options))
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.add_(0.1 * weight.requires_grad)
    adapted.save_pretrained(tmp_path / "adapter")
    if rewrite is not None:
        rewrite(tmp_path / "adapter")
    plain = Teacher(model=str(tmp_path / "biased"))
    expected = states_of(place(workspace, {"plain": plain})["plain"])
    placed = place(workspace, {"adapted": replace(plain, adapter=str(tmp_path / "adapter")), "plain": plain})
    assert (states_of(placed["adapted"]) - expected).abs().max() > 1e-3
    torch.testing.assert_close(states_of(placed["plain"]), expected, rtol=0, atol=0)


def test_a_cache_knows_the_adapter_of_its_teacher(workspace: Path, adapters: dict[str, Path]) -> None:
    base = Teacher(model=str(workspace / "split"))
    sources = [base, *(replace(base, adapter=str(path)) for path in adapters.values())]
    assert len({model_fingerprint(source) for source in sources}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: {"adapter": str(folder / "nothing")}, "with an adapter_config.json"),
        (
            lambda folder: {"model": str(folder / "first"), "adapter": str(folder / "second")},
            r"adapter of the teacher 'x' must lie on a model, but .*first' is a PEFT adapter itself",
        ),
    ],
    ids=["missing", "on_an_adapter"],
)
def test_an_adapter_that_cannot_be_used_is_refused(
    workspace: Path, adapters: dict[str, Path], change: object, message: str
) -> None:
    teacher = replace(Teacher(model=str(workspace / "split")), **change(adapters["first"].parent))  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        check_weights(teacher, role="teacher 'x'")
    with pytest.raises(UserError, match=message):
        place(workspace, {"x": teacher})


def test_the_adapter_of_a_served_teacher_is_refused(workspace: Path) -> None:
    with pytest.raises(UserError, match="adapter is about weights in this process"):
        Teacher(model=str(workspace / "split"), adapter="a", server=Server(url="http://localhost:1", top_k=4))
