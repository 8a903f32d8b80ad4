"""Contents of a GPU's memory at each moment of a training step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xtoken_pl.plan import terms
from xtoken_pl.plan.ledger import Held
from xtoken_pl.plan.replay import replay, replay_writing
from xtoken_pl.plan.run import Run, Writing
from xtoken_pl.plan.shared_models import shared_models
from xtoken_pl.plan.skeleton import Skeleton, vocabulary_size
from xtoken_pl.specs import Teacher

_HEAD_GRADIENT = "student: gradient of the head"


@dataclass(frozen=True)
class Moment:
    """One moment of a step.

    Attributes:
        name: The operation that runs, such as ``student's backward pass``.
        terms: Bytes by term.
    """

    name: str
    terms: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.terms.values())


@dataclass(frozen=True)
class MemoryPlan:
    """All moments of a step of ``run`` on one GPU; an upper bound where the exact size is unknown.

    Every batch has windows of full length on every side, with attention masks. Rollouts have their largest length, and
    are written as by :class:`xtoken_pl.rollouts.TransformersEngine`. Gradients and Adam's moments exist from the start.
    Savings by ``torch.compile`` are ignored. The optimizer is AdamW.
    """

    run: Run
    student: Skeleton
    teachers: Mapping[str, Skeleton]  # teachers whose model is loaded
    moments: list[Moment]

    @classmethod
    def from_run(cls, run: Run) -> MemoryPlan:
        """Plans a run: builds the models without memory and replays their passes.

        Raises:
            UserError: If a model does not exist or cannot be planned.
        """
        student = Skeleton.from_source(run.student, role="student", dtype=run.converted)
        live = {name: teacher for name, teacher in run.teachers.items() if teacher.origin is None}
        teachers = {name: Skeleton.from_source(teacher, role=f"teacher {name!r}") for name, teacher in live.items()}
        return cls(run, student, teachers, _Step(run, student, teachers).moments())

    @property
    def peak(self) -> Moment:
        """The moment that needs the most memory."""
        return max(self.moments, key=lambda moment: moment.total)


class _Step:
    """Computes the moments of one step, each with the terms that are alive."""

    def __init__(self, run: Run, student: Skeleton, teachers: Mapping[str, Skeleton]) -> None:
        self.run, self.student, self.teachers = run, student, teachers
        self.is_sharded = self.run.spread == "sharded"
        self.shards = self.run.data_parallel_size if self.is_sharded else 1
        shape, autocast = (self.run.num_windows, self.run.sequence_length), self.run.autocast
        checkpointing = self.run.student.activation_checkpointing
        self.student_pass = replay(
            self.student,
            *shape,
            autocast=autocast,
            trains=True,
            activation_checkpointing=checkpointing,
            balances_experts=self.run.student.router_aux_loss_coef > 0,
        )
        self.teacher_passes = {
            name: replay(skeleton, *shape, autocast=autocast, trains=False) for name, skeleton in self.teachers.items()
        }
        #: Teachers whose model runs in training steps.
        self.trained = [name for name in self.teachers if name not in run.idle]
        self.models = shared_models(run.teachers, teachers)
        self.always = self._always()

    def moments(self) -> list[Moment]:
        return [
            *(self._validation_pass(name) for name in self.teachers if name in self.run.idle),
            *([] if self.run.writing is None else self._writing(self.run.writing)),
            self._moment("student's forward pass", self._running_student(self.student_pass.forward)),
            *(self._teacher_pass(name) for name in self.trained),
            self._moment("loss blocks", self._idle_student(self.student_pass.in_step), self._block_terms()),
            *([self._router_loss()] if self.student_pass.router_loss.total else []),
            self._block_gradients(),
            self._student_backward(),
            self._moment(
                "optimizer step",
                {"optimizer: temporary tensors": terms.optimizer_step_bytes(self.student.trained_bytes) // self.shards},
            ),
        ]

    def _writing(self, writing: Writing) -> list[Moment]:
        """Writing the rollouts of a step, whose weights are whole on every GPU: the prompts, and the last token."""
        run, student = self.run, self.student
        num_rows = writing.num_rows(run.batch_size)
        prompt_length = writing.prompt_length(run.sequence_length)
        length = prompt_length + writing.max_new_tokens
        writes = replay_writing(student, num_rows, prompt_length, length, autocast=run.autocast)
        weights = terms.weight_bytes(student)
        common = {
            "student: gathered layers": weights if self.is_sharded else 0,
            "student: one dequantized layer": terms.dequantized_bytes(student),
        }
        last_token = {
            "rollouts: cache of keys and values": writes.cache,
            "rollouts: drawing a token": terms.drawing_bytes(num_rows, student.head.shape[0]),
            **_student_terms(writes.last_token),
        }
        return [
            self._moment("reading the prompts of rollouts", common, _student_terms(writes.prompts)),
            self._moment("writing rollouts", common, last_token),
        ]

    def _teacher_pass(self, name: str) -> Moment:
        """Forward pass of a teacher, while the student's activations and earlier teachers' hidden states are kept."""
        before = self.trained[: self.trained.index(name)]
        return self._moment(
            f"forward pass of teacher {name}",
            self._idle_student(self.student_pass.in_step),
            self._teacher_states(before),
            self._running_teacher(name),
        )

    def _validation_pass(self, name: str) -> Moment:
        """Forward pass of a teacher that runs for validation only: the student's activations are not kept."""
        num_rows = self.run.num_windows * self.run.sequence_length
        states = Held(num_rows * self.student.head.shape[1] * self.student.dtype.itemsize, 0)
        before = list(self.teachers)[: list(self.teachers).index(name)]
        return self._moment(
            f"validation: forward pass of teacher {name}",
            self._idle_student(states),
            self._teacher_states(before),
            self._running_teacher(name),
        )

    def _router_loss(self) -> Moment:
        """Load balancing loss of the student's experts, while the loss blocks keep what their gradients need."""
        return self._moment(
            "load balancing loss", self._idle_student(self.student_pass.router_loss), self._block_terms()
        )

    def _block_gradients(self) -> Moment:
        """Second pass over the blocks: gradients of the student's hidden states and of its head."""
        num_rows = self.run.num_windows * self.run.sequence_length
        gradient = num_rows * self.student.head.shape[1] * self.student.dtype.itemsize
        return self._moment(
            "loss blocks, backward",
            self._idle_student(self.student_pass.until_backward),
            self._block_terms(),
            {_HEAD_GRADIENT: self._head_gradient(), "student: gradient of the hidden states": gradient},
        )

    def _student_backward(self) -> Moment:
        """Backward pass of the student's body; the gradient of a tied head is kept until the embedding's is added."""
        head = {_HEAD_GRADIENT: self._head_gradient()} if self.student.has_tied_head else {}
        reduced = {"gradients being reduced across GPUs": terms.reduced_bytes(self.student)} if self.is_sharded else {}
        return self._moment(
            "student's backward pass",
            self._running_student(self.student_pass.backward),
            self._teacher_states(self.trained),
            head,
            reduced,
        )

    # Terms ---------------------------------------------------------------------------------------------------------

    def _always(self) -> dict[str, int]:
        """Terms that are alive at every moment."""
        run, trained = self.run, self.student.trained_bytes
        result = {
            "student: weights": terms.weight_bytes(self.student) // self.shards,
            "student: gradients": trained // self.shards,
            "student: optimizer": terms.adamw_bytes(trained) // self.shards,
        }
        if run.spread == "buckets":
            result["student: gradients in DDP's buckets"] = trained
        for name, model in self.models.items():
            if not model.source.cpu_offload:
                shards = self.shards if self._is_gathered(name) else 1
                result[f"{model.label}: weights"] = model.weight_bytes // shards
        size, learned = self.student.head.shape[0], 0
        for name, teacher in run.teachers.items():
            if name in self.teachers:
                teacher_size = self.teachers[name].head.shape[0]
            else:
                teacher_size = vocabulary_size(teacher) or size
                kind, row_bytes = _known_row(teacher, teacher_size)
                result[f"teacher {name}: {kind} rows"] = run.num_windows * run.sequence_length * row_bytes
            result[f"teacher {name}: W and loss tables"] = terms.loss_bytes(teacher, size, teacher_size)
            learned += terms.learned_projection_bytes(teacher, size)
        if learned:
            result["learned W: weights, gradients, optimizer"] = 2 * learned + terms.adamw_bytes(learned)
        result["loss blocks (logits_memory)"] = run.logits_memory
        return result

    def _is_gathered(self, name: str) -> bool:
        """Whether a teacher's weights are sharded; quantized weights are not."""
        return self.is_sharded and not terms.is_quantized(self.teachers[name])

    def _running_student(self, held: Held) -> dict[str, int]:
        """The student during a pass; layers are gathered if it is sharded, and dequantized if it is quantized."""
        student = self.student
        whole = terms.gathered_bytes(student.layer_bytes, student.root_bytes) if self.is_sharded else 0
        dequantized = terms.dequantized_bytes(self.student)
        common = {"student: gathered layers": whole, "student: one dequantized layer": dequantized}
        return {**common, **_student_terms(held)}

    def _running_teacher(self, name: str) -> dict[str, int]:
        """A teacher during its pass; layers are gathered if it is sharded, weights copied if they are offloaded."""
        teacher, skeleton = self.run.teachers[name], self.teachers[name]
        size = self.teacher_passes[name].forward.total + terms.dequantized_bytes(skeleton)
        result = {f"teacher {name}: forward pass": size}
        if self._is_gathered(name):
            model = self.models[name]
            result[f"{model.label}: gathered layers"] = terms.gathered_bytes(model.layer_bytes, model.root_bytes)
        elif teacher.cpu_offload:
            result[f"{self.models[name].label}: weights"] = self.models[name].weight_bytes
        return result

    def _head_gradient(self) -> int:
        return 0 if self.student.has_adapter else self.student.head.nbytes

    def _idle_student(self, held: Held) -> dict[str, int]:
        """The student between its passes; if sharded, weights outside the layers stay gathered."""
        gathered = {"student: gathered layers": self.student.root_bytes} if self.is_sharded else {}
        return {**_student_terms(held), **gathered}

    def _teacher_states(self, names: Iterable[str]) -> dict[str, int]:
        """Hidden states of all rows; also the root weights of sharded teachers and the heads of offloaded ones."""
        result: dict[str, int] = {}
        for name in names:
            result[f"teacher {name}: hidden states"] = self.teacher_passes[name].in_step.total
            if self._is_gathered(name):
                result[f"{self.models[name].label}: gathered layers"] = self.models[name].root_bytes
            elif self.run.teachers[name].cpu_offload:
                result[f"teacher {name}: head"] = self.teachers[name].head.nbytes
        return result

    def _block_terms(self) -> dict[str, int]:
        skeletons = [self.student, *(self.teachers[name] for name in self.trained)]
        copies = sum(terms.head_copy_bytes(self.run, skeleton) for skeleton in skeletons)
        return {**self._teacher_states(self.trained), "heads cast for autocast": copies}

    def _moment(self, name: str, *parts: Mapping[str, int]) -> Moment:
        allocated = {term: size for part in (self.always, *parts) for term, size in part.items() if size}
        lost = int(terms.FRAGMENTATION * sum(allocated.values()))
        outside = terms.CUDA_BYTES + (terms.NCCL_BYTES if self.run.num_gpus > 1 else 0)
        return Moment(name, {**allocated, "allowance: fragmentation (5%)": lost, "allowance: CUDA and NCCL": outside})


def _known_row(teacher: Teacher, teacher_size: int) -> tuple[str, int]:
    """Kind and bytes of a row of a teacher that does not run in this process."""
    if teacher.cache is None and teacher.server is not None:
        return "served", terms.served_bytes(teacher.server, teacher_size)
    return "cached", terms.cached_bytes(teacher, teacher_size)


def _student_terms(held: Held) -> dict[str, int]:
    return {"student: activations": held.activations, "student: weights cast by autocast": held.weight_copies}
