"""Loads a causal language model and refuses one whose files do not hold all its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, find_adapter_config_file
from transformers.utils import logging as transformers_logging

from xtoken_pl.models.completeness import check_keys, check_numbers, check_tied, key_table_replaced
from xtoken_pl.models.frozen_adapters import check_peft, load_adapter
from xtoken_pl.models.quantized_files import (
    check_scales,
    convert_others,
    quantized_files,
    report_quantized,
    without_quantization,
)
from xtoken_pl.models.text_model import KEY_MAPPING, is_multimodal, left_out, read_config, text_model_of
from xtoken_pl.specs import ModelSource, Quantization, Student, Teacher
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import reason_of


def load_causal_lm(source: ModelSource, *, role: str, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Loads the model of ``source``, in evaluation mode.

    A :class:`Student` with ``weights="random"`` is built from its configuration alone. A teacher's ``model`` may be a
    PEFT adapter, which is loaded onto the base model that it names. The field ``adapter`` of a source is not read: see
    :func:`xtoken_pl.models.frozen_adapters.load_adapter` and :func:`xtoken_pl.models.adapters.add_adapter`.

    Args:
        source: Specification of the model.
        role: Role of the model in messages: ``student``, or ``teacher 'NAME'``.
        device: Device on which weights are quantized; others are loaded on the CPU.

    Raises:
        UserError: If the model cannot be loaded, its weights are incomplete, have other shapes or are not numbers, or
            it is to be quantized and bitsandbytes is not installed.
    """
    options: dict[str, Any] = {"dtype": source.dtype if source.dtype == "auto" else getattr(torch, source.dtype)}
    if source.attn_implementation is not None:
        options["attn_implementation"] = source.attn_implementation
    if isinstance(source, Student | Teacher) and source.quantization is not None:
        check_quantization(source.quantization, role=role)
        check_weights(source, role=role)  # transformers does not compare the shapes of weights that it quantizes
        options |= _quantized(source.quantization, options["dtype"], device)
    with _model_errors(source, role=role):
        if _is_random(source):
            model = _initialized(source, options)
        else:
            model = _pretrained(source, options, role=role, device=device)
            check_numbers(model, files=source.model, role=role)
            if isinstance(source, Student):
                check_tied(model, files=source.model)
    _keep_layout_of_quantized(model)
    model.config.return_dict = True  # where config.json says otherwise, transformers' own forward fails
    return model.eval()


def check_weights(source: ModelSource, *, role: str) -> None:
    """Checks that the files of a model hold all its weights, from their names and shapes alone.

    Does nothing where only loading can tell: if the files are quantized, if they cannot be converted without their
    values, or if Accelerate is not installed.

    Raises:
        UserError: If weights are missing or have other shapes, or the files cannot be read.
    """
    if _is_random(source) or find_spec("accelerate") is None:
        return
    has_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        base, revision = base_model(source, role=role)
        config = read_config(base, revision=revision, trust_remote_code=source.trust_remote_code)
        with _model_errors(source, role=role):
            if quantized_files(config, source, role=role) is None:
                model = _pretrained(source, {"device_map": {"": "meta"}}, role=role, warns=False)
                if isinstance(source, Teacher) and source.adapter is not None:
                    load_adapter(model, source.adapter, role=role, warns=False)
    except UserError as error:
        if error.__cause__ is None or isinstance(error.__cause__, OSError | SafetensorError):
            raise
    except (OSError, ValueError, KeyError, TypeError):
        return  # loading the tokenizer or the model will report the reason
    finally:
        if has_bars:
            transformers_logging.enable_progress_bar()


def check_quantization(bits: Quantization | None, *, role: str) -> None:
    """Checks that the library for a quantization is installed.

    Raises:
        UserError: If bitsandbytes is needed and not installed.
    """
    if bits is not None and find_spec("bitsandbytes") is None:
        raise UserError(
            f"quantization={bits!r} of the {role} needs bitsandbytes, which is not installed; install it "
            "(pip install bitsandbytes), or leave quantization out"
        )


def _pretrained(
    source: ModelSource,
    options: dict[str, Any],
    *,
    role: str,
    device: torch.device | str = "cpu",
    warns: bool = True,
) -> PreTrainedModel:
    base, revision = base_model(source, role=role)
    options = {**options, **_hub_options(source), "revision": revision}
    whole = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=source.trust_remote_code)
    config = text_model_of(whole)
    quantized = quantized_files(config, source, role=role, device=device)
    if quantized is not None:
        options = {**quantized.options(config, device), **options}
    if is_multimodal(whole):
        model, found = _load_text_model(base, config, options, whole=whole.model_type, role=role, warns=warns)
    else:
        model, found = _load_files(base, options, role=role)
    if quantized is not None:
        check_scales(_folder(base, revision), quantized, role=role)  # only now are files of a hub id in its cache
        convert_others(model)
        report_quantized(model, quantized, source, role=role)
    check_keys(model, found, files=base, role=role, warns=warns)
    if base != source.model:
        load_adapter(model, source.model, role=role, revision=source.revision, warns=warns)
    return model


