"""Reads the settings that determine memory use from a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from xtoken_pl.losses import RowContent
from xtoken_pl.rollouts import Rollouts
from xtoken_pl.specs import Student, Teacher
from xtoken_pl.teachers.source import needs_of
from xtoken_pl.training.binding import possible_losses
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.errors import UserError

if TYPE_CHECKING:
    from xtoken_pl.data import DistillDataModule, TextSource

#: ``buckets``: DDP with a second copy of the gradients; ``views``: DDP whose gradients are views of its buckets.
Spread = Literal["alone", "buckets", "views", "sharded"]

_AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
_CONVERTED = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}
#: Other spellings of a precision that Lightning accepts.
_SYNONYMS = {"None": "32-true", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Writing:
    """The settings of a run's rollouts that determine its memory use.

    Attributes:
        max_new_tokens: Largest number of tokens of a rollout.
        prompt_bytes: Largest number of bytes of a prompt; None for prompts that only leave room in a window.
        num_samples: Rollouts of each prompt.
        num_batches: Batches of an optimizer step; the texts of all of them are written before the first one.
        batch_size: Number of texts that the engine writes at a time; None for all texts of a step.
    """

    max_new_tokens: int
    prompt_bytes: int | None = None
    num_samples: int = 1
    num_batches: int = 1
    batch_size: int | None = None

    @classmethod
    def from_parts(cls, rollouts: Rollouts, data: DistillDataModule, num_batches: int) -> Writing:
        """Reads the settings.

        Args:
            rollouts: Settings of the rollouts.
            data: The data module.
            num_batches: Batches of an optimizer step.
        """
        prompts = rollouts.prompts
        train = cast("TextSource | dict[str, TextSource]", data.sources["train"])
        sources = train.values() if isinstance(train, dict) else [train]
        is_short = prompts.end is None and not any(source.holds_conversations for source in sources)
        return cls(
            prompts.max_new_tokens,
            prompts.num_bytes if is_short else None,
            rollouts.num_samples,
            num_batches,
            getattr(rollouts.engine, "batch_size", None),
        )

    def num_rows(self, num_prompts: int) -> int:
        """Number of texts that are written at a time, for batches of ``num_prompts`` prompts."""
        num_texts = num_prompts * self.num_samples * self.num_batches
        return min(num_texts, self.batch_size or num_texts)

    def prompt_length(self, sequence_length: int) -> int:
        r"""Largest number of tokens of a prompt: :math:`T - N`, and one for each byte and one for bos.

        Args:
            sequence_length: Tokens of a window, T; the rollout needs N of them.
        """
        room = max(sequence_length - self.max_new_tokens, 1)
        return room if self.prompt_bytes is None else min(room, self.prompt_bytes + 1)


@dataclass(frozen=True)
class Run:
    """The settings of a training run that determine its memory use.

    Attributes:
        student, teachers: Specifications of the models.
        batch_size: Windows per GPU, B.
        sequence_length: Tokens of each window on every side, T.
        logits_memory: Memory of the loss blocks in bytes.
        precision: Precision as Lightning spells it.
        num_gpus: Total number of GPUs.
        spread: How the student is distributed over the GPUs.
        data_parallel_size: Number of GPUs that share one copy of the models, if sharded.
        cacheable: Names of the teachers that a cache could replace.
        servable: Names of the teachers that a server could run.
        idle: Names of the teachers that run for validation only.
        writing: Settings of the rollouts; None for a run without any.
    """

    student: Student
    teachers: Mapping[str, Teacher]
    batch_size: int
    sequence_length: int
    logits_memory: int
    precision: str = "32-true"
    num_gpus: int = 1
    spread: Spread = "alone"
    data_parallel_size: int = 1
    cacheable: frozenset[str] = frozenset()
    servable: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    writing: Writing | None = None

    @classmethod
    def from_parts(
        cls,
        module: MultiTeacherDistillModule,
        data: DistillDataModule,
        trainer: Mapping[str, Any],
        num_gpus: int | None = None,
    ) -> Run:
        """Builds a run from a configuration's module, data module and ``trainer`` section.

        Args:
            module: The module.
            data: The data module.
            trainer: Section ``trainer`` of the configuration.
            num_gpus: Number of GPUs; None reads it from ``trainer``.

        Raises:
            UserError: If the precision or the strategy is not supported by the plan.
        """
        given = num_gpus if num_gpus is not None else _num_gpus(trainer)
        if given < 1:
            raise UserError(f"num_gpus must be >= 1, got {given}; set trainer.devices, or --num_gpus")
        rollouts = module.rollouts
        num_batches = trainer.get("accumulate_grad_batches") or 1
        spread, sharded = _spread(trainer.get("strategy"), given, trainer.get("num_nodes") or 1)
        return cls(
            student=module.student_source,
            teachers=module.teachers,
            batch_size=data.batch_size,
            sequence_length=data.sequence_length,
            logits_memory=int(module.logit_memory.budget_on("cuda")),
            precision=_precision(trainer.get("precision")),
            num_gpus=given,
            spread=spread,
            data_parallel_size=given if sharded and num_gpus is not None else sharded or 1,
            cacheable=frozenset() if data.streaming or rollouts is not None else _cacheable(module),
            servable=frozenset(name for name in _cacheable(module) if module.teachers[name].temperature == 1.0),
            idle=frozenset(module.teachers.keys() - module.trained_teachers.keys()),
            writing=None if rollouts is None else Writing.from_parts(rollouts, data, num_batches),
        )

    @property
    def num_windows(self) -> int:
        """Windows of a batch: those of the data, or one for each rollout."""
        return self.batch_size * (1 if self.writing is None else self.writing.num_samples)

    @property
    def autocast(self) -> torch.dtype | None:
        """Autocast dtype; None without autocast."""
        return _AUTOCAST.get(self.precision)

    @property
    def converted(self) -> torch.dtype | None:
        """Dtype that the student's weights are converted to; None if unchanged."""
        return _CONVERTED.get(self.precision)


