"""Quantized models lack no weight either, whether their files or only their layers are quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from damaged_models import Weights, damaged, rewrite, without
from small_models import packing_tokenizer, write_model

from xtoken_pl import LoRA
from xtoken_pl.models import load_causal_lm
from xtoken_pl.models.loading import check_weights
from xtoken_pl.specs import Student, Teacher
from xtoken_pl.utilities.errors import UserError

_LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_model(tmp_path_factory.mktemp("plain") / "model", packing_tokenizer(), hidden_size=128))


@pytest.fixture(params=["4bit", "8bit"])
def bits(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def files(model: Path, tmp_path: Path, bits: Any) -> Path:
    """A model whose files are quantized."""
    load_causal_lm(Teacher(model=str(model), quantization=bits), role="model").save_pretrained(tmp_path / "quantized")
    return tmp_path / "quantized"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("layers.1."), "must be complete, but 9 of 21 are missing"),
        (without("lm_head"), "must be complete, but 1 of 21 are missing"),
        (lambda weights: weights | {f"{_LAYER}.weight": torch.zeros(64, 128)}, r"q_proj\.weight is \[64, 128\], not"),
    ],
)
def test_weights_that_are_quantized_while_loading_are_all_there(
    model: Path, tmp_path: Path, bits: Any, change: Any, expected: str
) -> None:
    folder = damaged(model, tmp_path / "damaged", change)
    for source in (
        Teacher(model=folder, quantization=bits),
        Student(model=folder, quantization=bits, adapter=LoRA(rank=2)),
    ):
        with pytest.raises(UserError, match=expected):
            load_causal_lm(source, role="model")


@pytest.mark.parametrize("lost", ["model.norm", "model.layers.1.", f"{_LAYER}.", "lm_head"])
def test_weights_in_quantized_files_are_all_there(files: Path, lost: str) -> None:
    check_weights(Teacher(model=str(files)), role="model")
    assert load_causal_lm(Teacher(model=str(files)), role="model")
    rewrite(files / "model.safetensors", without(lost))
    for source in (Teacher(model=str(files)), Student(model=str(files), adapter=LoRA(rank=2))):
        with pytest.raises(UserError, match=rf"the weights of the model must be complete, .*{lost}"):
            load_causal_lm(source, role="model")


def test_quantized_layers_have_their_scales(files: Path, bits: Any) -> None:
    rewrite(files / "model.safetensors", without(f"{_LAYER}.{'weight.absmax' if bits == '4bit' else 'SCB'}"))
    with pytest.raises(UserError, match=rf"must be complete, .* missing or lack parts: {_LAYER}\.weight"):
        load_causal_lm(Teacher(model=str(files)), role="model")


def test_quantized_files_are_refused_where_their_weights_would_be_trained(files: Path) -> None:
    with pytest.raises(UserError, match=r"a quantized student needs an adapter, .* are quantized \(bitsandbytes\)"):
        load_causal_lm(Student(model=str(files)), role="student")


def test_files_are_not_quantized_otherwise_than_the_run_says(files: Path, bits: Any) -> None:
    assert load_causal_lm(Teacher(model=str(files), quantization=bits), role="model")
    other: Any = "8bit" if bits == "4bit" else "4bit"
    with pytest.raises(UserError, match=f"must be that of its files, got '{other}'"):
        load_causal_lm(Teacher(model=str(files), quantization=other), role="model")


def _to_fp8(weights: Weights) -> Weights:
    """Stores the layers in blocks of 128 x 128 that share a scale."""
    result = dict(weights)
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        blocks = weights[name].unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
        scale = blocks.abs().amax((1, 3)) / 448
        result[name] = (blocks / scale[:, None, :, None]).reshape(weights[name].shape).to(torch.float8_e4m3fn)
        result[f"{name}_scale_inv"] = scale
    return result


def test_fp8_files_lack_neither_weights_nor_scales(model: Path, tmp_path: Path) -> None:
    """On a CPU, transformers dequantizes the layers, and takes a missing scale for 1."""
    method = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    folder = Path(damaged(model, tmp_path / "fp8", _to_fp8, quantization_config=method))
    ours, plain = (load_causal_lm(Teacher(model=str(path)), role="model").state_dict() for path in (folder, model))
    for name, tensor in plain.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0.1, atol=1e-3)  # 3 bits of mantissa
    for part in ("q_proj.weight_scale_inv", "lm_head"):
        cut = damaged(folder, tmp_path / part, without(part))
        for source in (Teacher(model=cut), Student(model=cut)):
            with pytest.raises(UserError, match=rf"must be complete, .*{part.partition('.')[0]}"):
                load_causal_lm(source, role="model")
