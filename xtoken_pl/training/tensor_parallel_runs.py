"""Refuses settings that tensor parallelism does not support, before texts are read."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import ModelParallelStrategy

from xtoken_pl.models.tensor_parallel_plan import check_tensor_parallel_source
from xtoken_pl.rollouts import Rollouts
from xtoken_pl.specs import ModelSource, Student, Teacher
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import parallel_sizes

_FSDP2 = "--trainer.strategy fsdp2, which shards the models without splitting their matrices"

#: Precisions of Lightning that convert weights, with their dtype.
_CONVERTED = {"bf16-true": "bfloat16", "16-true": "float16", "64-true": "float64"}


def check_tensor_parallel_run(
    trainer: pl.Trainer, student: Student, teachers: Mapping[str, Teacher], rollouts: Rollouts | None
) -> None:
    """Checks the models of a run under tensor parallelism, without their weights; does nothing for other runs.

    Args:
        trainer: The trainer.
        student: Specification of the student.
        teachers: Specifications of the teachers that run in this process, by name.
        rollouts: Settings of on-policy training.

    Raises:
        UserError: With what is not supported, and the way out.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy) or (size := parallel_sizes(strategy)[1]) == 1:
        return
    if rollouts is not None:
        raise UserError(
            "with tensor_parallel_size > 1 a student does not write, since all processes of a group would have to draw "
            f"the same tokens; leave model.rollouts out, or use {_FSDP2}"
        )
    _check_dtype(str(trainer.precision), student)
    on_gpu = not isinstance(trainer.accelerator, CPUAccelerator)
    for role, source in _roles(student, teachers).items():
        adapter = source.adapter if isinstance(source, Teacher) else None
        if isinstance(source, Teacher) and source.quantization is not None:
            continue  # whole in every process
        quantization = source.quantization if isinstance(source, Student) else None
        refused = {"an adapter": adapter, "quantization": quantization, "compile": source.compile or None}
        for option, value in refused.items():
            if value is not None:
                raise UserError(
                    f"with tensor_parallel_size > 1 a model cannot have {option}, and the {role} has; leave it out, or "
                    f"use {_FSDP2}"
                )
        check_tensor_parallel_source(source, size, role=role, on_gpu=on_gpu)


def _check_dtype(precision: str, student: Student) -> None:
    """Refuses a precision to which Lightning would convert the student, once it is split and sharded."""
    wanted = _CONVERTED.get(precision)
    if wanted is not None and (student.dtype != wanted or student.adapter is not None):
        raise UserError(
            f"with tensor_parallel_size > 1 the student must have the dtype of trainer.precision={precision}, "
            f"{wanted}, and no adapter, got {student.dtype}{' and an adapter' * (student.adapter is not None)}; set "
            f"model.student.dtype, use trainer.precision=bf16-mixed, or use {_FSDP2}"
        )


def _roles(student: Student, teachers: Mapping[str, Teacher]) -> dict[str, ModelSource]:
    return {"student": student, **{f"teacher {name!r}": teacher for name, teacher in teachers.items()}}
