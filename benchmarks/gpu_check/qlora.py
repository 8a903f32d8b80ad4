"""A student in 4 bits with a LoRA adapter, which bitsandbytes quantizes on the device."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from small_models import packing_tokenizer, splitting_tokenizer, write_model

from benchmarks.gpu_check.fits import fit
from benchmarks.gpu_check.setting import NotRunError, Setting
from benchmarks.measure import Figure
from xtoken_pl import LoRA, MultiTeacherDistillModule, OptimizerRecipe, ProjectionKL, Student, Teacher

_STEPS = 6


def figures(setting: Setting) -> Iterator[Figure]:
    """Losses of some steps on the same text, trained weights, and the time of a step."""
    if missing := [name for name in ("bitsandbytes", "peft", "accelerate") if find_spec(name) is None]:
        raise NotRunError(f"not installed: {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as root:
        folder, size = Path(root), 512 if setting.is_full else 64
        write_model(folder / "student", packing_tokenizer(), seed=1, hidden_size=size)
        write_model(folder / "teacher", splitting_tokenizer(), seed=2, hidden_size=size)
        module = MultiTeacherDistillModule(
            Student(model=str(folder / "student"), adapter=LoRA(rank=8), quantization="4bit"),
            {"teacher": Teacher(model=str(folder / "teacher"), loss=ProjectionKL())},
            optimizer=OptimizerRecipe(learning_rate=1e-3, warmup_fraction=0.0),
        )
        run = fit(setting, module, _STEPS, precision="bf16-mixed")
        trained = sum(weight.numel() for weight in module.student.parameters() if weight.requires_grad)
        adapted = sum(
            float(weight.detach().abs().sum()) for name, weight in module.named_parameters() if "lora_B" in name
        )
        yield Figure("loss of the first step", run.losses[0], "nats")
        yield Figure(f"loss of step {_STEPS}, on another text", run.losses[-1], "nats")
        yield Figure("trained weights", trained, "")
        # B begins at 0, so that it shows whether a gradient has reached the adapter through the quantized layers.
        yield Figure("sum of the absolute values of the adapter's B after training", adapted, "", 1e-6, at_least=True)
        yield Figure("a step", 1000 * statistics.median(run.seconds[1:]), "ms")
