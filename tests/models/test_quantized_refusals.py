"""Checkpoints whose format cannot be loaded, or not as a run wants it, are refused by name before they are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from quantized_checkpoints import FORMATS, logits
from small_models import packing_tokenizer, write_model
from transformers import AutoConfig, AutoModelForCausalLM

from xtoken_pl import LoRA
from xtoken_pl.checkpoints.export import write_student
from xtoken_pl.models import load_causal_lm
from xtoken_pl.models.adapters import add_adapter, merge_adapter
from xtoken_pl.models.loading import check_weights
from xtoken_pl.models.placement import place_student
from xtoken_pl.models.quantized_files import is_quantized, quantized_files
from xtoken_pl.specs import Student, Teacher, load_vocabulary
from xtoken_pl.teachers.local import place_teachers
from xtoken_pl.utilities.errors import UserError

_UNKNOWN = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
_NVFP4 = {"quant_method": "nvfp4"}
_A_MESH: Any = SimpleNamespace(ndim=1)  # nothing is sharded over it


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_model(tmp_path_factory.mktemp("plain") / "model", packing_tokenizer(), hidden_size=64))


def declared(plain: Path, folder: Path, settings: dict[str, Any]) -> str:
    """A model whose config.json says that it is quantized; its weights are not reached."""
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    (folder / "model.safetensors").unlink()
    return str(folder)


@pytest.fixture(scope="module")
def files(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model in 4 bits by bitsandbytes."""
    folder = tmp_path_factory.mktemp("bits") / "model"
    load_causal_lm(Teacher(model=str(plain), quantization="4bit"), role="model").save_pretrained(folder)
    packing_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("settings", "reason"), [(_UNKNOWN, "Unknown quantization type"), (_NVFP4, "not supported")])