def _load_files(files: str, options: dict[str, Any], *, role: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Returns a model and transformers' loading information; the caller checks that nothing is missing."""
    options = {**options, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with key_table_replaced(files=files, role=role):
        model, found = AutoModelForCausalLM.from_pretrained(files, **options)
    return model, found


def _load_text_model(
    files: str, config: PreTrainedConfig, options: dict[str, Any], *, whole: str, role: str, warns: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Does the same for the text model ``config`` of a multimodal checkpoint, whose other parts it does not report."""
    model, found = _load_files(files, {"config": config, **options, "key_mapping": KEY_MAPPING}, role=role)
    del model._weight_conversions  # or its weights would be saved under the names of the whole
    others = left_out(found["unexpected_keys"], model.state_dict())
    if warns:
        rank_zero_info(
            f"{role}: {type(model).__name__} alone is loaded of {files!r} ({whole}), without {len(others)} weights of "
            "other parts"
        )
    return model, {**found, "unexpected_keys": set(found["unexpected_keys"]) - others}


def base_model(source: ModelSource, *, role: str) -> tuple[str, str | None]:
    """Returns the model below a PEFT adapter, and its revision; those of ``source`` if it is no adapter.

    Raises:
        UserError: If the adapter is that of a student, or lies on another one, or beside a model in its directory, or
            PEFT is not installed.
    """
    adapter = find_adapter_config_file(source.model, revision=source.revision)
    if adapter is None:
        return source.model, source.revision
    if isinstance(source, Student):
        raise UserError(
            f"a student must be a model whose weights can be trained, but {source.model!r} holds a PEFT adapter "
            "(adapter_config.json), which would be frozen; merge it into its base model (merge_and_unload), save that, "
            "and give its directory, without the files of the adapter"
        )
    if (Path(source.model) / "config.json").is_file():
        raise UserError(
            f"the directory of the {role} must hold a model or a PEFT adapter, but {source.model!r} holds both "
            "(config.json and adapter_config.json); move the files of the one that is not meant"
        )
    if isinstance(source, Teacher) and source.adapter is not None:
        raise UserError(
            f"the adapter of the {role} must lie on a model, but {source.model!r} is a PEFT adapter itself; give its "
            "base model as `model`, or leave `adapter` out"
        )
    check_peft(role=role)
    config = json.loads(Path(adapter).read_text(encoding="utf-8"))
    return config["base_model_name_or_path"], config.get("revision")


def _folder(model: str, revision: str | None) -> Path:
    found = cached_file(model, "config.json", revision=revision)
    if found is None:
        raise OSError(f"{model!r} has no config.json")
    return Path(found).parent


def _initialized(source: ModelSource, options: dict[str, Any]) -> PreTrainedModel:
    config = without_quantization(read_config(source.model, **_hub_options(source)))
    if options["dtype"] == "auto":
        options = {**options, "dtype": config.dtype or torch.float32}
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code, **options)
    return cast(PreTrainedModel, model)


def _is_random(source: ModelSource) -> bool:
    return isinstance(source, Student) and source.weights == "random"


def _hub_options(source: ModelSource) -> dict[str, Any]:
    return {"revision": source.revision, "trust_remote_code": source.trust_remote_code}


@contextmanager
def _model_errors(source: ModelSource, *, role: str) -> Iterator[None]:
    """Converts errors of transformers and safetensors to a UserError that names the model."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except SafetensorError as error:
        raise UserError(
            f"the weights of the {role} must be whole, but those of {source.model!r} cannot be read ({error}); copy "
            "or download the model again"
        ) from error
    except Exception as error:  # transformers has no exception class of its own for a model that does not fit its files
        raise UserError(
            f"the model of the {role} must be a directory or a hub id of a causal language model; {source.model!r} "
            "could not be loaded. Check the path (relative paths start at the working directory), the id, the model's "
            f"files or the options. Reason: {reason_of(error)}"
        ) from error


def _quantized(bits: Quantization, dtype: torch.dtype | str, device: torch.device | str) -> dict[str, Any]:
    config = BitsAndBytesConfig(
        load_in_8bit=bits == "8bit",
        load_in_4bit=bits == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
    )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def _keep_layout_of_quantized(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    It would do so in the first pass in evaluation mode. Packed layers have no backward pass, round their products to
    bfloat16, and must be at least 64 wide.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            cast(Any, layer).support_avx512bf16_for_cpu = False
