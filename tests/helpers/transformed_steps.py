"""One training step of students and teachers with transformed heads; started as a script for several processes.

python transformed_steps.py STRATEGY FOLDER, with the folder of `write_all`; writes FOLDER/STRATEGY.safetensors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from architectures import write_architecture
from exact_doubles import KeepsDoubles, bodies_in_double
from lightning.pytorch.utilities import rank_zero_only
from recorded_step import fit_step
from safetensors.torch import save_file
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, write_model
from torch import Tensor

from xtoken_pl import (
    LoRA,
    MultiTeacherDistillModule,
    ProjectionKL,
    Student,
    Teacher,
    TokenKL,
)
from xtoken_pl.models import adapters, placement
from xtoken_pl.models.logit_transform import LogitTransform

#: Architecture -> what it does to its logits.
TRANSFORMED = {
    **{"gemma2": LogitTransform(cap=3.0), "gemma3_text": LogitTransform(cap=2.0), "nanochat": LogitTransform(cap=3.0)},
    **{"vaultgemma": LogitTransform(cap=3.0), "recurrent_gemma": LogitTransform(cap=30.0)},
    **{"cohere": LogitTransform(0.0625), "cohere2": LogitTransform(0.0625), "hyperclovax": LogitTransform(0.125)},
    **{"granite": LogitTransform(1 / 8.0), "falcon_h1": LogitTransform(0.04)},
    **{"granitemoe": LogitTransform(1 / 6.0), "granitemoehybrid": LogitTransform(1 / 6.0)},
    **{"granite_swa": LogitTransform(1 / 8.0), "granitemoe_swa": LogitTransform(1 / 6.0)},
    **{"cohere2_moe": LogitTransform(0.0625), "minicpm3": LogitTransform(0.5)},
    **{name: LogitTransform(cap=3.0) for name in ("gemma3n_text", "gemma4_text", "beam")},
}
DTYPES, TRAINED = ("float32", "float64"), ("whole", "lora")
TEMPERATURE = 2.5
#: Of unequal length; a step sees all of them.
STEP_TEXTS = [f"{TEXTS[0][:14]} 12", f"{TEXTS[1][:17]} 345", TEXTS[2][:5], TEXTS[3][:9]]


def write_folders(root: Path, architecture: str) -> dict[str, str]:
    """A student and a teacher of another tokenizer, both of one architecture and with padded heads, and a Llama."""
    student, other = packing_tokenizer(320), reversing_tokenizer(340)
    return {
        "student": write_architecture(root / "student", architecture, student, seed=1, vocab_size=len(student) + 5),
        "other": write_architecture(root / "other", architecture, other, seed=2, vocab_size=len(other) + 3),
        "same": write_model(root / "same", student, seed=3),
    }


def folders_in(root: Path) -> dict[str, str]:
    return {name: str(root / name) for name in ("student", "other", "same")}


def write_all(root: Path, names: Sequence[str]) -> None:
    """The models of several architectures, and the texts of a step."""
    for name in names:
        write_folders(root / name, name)
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in STEP_TEXTS))


def make_module(folders: dict[str, str], dtype: str, trained: str, memory: float = 1.0) -> MultiTeacherDistillModule:
    """Cross-entropy, a P-KL and a KL; a LoRA adapter is on every linear layer, and on fused experts."""
    other = Teacher(model=folders["other"], loss=ProjectionKL(), dtype=dtype, alpha=0.7, temperature=TEMPERATURE)
    same = Teacher(model=folders["same"], loss=TokenKL(), dtype=dtype, alpha=0.3)
    adapter = LoRA(rank=2, alpha=4) if trained == "lora" else None
    return MultiTeacherDistillModule(
        Student(model=folders["student"], dtype=dtype, adapter=adapter),
        {"other": other, "same": same},
        kd_weight=0.6,
        ce_weight=0.9,
        logits_memory=memory,
    )


@contextmanager
def comparable() -> Iterator[None]:
    """Adapters are far from their start, and in the model's precision; bodies of float64 compute in float64."""

    def add(model: Any, adapter: LoRA) -> None:
        adapters.add_adapter(model, adapter)
        generator = torch.Generator().manual_seed(5)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = torch.randn(weight.shape, generator=generator).to(weight.dtype) / 8

    with mock.patch.object(placement, "add_adapter", add), bodies_in_double():
        yield


def running(dtype: str) -> Callable[[], AbstractContextManager[Any]]:
    """Context in which the models of a reference run."""
    return KeepsDoubles if dtype == "float64" else nullcontext


def train(name: str, folders: dict[str, str], texts: Path, dtype: str, trained: str) -> dict[str, Tensor]:
    """Loss and gradients of a step."""
    pl.seed_everything(1, verbose=False)
    with comparable():
        return fit_step(name, make_module(folders, dtype, trained), texts, num_texts=len(STEP_TEXTS)).found


def main(name: str, root: Path) -> None:
    """Every architecture in `root`, in both precisions, trained whole and by an adapter."""
    results: dict[str, Tensor] = {}
    for architecture in TRANSFORMED:
        if (root / architecture).is_dir():
            for dtype in DTYPES:
                for trained in TRAINED:
                    found = train(name, folders_in(root / architecture), root / "texts.jsonl", dtype, trained)
                    results |= {f"{architecture}/{dtype}/{trained}/{key}": value for key, value in found.items()}
    if rank_zero_only.rank == 0:
        save_file(results, root / f"{name}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
