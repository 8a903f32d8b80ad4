"""One step of students and teachers that are not plain models, on two processes.

python architecture_steps.py STRATEGY FOLDER, with the folder of :func:`write_all`: writes what came out to
FOLDER/STRATEGY-RANK.pt, and exports to FOLDER/STRATEGY/CASE.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from architectures import write_architecture, write_multimodal
from peft import LoraConfig, PeftModel, get_peft_model
from recorded_step import fit_step
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from transformed_steps import comparable
from transformers import AutoModelForCausalLM

from xtoken_pl import LoRA, MultiTeacherDistillModule, ProjectionKL, Student, Teacher
from xtoken_pl.callbacks import HFExport

COEFFICIENT = 0.3
#: Of unequal length; a step sees all of them.
STEP_TEXTS = [text[:length] for text, length in zip(TEXTS, (40, 9, 61, 22, 35, 14, 50, 27), strict=False)]
_ADAPTER = LoRA(rank=2, alpha=4)


@dataclass(frozen=True)
class Case:
    """A student, its teachers, and how its step is cut.

    Attributes:
        student: Directory of the student.
        options: Of its specification.
        teachers: Directory of each teacher's adapter on the common model, by name; None for none.
        teacher_options: Of their specifications.
        num_batches: Batches of each process.
    """

    student: str
    options: dict[str, Any] = field(default_factory=dict)
    teachers: dict[str, str | None] = field(default_factory=lambda: {"plain": None})
    teacher_options: dict[str, Any] = field(default_factory=dict)
    num_batches: int = 1


_ROUTED = {"router_aux_loss_coef": COEFFICIENT}
_SHARED: dict[str, str | None] = {"first": "first", "plain": None, "second": "second"}
CASES = {
    "router": Case("qwen3_moe", _ROUTED),
    "router accumulated": Case("qwen3_moe", _ROUTED, num_batches=2),
    "router recomputed": Case("qwen3_moe", {**_ROUTED, "activation_checkpointing": True}),
    "router lora": Case("qwen3_moe", {**_ROUTED, "adapter": _ADAPTER}),
    "router compiled": Case("qwen3_moe", {**_ROUTED, "compile": True}),
    "experts lora": Case("qwen3_moe", {"adapter": _ADAPTER}),
    "vision": Case("gemma3"),
    "vision lora": Case("gemma3", {"adapter": _ADAPTER}),
    "llama4": Case("llama4_text"),
    "llama4 with vision": Case("llama4"),
    "no return_dict": Case("no_return_dict"),
    "afmoe": Case("afmoe"),
    "mamba": Case("mamba"),  # names parts of its layers, too
    "mamba recomputed": Case("mamba", {"activation_checkpointing": True}),
    "shared teacher": Case("llama", teachers=_SHARED),
    "shared teacher offloaded": Case("llama", teachers=_SHARED, teacher_options={"cpu_offload": True}),
}

#: Cases whose student is exported behind the step.
EXPORTED = ("experts lora", "vision")


def write_all(root: Path) -> None:
    """Models, adapters of the common teacher, the same merged, and the texts of a step."""
    tokenizer = packing_tokenizer()
    for name in ("qwen3_moe", "llama4_text", "afmoe", "llama", "mamba"):
        write_architecture(root / name, name, tokenizer, seed=1, scale=1.0)
    write_architecture(root / "no_return_dict", "llama", tokenizer, seed=1, scale=1.0, return_dict=False)
    for name in ("gemma3", "llama4"):
        write_multimodal(root / name, name, tokenizer, seed=1)
    write_model(root / "teacher", splitting_tokenizer(), seed=2)
    write_adapters(root)
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in STEP_TEXTS))


def write_adapters(root: Path) -> None:
    """Two adapters on the model ``teacher``, of different layers and ranks, and ``NAME_merged``."""
    for seed, (name, layer) in enumerate({"first": "q_proj", "second": "down_proj"}.items()):
        torch.manual_seed(seed)
        base: Any = AutoModelForCausalLM.from_pretrained(root / "teacher")
        config = LoraConfig(r=2 + seed, target_modules=[layer], init_lora_weights=False)
        get_peft_model(base, config).save_pretrained(root / name)
        base = AutoModelForCausalLM.from_pretrained(root / "teacher")
        PeftModel.from_pretrained(base, root / name).merge_and_unload().save_pretrained(root / f"{name}_merged")
        splitting_tokenizer().save_pretrained(root / f"{name}_merged")


def make_module(root: Path, case: Case, *, is_plain: bool = False) -> MultiTeacherDistillModule:
    """The module of a case; a plain one has merged teachers, and a student that is not balanced or compiled."""
    options = {"adapter": case.options.get("adapter")} if is_plain else case.options
    teachers = {}
    for name, adapter in case.teachers.items():
        model = root / (f"{adapter}_merged" if is_plain and adapter else "teacher")
        specific = {} if is_plain else {"adapter": adapter and str(root / adapter), **case.teacher_options}
        teachers[name] = Teacher(model=str(model), loss=ProjectionKL(), alpha=1 / (2 + len(teachers)), **specific)
    return MultiTeacherDistillModule(Student(model=str(root / case.student), **options), teachers)


def main(strategy: str, root: Path) -> None:
    results = {}
    for name, case in CASES.items():
        pl.seed_everything(1, verbose=False)
        with comparable():
            module = make_module(root, case)
            seen = fit_step(
                strategy,
                module,
                root / "texts.jsonl",
                *([HFExport(str(root / strategy / name))] if name in EXPORTED else []),
                num_texts=len(STEP_TEXTS),
                num_batches=case.num_batches,
            )
        results[name] = {"found": seen.found, "batches": seen.batches}
    torch.save(results, root / f"{strategy}-{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