def test_a_format_that_transformers_cannot_load_is_refused_by_name(
    plain: Path, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    source = Teacher(model=declared(plain, tmp_path / "x", settings))
    for check in (check_weights, load_causal_lm):
        with pytest.raises(
            UserError, match=rf"the files of the teacher 'x' .* quantized by {settings['quant_method']}, .*{reason}"
        ):
            cast(Any, check)(source, role="teacher 'x'")


@pytest.mark.parametrize(
    ("form", "places", "package"),
    [
        ("awq", ["quantizers.quantizer_awq.is_gptqmodel_available"], "gptqmodel"),
        ("gptq", ["quantizers.quantizer_gptq.is_optimum_available"], "optimum"),
        (
            "compressed-tensors, fp8",
            ["utils.quantization_config.is_compressed_tensors_available"],
            "pip install compressed-tensors",
        ),
        ("fp8", ["quantizers.quantizer_finegrained_fp8.is_accelerate_available"], "pip install accelerate"),
    ],
)
def test_a_missing_package_is_named(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, places: list[str], package: str
) -> None:
    for place in places:
        monkeypatch.setattr(f"transformers.{place}", lambda: False)
    folder = declared(plain, tmp_path / "x", FORMATS[form][1].settings)
    with pytest.raises(UserError, match=rf"(?s)run the teacher on a server .*Reason: .*{package}"):
        check_weights(Teacher(model=folder), role="teacher 'x'")
    with pytest.raises(UserError, match=rf"(?s)the files of the student .*not quantized\. Reason: .*{package}"):
        check_weights(Student(model=folder), role="student")


@pytest.mark.parametrize("form", ["fp8", "mxfp4", "awq"])
def test_another_quantization_than_that_of_the_files_is_refused(plain: Path, tmp_path: Path, form: str) -> None:
    settings = FORMATS[form][1].settings
    folder = declared(plain, tmp_path / "x", settings)
    expected = f"must be that of its files, got '4bit', and .* quantized otherwise \\({settings['quant_method']}\\)"
    for source in (
        Teacher(model=folder, quantization="4bit"),
        Student(model=folder, quantization="4bit", adapter=LoRA(rank=2)),
    ):
        with pytest.raises(UserError, match=expected):
            check_weights(source, role="model")


def test_layers_that_pass_no_gradient_are_for_teachers_only(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.quantizers.quantizer_awq.is_gptqmodel_available", lambda: True)
    folder = declared(plain, tmp_path / "x", FORMATS["awq"][1].settings)
    check_weights(Teacher(model=folder), role="teacher")
    with pytest.raises(UserError, match=r"a quantized student needs an adapter, .* are quantized \(awq\)"):
        check_weights(Student(model=folder), role="student")
    with pytest.raises(UserError, match=r"must lie on weights that pass a gradient, .* quantized by awq"):
        check_weights(Student(model=folder, adapter=LoRA(rank=2)), role="student")


def test_weights_that_stay_quantized_are_not_offloaded(files: str) -> None:
    with pytest.raises(UserError, match=r"cpu_offload of the teacher must be off, .* quantized \(bitsandbytes\)"):
        check_weights(Teacher(model=files, cpu_offload=True), role="teacher")


def test_a_teacher_in_quantized_files_is_whole_in_every_process(files: str, caplog: pytest.LogCaptureFixture) -> None:
    source = Teacher(model=files)
    with caplog.at_level("INFO"):
        placed = place_teachers({"x": source}, {"x": load_vocabulary(source)}, _A_MESH, "cpu")["x"]
    assert not placed.is_sharded
    assert "teacher 'x': every process holds the whole model, since its weights are quantized" in caplog.messages


def test_a_student_in_quantized_files_is_not_sharded(files: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    source = Student(model=files, adapter=LoRA(rank=2))
    with pytest.raises(UserError, match=r"a quantized student cannot be sharded, and the files of .* are quantized"):
        place_student(source, load_vocabulary(source), _A_MESH, "cpu")


def test_an_adapter_on_quantized_files_is_merged_into_the_dequantized_weights(files: str, tmp_path: Path) -> None:
    source = Student(model=files, adapter=LoRA(rank=2))
    assert source.adapter is not None
    model = load_causal_lm(source, role="student")
    add_adapter(model, source.adapter)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    adapter = {name: weight for name, weight in model.named_parameters() if ".lora_" in name}
    merged = merge_adapter(source, adapter)
    assert not is_quantized(merged)
    write_student(tmp_path / "x", merged.config, merged.state_dict(), packing_tokenizer())
    expected = logits(model.eval())  # the sums are rounded in another order
    exported = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "x"))
    torch.testing.assert_close(exported, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("form", ["fp8", "mxfp4"])
def test_layers_stay_quantized_where_transformers_has_kernels_for_them(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The decision alone, which asks for the kind of a GPU; nothing is run on it."""
    config = AutoConfig.from_pretrained(declared(plain, tmp_path / "x", FORMATS[form][1].settings))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr("torch.xpu.is_available", lambda: False)
    monkeypatch.setattr("transformers.quantizers.quantizer_mxfp4.is_triton_available", lambda *_: True)
    monkeypatch.setattr("transformers.quantizers.quantizer_mxfp4.is_kernels_available", lambda: True)

    def stays(source: Student | Teacher, device: str = "cuda:1") -> bool:
        found = quantized_files(config, source, role="model", device=device)
        assert found is not None
        options = found.options(config, device)
        assert options.get("device_map") == ({"": device} if found.is_kept else None)
        return found.is_kept

    monkeypatch.setattr("xtoken_pl.models.quantized_files.is_kernels_available", lambda: True)
    assert stays(Teacher(model="x"))
    assert not stays(Teacher(model="x"), "cpu")
    assert not stays(Teacher(model="x", cpu_offload=True))
    assert not stays(Student(model="x"))
    assert not stays(Student(model="x", adapter=LoRA(rank=2)))
    monkeypatch.setattr("xtoken_pl.models.quantized_files.is_kernels_available", lambda: False)
    assert not stays(Teacher(model="x"))
