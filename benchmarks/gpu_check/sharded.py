"""FSDP2 on one process, NCCL on a GPU and gloo on the CPU, against the same run on the device alone."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from small_models import packing_tokenizer, splitting_tokenizer, write_model

from benchmarks.gpu_check.fits import LossRecorder, fit
from benchmarks.gpu_check.setting import Setting
from benchmarks.measure import Figure
from xtoken_pl import MultiTeacherDistillModule, ProjectionKL, Student, Teacher
from xtoken_pl.models.sharding import is_sharded

_STEPS = 5


def figures(setting: Setting) -> Iterator[Figure]:
    """Differences of the losses of some steps, and the time of a step."""
    with tempfile.TemporaryDirectory() as root:
        folder, size = Path(root), 512 if setting.is_full else 32
        write_model(folder / "student", packing_tokenizer(), seed=1, hidden_size=size)
        write_model(folder / "teacher", splitting_tokenizer(), seed=2, hidden_size=size)
        alone = _run(setting, folder, "auto", "32-true")
        sharded = _run(setting, folder, "fsdp2", "32-true")
        mixed = _run(setting, folder, "fsdp2", "bf16-mixed")
        what = f"fsdp2 against one device, {_STEPS} steps: largest relative difference of the loss"
        yield Figure(f"{what}, float32", _difference(sharded, alone), "", 1e-5)
        yield Figure(f"{what}, bf16-mixed", _difference(mixed, alone), "", 0.02)
        backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else "no process group"
        for name, run in (("one device", alone), ("fsdp2", sharded)):
            taken = statistics.median(run.seconds[1:])
            yield Figure(f"{name}, float32: a step", 1000 * taken, "ms", note="" if run is alone else backend)


def _difference(ours: LossRecorder, theirs: LossRecorder) -> float:
    return max(abs(a / b - 1) for a, b in zip(ours.losses, theirs.losses, strict=True))


def _run(setting: Setting, folder: Path, strategy: str, precision: str) -> LossRecorder:
    teacher = Teacher(model=str(folder / "teacher"), loss=ProjectionKL())
    module = MultiTeacherDistillModule(Student(model=str(folder / "student")), {"teacher": teacher})
    run = fit(setting, module, _STEPS, strategy=strategy, precision=precision)
    assert is_sharded(module.student) == (strategy == "fsdp2")
    return run
