"""Checks that the files of a model hold all its weights, with the right shapes, and that these are numbers."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import first_of

#: Last parts of the names of buffers that hold results of training or of quantization. Other buffers hold constants,
#: such as decays, which a model computes itself: files may lack them.
_STORED_BUFFERS = {
    *("e_score_correction_bias", "expert_bias", "balancing_biases", "layer_scalar", "tid2eid"),
    *("qweight", "qzeros", "scales", "weight", "weight_scale", "weight_scales"),
}
_RIGHT_FILES = "copy or download the model again, or give the config.json that belongs to its weights"


def check_keys(model: PreTrainedModel, found: Mapping[str, Any], *, files: str, role: str, warns: bool = True) -> None:
    """Checks that every weight was loaded; transformers initializes those that are missing at random.

    A weight that is tied to another one may be missing, and so may a buffer that the model computes itself; a warning
    names such buffers.

    Args:
        model: Model that was loaded.
        found: Loading information of transformers: ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys``.
        files: Directory or hub id that was loaded.
        role: Role of the model in messages.
        warns: Whether to warn of missing buffers, and of weights that the model does not have.

    Raises:
        UserError: If weights are missing or have other shapes than in the model; the message names the first ones.
    """
    total, unknown = len(model.state_dict()), found["unexpected_keys"]
    computed = set(found["missing_keys"]) & _computed_buffers(model)
    if missing := set(found["missing_keys"]) - computed:
        held = f" The files hold {len(unknown)} that the model does not have: {first_of(unknown)}." if unknown else ""
        is_head = missing <= set(model._tied_weights_keys or ())
        tie = "; or, if the head is the input embedding, set tie_word_embeddings to true in config.json" * is_head
        raise UserError(
            f"the weights of the {role} must be complete, but {len(missing)} of {total} are missing in {files!r}: "
            f"{first_of(missing)}.{held} Correct the names, {_RIGHT_FILES}{tie}"
        )
    if mismatched := found["mismatched_keys"]:
        shapes = [f"{name} is {list(stored)}, not {list(needed)}" for name, stored, needed in mismatched]
        raise UserError(
            f"the weights of the {role} must have the shapes of its config.json, but {len(shapes)} of {total} in "
            f"{files!r} have others: {first_of(shapes)}; {_RIGHT_FILES}"
        )
    if computed and warns:
        rank_zero_warn(
            f"{files!r} lacks buffers of the {role} ({type(model).__name__}), which keep the values that the model "
            f"computes ({len(computed)}): {first_of(computed)}"
        )
    if unknown and warns:
        rank_zero_warn(
            f"{files!r} holds weights that the {role} ({type(model).__name__}) does not have and does not use "
            f"({len(unknown)}): {first_of(unknown)}"
        )


def _computed_buffers(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_buffers() if name.rpartition(".")[2] not in _STORED_BUFFERS}


def incomplete(names: Collection[str], *, files: str, role: str) -> UserError:
    """Returns the error for weights that transformers could not convert, because their parts are missing or wrong."""
    return UserError(
        f"the weights of the {role} must be complete, but in {files!r} some are missing or lack parts: "
        f"{first_of(names)}; {_RIGHT_FILES}"
    )


def check_tied(model: PreTrainedModel, *, files: str) -> None:
    """Checks that the weights of a student that are tied in its configuration are one weight in its files.

    transformers keeps them apart if both are stored and differ; an exported student would be tied again.

    Raises:
        UserError: If they differ.
    """
    apart = model.get_expanded_tied_weights_keys(all_submodels=True).keys() - model.all_tied_weights_keys.keys()
    if apart:
        raise UserError(
            "weights of the student that are tied (tie_word_embeddings in its config.json) must be equal, but "
            f"{files!r} holds {first_of(apart)} with values of its own; set tie_word_embeddings to false in "
            "config.json, or remove them from the weights"
        )


def check_adapter_keys(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Checks that ``weights`` are those of the adapter of ``model``; PEFT initializes missing ones at random.

    Raises:
        UserError: If a weight is missing, or belongs to no layer of the adapter.
    """
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for names, how in ((expected - weights.keys(), "are missing"), (weights.keys() - expected, "belong to no layer")):
        if names:
            raise UserError(
                f"the weights of the adapter must be those of its {len(expected)} matrices, but {len(names)} {how}: "
                f"{first_of(names)}; give the student, with its adapter, of the run that wrote them"
            )


def check_numbers(model: PreTrainedModel, *, files: str, role: str) -> None:
    """Checks that no weight is NaN or plus infinity; minus infinity in a bias excludes a token.

    Raises:
        UserError: If a weight is; the message names the first ones.
    """
    wrong = [name for name, weight in model.named_parameters() if weight.numel() and not _is_numeric(weight)]
    if wrong:
        raise UserError(
            f"the weights of the {role} must be numbers, but {len(wrong)} of its tensors in {files!r} hold NaN or "
            f"infinity as {model.dtype}: {first_of(wrong)}; copy or download the model again, or use another dtype "
            "(float16 overflows at 65,504)"
        )


def _is_numeric(weight: Tensor) -> bool:
    if not weight.is_floating_point() or weight.element_size() < 2:  # quantized
        return True
    return torch.aminmax(weight.detach()).max.item() < math.inf  # the maximum of a NaN and others is NaN


@contextmanager
def key_table_replaced(*, files: str, role: str) -> Iterator[None]:
    """Replaces transformers' table of weights: by `check_keys`, or by an error that names them if loading fails."""
    tables: list[str] = []  # as transformers 5.23 (utils/loading_report.py) logs them

    def withhold(record: logging.LogRecord) -> bool:
        is_table = "LOAD REPORT" in record.getMessage()
        if is_table:
            tables.append(record.getMessage())
        return not is_table

    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "integrations.peft")]
    for logger in loggers:
        logger.addFilter(withhold)
    try:
        yield
    except Exception as error:
        if not (names := re.findall(r"^(\S.*?) *\| (?:MISSING|CONVERSION)", "\n".join(tables), re.MULTILINE)):
            raise
        raise incomplete(set(names), files=files, role=role) from error
    finally:
        for logger in loggers:
            logger.removeFilter(withhold)
