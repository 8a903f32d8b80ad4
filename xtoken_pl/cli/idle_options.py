"""Warns of options that have no effect beside the others, before texts are read and models are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.data import DistillDataModule
from xtoken_pl.rollouts import Rollouts
from xtoken_pl.specs import Teacher
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.training.optimization import OptimizerRecipe


def warn_of_idle_options(module: pl.LightningModule, data: DistillDataModule) -> None:
    """Warns of options that have no effect beside the others, and of texts that are both learned and validated on."""
    idle: dict[str, str] = {}
    if data.streaming and data.num_proc is not None:
        idle["data.num_proc"] = "a stream is tokenized by the workers of the loader (data.num_workers)"
    if not data.streaming and data.shuffle_buffer != _default(DistillDataModule, "shuffle_buffer"):
        idle["data.shuffle_buffer"] = "without data.streaming all windows are shuffled together"
    if isinstance(module, MultiTeacherDistillModule):
        learned = {name: teacher for name, teacher in module.teachers.items() if teacher.learn_projection}
        for name, teacher in learned.items():
            taught = (part.source for part in data.splits["train"] if name in (part.source.teachers or [name]))
            alphas = [(source.alphas or {}).get(name, teacher.alpha) for source in taught]
            if module.kd_weight == 0 or not any(alphas):
                zero = "kd_weight" if module.kd_weight == 0 else "alpha"
                idle[f"model.teachers.{name}.learn_projection"] = f"at {zero}: 0 nothing is learned from the teacher"
        if not any(part.source.holds_conversations for parts in data.splits.values() for part in parts):
            with_template = (name for name, teacher in module.teachers.items() if teacher.chat_template is not None)
            idle |= {f"model.teachers.{name}.chat_template": "it is for conversations" for name in with_template}
        idle |= _idle_with_server(module.teachers)
        if module.rollouts is not None:
            idle |= _idle_rollouts(module.rollouts, module.ce_weight, data)
        rate = module.optimizer_recipe.projection_learning_rate
        if not learned and rate != _default(OptimizerRecipe, "projection_learning_rate"):
            idle["model.optimizer.projection_learning_rate"] = "no teacher sets learn_projection"
    for option, reason in idle.items():
        rank_zero_warn(f"{option} has no effect: {reason}")
    if isinstance(module, MultiTeacherDistillModule) and module.kd_weight != 0:
        _warn_of_sources_without_alpha(module, data)
    for measured in data.splits["val"]:
        if learned_part := next((p for p in data.splits["train"] if p.texts == measured.texts), None):
            rank_zero_warn(
                f"{measured.setting} names the texts of {learned_part.setting}: validation measures texts that are "
                "learned"
            )


def _warn_of_sources_without_alpha(module: MultiTeacherDistillModule, data: DistillDataModule) -> None:
    """Warns of sources whose teachers all have the alpha 0 of their specification."""
    for part in data.splits["train"]:
        own = {name: teacher.alpha for name, teacher in module.teachers.items()} | (part.source.alphas or {})
        taught = {name: alpha for name, alpha in own.items() if name in (part.source.teachers or own)}
        if taught and not any(taught.values()):
            rank_zero_warn(
                f"{part.setting} is learned by cross-entropy alone, since its teachers have alpha 0: "
                f"{', '.join(taught)}; give the source alphas, or raise those under model.teachers"
            )


def _idle_with_server(teachers: Mapping[str, Teacher]) -> dict[str, str]:
    """Options of weights that a server has, and why they have no effect; :class:`Teacher` refuses others."""
    return {
        f"model.teachers.{name}.{option}": "the teacher runs on its server; set it where that is started"
        for name, teacher in teachers.items()
        for option in ("dtype", "attn_implementation", "compile")
        if teacher.server is not None and getattr(teacher, option) != _default(Teacher, option)
    }


def _idle_rollouts(rollouts: Rollouts, ce_weight: float, data: DistillDataModule) -> dict[str, str]:
    """Options without effect in on-policy training, and why."""
    idle: dict[str, str] = {}
    if not rollouts.learns_data and ce_weight != 1:
        idle["model.ce_weight"] = "at model.rollouts.share: 1 no step has a cross-entropy"
    prompts, sampling = rollouts.prompts, rollouts.sampling
    of_chats = "the prompts of conversations end where the assistant is to answer"
    is_chats = all(part.source.holds_conversations for part in data.splits["train"])
    if prompts.end is not None and is_chats:
        idle["model.rollouts.prompt_end"] = of_chats
    if prompts.num_bytes != _default(Rollouts, "prompt_bytes") and (is_chats or prompts.end is not None):
        idle["model.rollouts.prompt_bytes"] = of_chats if is_chats else "prompts end with a match of prompt_end"
    if sampling.temperature == 0:
        is_set = {"top_p": sampling.top_p != 1, "top_k": sampling.top_k is not None}
        is_set["num_samples"] = rollouts.num_samples != 1
        most_probable = "at temperature: 0 the most probable token is taken, and all samples are the same"
        idle |= {f"model.rollouts.{name}": most_probable for name, given in is_set.items() if given}
    return idle


def warn_of_missing_eos(module: MultiTeacherDistillModule, data: DistillDataModule) -> None:
    """Warns if texts cannot end with eos; conversations end as the chat template says."""
    vocabulary = module.student_vocabulary
    if "eos" in vocabulary.roles or all(part.source.holds_conversations for part in data.splits["train"]):
        return
    separator = "" if data.packing == "none" else ", and packed texts follow one another without a separator"
    rank_zero_warn(
        f"the tokenizer of the student ({vocabulary.name!r}) has no eos token, so that the student does not learn "
        f"where texts end{separator}; set eos_token in its tokenizer_config.json"
    )


def _default(kind: type, option: str) -> Any:
    return signature(kind).parameters[option].default
