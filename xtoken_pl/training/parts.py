"""Parts of a run: teachers, vocabularies, losses, models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtoken_pl.batch import DistillBatch, Domain, Planner
from xtoken_pl.checkpoints import Run, Stage, verify
from xtoken_pl.data.validation import distill_data, warn_of_unread_sources
from xtoken_pl.losses import SpanLoss
from xtoken_pl.models.adapters import check_adapter
from xtoken_pl.models.placement import place_student
from xtoken_pl.models.tensor_parallel import sharding_mesh
from xtoken_pl.projection import LearnedProjection, Projection
from xtoken_pl.rollouts import Rollouts
from xtoken_pl.specs import Student, Teacher, load_vocabulary
from xtoken_pl.teachers.cache.reader import TeacherCache, open_caches
from xtoken_pl.teachers.local import FrozenModel, place_teachers
from xtoken_pl.teachers.source import GivenSource, TeacherSource, limit_tokens
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.training.binding import bind_loss, check_judges, check_teachers, choose_loss
from xtoken_pl.training.metrics import EvaluationMetrics
from xtoken_pl.training.refused_callbacks import check_callbacks
from xtoken_pl.training.strategies import check_strategy
from xtoken_pl.training.tensor_parallel_runs import check_tensor_parallel_run
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import attached_trainer
from xtoken_pl.utilities.processes import gather
from xtoken_pl.weighting import Weighting

if TYPE_CHECKING:
    from xtoken_pl.data import DistillDataModule
    from xtoken_pl.teachers.served.teacher import ServedTeacher


class DistillParts(pl.LightningModule):
    """The parts of :class:`xtoken_pl.MultiTeacherDistillModule`, which trains with them.

    Args:
        student: Specification of the student.
        teachers: Specifications of the teachers, by name.
        weighting: Weights between teachers.
        needs_teachers: Whether the student learns from teachers.
        rollouts: Settings of on-policy training; None to learn from the data alone.
    """

    student: PreTrainedModel
    student_num_bytes: Tensor

    def __init__(
        self,
        student: Student,
        teachers: dict[str, Teacher] | None,
        weighting: Weighting,
        *,
        needs_teachers: bool,
        rollouts: Rollouts | None = None,
    ) -> None:
        super().__init__()
        self.student_source = student
        # A checkpoint of an adapter lacks the frozen weights; `verify` checks the others when it is loaded.
        self.strict_loading = student.adapter is None
        self._given_teachers = teachers
        self._needs_teachers = needs_teachers
        self.weighting = weighting
        #: Settings of on-policy training; None to learn from the data alone, as at a share of 0.
        self.rollouts = rollouts if rollouts is not None and rollouts.share > 0 else None
        #: Largest number of tokens of a sequence that a rollout is in; None for no limit. It is set by :meth:`connect`,
        #: or by the user of other data.
        self.sequence_length: int | None = None
        self.losses = nn.ModuleDict()
        # A plain dict keeps the teachers out of the module tree: never trained, never in a checkpoint.
        #: Models of the teachers that run in this process.
        self.loaded_teachers: dict[str, FrozenModel] = {}
        #: Whether models must keep packed documents apart; set by :meth:`connect`, or by the user of other data.
        self.separates_documents = False
        #: Domains of each split (``train``, ``val``, ``test``); none if all teachers teach everywhere.
        self.domains: Mapping[str, Sequence[Domain]] = {}

    # What to subclass --------------------------------------------------------------------------------------------

    def configure_teachers(self) -> dict[str, Teacher]:
        """Returns the teachers by name. Override it to fix them in code; by default those given to ``__init__``."""
        return self._given_teachers or {}

    # Set-up: tokenizers, W, weights -------------------------------------------------------------------------------

    @cached_property
    def teachers(self) -> dict[str, Teacher]:
        """The checked result of :meth:`configure_teachers`."""
        try:
            result = self.configure_teachers()
        except AttributeError as error:
            # torch would say that there is no attribute `teachers`, and hide what is missing.
            raise UserError(f"{type(self).__name__}.configure_teachers failed: {error}") from error
        teachers = check_teachers(result, given=self._given_teachers, may_be_empty=not self._needs_teachers)
        if self._needs_teachers:
            self.weighting.check({name: teacher.alpha for name, teacher in teachers.items()})
        if self.rollouts is not None:
            check_judges(teachers)
        return teachers

    @property
    def trained_teachers(self) -> dict[str, Teacher]:
        """The teachers that training steps run; the others run for validation and monitors only."""
        return self.teachers if self._needs_teachers else {}

    @property
    def domain_alphas(self) -> dict[str, list[float | None]]:
        """The static alpha of every teacher in each domain of the training data; None where it does not teach."""
        return {
            name: [domain.alpha_of(name, teacher.alpha) for domain in self.train_domains]
            for name, teacher in self.teachers.items()
        }

    @property
    def train_domains(self) -> Sequence[Domain]:
        """The domains of the training data."""
        return self.domains.get("train") or [Domain("", dict.fromkeys(self.teachers))]

    @cached_property
    def student_vocabulary(self) -> CanonicalVocabulary:
        """Vocabulary of the student's tokenizer."""
        return load_vocabulary(self.student_source)

    @cached_property
    def teacher_vocabularies(self) -> dict[str, CanonicalVocabulary]:
        """Vocabulary of each teacher's tokenizer."""
        return {name: load_vocabulary(teacher) for name, teacher in self.teachers.items()}

    @cached_property
    def _chosen(self) -> dict[str, tuple[Teacher, str]]:
        """Each teacher with the loss that ``auto`` or ``auto_paper`` chose, and the reason."""
        return {
            name: choose_loss(name, teacher, self.student_vocabulary, self.teacher_vocabularies[name])
            for name, teacher in self.teachers.items()
        }

    @property
    def teachers_with_losses(self) -> dict[str, Teacher]:
        """The teachers, each with a loss in place of the rule that chooses it."""
        return {name: teacher for name, (teacher, _) in self._chosen.items()}

    @property
    def loss_reasons(self) -> dict[str, str]:
        """Reason for the choice of each loss, by teacher."""
        return {name: reason for name, (_, reason) in self._chosen.items()}

    @cached_property
    def caches(self) -> dict[str, TeacherCache]:
        """The opened cache of every teacher that has one, checked against the run."""
        teachers = self.teachers_with_losses
        return open_caches(teachers, self.weighting, self.student_vocabulary, self.teacher_vocabularies)

    @cached_property
    def servers(self) -> dict[str, ServedTeacher]:
        """The server of every teacher that has one and no cache; nothing is asked before :meth:`connect`."""
        if all(teacher.server is None for teacher in self.teachers.values()):
            return {}
        from xtoken_pl.teachers.served.checks import open_servers  # needs an HTTP client

        return open_servers(self.teachers_with_losses, self.weighting, self.teacher_vocabularies)

    @property
    def given_sources(self) -> dict[str, GivenSource]:
        """The sources of the teachers that do not run in this process."""
        return {**self.caches, **self.servers}

    @property
    def _live_teachers(self) -> dict[str, Teacher]:
        """The teachers that run in this process."""
        return {name: teacher for name, teacher in self.teachers.items() if not (teacher.cache or teacher.server)}

    @property
    def sources(self) -> dict[str, TeacherSource]:
        """Where the rows of each teacher come from, once the models are loaded."""
        return {**self.loaded_teachers, **self.given_sources}

    def vocabularies(self) -> tuple[CanonicalVocabulary, dict[str, CanonicalVocabulary]]:
        """The student's vocabulary and each teacher's, once every loss is bound to them."""
        self._bind_losses()
        return self.student_vocabulary, self.teacher_vocabularies

    def planners(self) -> dict[str, Planner]:
        """Batch planners of the losses that define one, by teacher name; the loaders' workers call them."""
        losses = cast(Mapping[str, SpanLoss], self.losses)
        return {name: planner for name, loss in losses.items() if (planner := loss.planner) is not None}

    def configure_callbacks(self) -> Sequence[pl.Callback] | pl.Callback:
        """Connects the data module. This is the only hook of a module that runs before those of the data module."""
        check_strategy(self.trainer)
        check_callbacks(self.trainer)
        self.check_tensor_parallel(self.trainer)
        if (data := distill_data(self.trainer)) is not None:
            self.connect(data)
        return super().configure_callbacks()

    def check_tensor_parallel(self, trainer: pl.Trainer) -> None:
        """Refuses what tensor parallelism does not support, if the strategy splits matrices over processes."""
        check_tensor_parallel_run(trainer, self.student_source, self._live_teachers, self.rollouts)

    def connect(self, data: DistillDataModule) -> None:
        """Passes tokenizers, planners and caches to a data module, and sets :attr:`separates_documents` from it.

        Losses are bound first, so that a configuration that does not fit is refused before texts are tokenized.
        """
        student, teachers = self.vocabularies()
        self.sequence_length = data.sequence_length
        self._check_servers()
        prompts = None if self.rollouts is None else self.rollouts.prompts
        servers = {"val": self.servers, "test": self.servers}
        # The loader does not know what on-policy steps read: its workers would ask in vain, as without a teacher.
        if self.rollouts is None and self._needs_teachers:
            servers["train"] = self.servers
        self.separates_documents = data.connect(student, teachers, self.planners(), self.caches, prompts, servers)
        self.domains = data.domains
        self._make_metrics()

    def _check_servers(self) -> None:
        for server in self.servers.values():
            if not server.is_checked:
                from xtoken_pl.teachers.served.checks import check_server

                check_server(server, self.sequence_length)

    def _make_metrics(self) -> None:
        self.validation_metrics = EvaluationMetrics(self.teachers, self.domains.get("val", ()))
        self.test_metrics = EvaluationMetrics(self.teachers, self.domains.get("test", ()))

    def on_validation_start(self) -> None:
        warn_of_unread_sources(self.trainer, "val")

    def on_test_start(self) -> None:
        warn_of_unread_sources(self.trainer, "test")

    def setup(self, stage: str) -> None:
        """Binds every teacher's loss to its pair of vocabularies, building or loading W."""
        if (trainer := attached_trainer(self)) is not None:
            paths = gather(None if trainer.ckpt_path is None else str(trainer.ckpt_path))
            verify(None, Run(paths=paths), cast(Stage, stage))
        self._bind_losses()
        self._check_servers()  # unless `connect` did
        if stage == "fit" and (idle := self.teachers.keys() - self.trained_teachers.keys()):
            names = ", ".join(sorted(idle))
            rank_zero_info(f"kd_weight is 0: teachers that run for validation and monitors only: {names}")

    @torch.random.fork_rng(devices=[])  # several processes are seeded again after it, one process is not
    def _bind_losses(self) -> None:
        if hasattr(self, "student_num_bytes"):
            return
        check_adapter(self.student_source)
        given = self.given_sources  # first, since W may take a while
        for name, teacher in self.teachers_with_losses.items():
            loss = bind_loss(name, teacher, self.student_vocabulary, self.teacher_vocabularies[name])
            self.losses[name] = loss
            if name in given:
                limit_tokens(name, given[name].gives, loss)
        num_bytes = torch.from_numpy(self.student_vocabulary.num_bytes)
        self.register_buffer("student_num_bytes", num_bytes, persistent=False)  # [V_s]
        self._make_metrics()

    def learned_projections(self) -> dict[str, Projection]:
        """Returns the current W of every teacher whose W is learned."""
        return {name: learned.to_projection() for name, learned in self._learned_projections()}

    def _learned_projections(self) -> list[tuple[str, LearnedProjection]]:
        parts = [(name, part) for name, loss in self.losses.items() for part in loss.modules()]
        return [(name, part) for name, part in parts if isinstance(part, LearnedProjection)]

    def _projection_parameters(self) -> list[nn.Parameter]:
        return [parameter for _, learned in self._learned_projections() for parameter in learned.parameters()]

    def configure_model(self) -> None:
        """Loads the weights and checks every model; does nothing the second time."""
        if hasattr(self, "student"):
            return
        self._bind_losses()  # load_from_checkpoint calls no setup
        mesh = sharding_mesh(self.device_mesh)
        trainer = attached_trainer(self)
        device = "cpu" if trainer is None else trainer.strategy.root_device
        separates = self.separates_documents
        student = place_student(self.student_source, self.student_vocabulary, mesh, device, separates=separates)
        live, vocabularies = self._live_teachers, self.teacher_vocabularies
        self.loaded_teachers = place_teachers(live, vocabularies, mesh, device, separates=separates)
        self.student_head = student.head
        self.student, self.router_loss = student.model, student.router_loss

    def router_sum(self, batch: DistillBatch, token_nats: Tensor) -> Tensor:
        """The load balancing loss of a batch times its number of tokens, so that a step has the mean over tokens."""
        if self.router_loss is None:
            return token_nats.new_zeros(())
        return self.router_loss.take(batch.student.attention_mask) * len(token_nats)