def _cacheable(module: MultiTeacherDistillModule) -> frozenset[str]:
    """Teachers of whom the loss, whichever a rule may choose, and the weighting read no more than rows."""

    def reads_rows(teacher: Teacher) -> bool:
        needs = [needs_of(loss, module.weighting) for loss in possible_losses(teacher)]
        return all(RowContent("all").lacks(need) is None for need in needs)

    return frozenset(name for name, teacher in module.teachers.items() if reads_rows(teacher))


def _precision(given: Any) -> str:
    precision = _SYNONYMS.get(str(given), str(given))
    if precision not in {"32-true", *_AUTOCAST, *_CONVERTED}:
        raise UserError(
            f"the plan supports the precisions 32-true, {', '.join((*_AUTOCAST, *_CONVERTED))}, got {given!r}; "
            "plan with one of them: --trainer.precision bf16-mixed"
        )
    return precision


def _num_gpus(trainer: Mapping[str, Any]) -> int:
    """``devices`` times ``num_nodes``; one per node if the number is left to the machine."""
    devices = trainer.get("devices")
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    if isinstance(devices, list):
        devices = len(devices)
    try:
        per_node = 1 if devices in (None, "auto", -1, "-1") else int(devices)
    except ValueError:
        raise UserError(
            f"trainer.devices must be a number, a list or 'auto', got {devices!r}; change it, or set --num_gpus"
        ) from None
    return per_node * int(trainer.get("num_nodes") or 1)


def _spread(strategy: Any, num_gpus: int, num_nodes: int) -> tuple[Spread, int | None]:
    """Returns how the student is distributed, and over how many GPUs if it is sharded."""
    name, options = _name_and_options(strategy)
    if name == "ModelParallelStrategy":
        tensor_parallel = options.get("tensor_parallel_size", "auto")
        if tensor_parallel != 1 and (tensor_parallel != "auto" or num_gpus > num_nodes):
            raise UserError(
                "the plan does not know the memory of split matrices: tensor_parallel_size must be 1, got "
                f"{tensor_parallel!r}; plan with --trainer.strategy fsdp2, which needs as much for weights"
            )
        size = options.get("data_parallel_size", "auto")
        return "sharded", num_nodes if size == "auto" else int(size)
    if name.lower() == "fsdp2":
        return "sharded", num_gpus
    if name.startswith(("ddp", "DDPStrategy")):
        return ("views" if options.get("gradient_as_bucket_view") else "buckets"), None
    if name in ("None", "auto", "single_device", "SingleDeviceStrategy"):
        return ("alone" if num_gpus == 1 else "buckets"), None  # Lightning uses DDP for several GPUs
    raise UserError(
        f"the plan supports the strategies auto, ddp, fsdp2 and ModelParallelStrategy, got {name!r}; plan with one of "
        "them: --trainer.strategy fsdp2"
    )


def _name_and_options(strategy: Any) -> tuple[str, Mapping[str, Any]]:
    if strategy is None or isinstance(strategy, str):
        return str(strategy), {}
    return strategy["class_path"].rpartition(".")[2], strategy.get("init_args") or {}
