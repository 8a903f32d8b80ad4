"""The student and the teachers as plain specifications; weights are loaded when training starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xtoken_pl.checks import check_not_negative
from xtoken_pl.lora import LoRA
from xtoken_pl.losses import SpanLoss
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer

DType = Literal["auto", "float32", "bfloat16", "float16", "float64"]
Quantization = Literal["8bit", "4bit"]


@dataclass(kw_only=True)
class ModelSource:
    """Where a causal language model and its tokenizer come from.

    Attributes:
        model: A folder, or a hub id.
        revision: Branch, tag or commit on the hub.
        dtype: Of the weights; ``auto`` takes the checkpoint's own.
        attn_implementation: ``eager``, ``sdpa``, ``flash_attention_2``, ...; None lets transformers choose.
        trust_remote_code: Run code that comes with the model. Off unless asked for.
        compile: Compile every layer with ``torch.compile``.
        chat_template: A Jinja file, for conversations; None takes the tokenizer's own template.
    """

    model: str
    revision: str | None = None
    dtype: DType = "float32"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    compile: bool = False
    chat_template: str | None = None


def load_vocabulary(source: ModelSource) -> CanonicalVocabulary:
    """The canonical vocabulary of a model's own tokenizer, with the chat template that is to be used.

    Raises:
        FileNotFoundError: If there is no such template.
    """
    tokenizer = load_tokenizer(source.model, revision=source.revision, trust_remote_code=source.trust_remote_code)
    if source.chat_template is not None:
        file = Path(source.chat_template)
        if not file.is_file():
            raise FileNotFoundError(
                f"chat_template must be a Jinja file, and there is none at {source.chat_template!r}; check the path "
                "(relative paths start at the working folder), or leave it out to use the tokenizer's own template"
            )
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    return CanonicalVocabulary.from_tokenizer(tokenizer)


@dataclass(kw_only=True)
class Student(ModelSource):
    """The model that learns.

    Attributes:
        weights: ``pretrained`` loads them; ``random`` builds the model from its configuration, under the run's seed.
        activation_checkpointing: Keep only the inputs of every layer for the backward pass, and run the layer again
            there: less memory, about a third more of the student's time.
        adapter: Train low-rank updates of the layers, and nothing else; checkpoints hold the adapter alone. None
            trains all weights.
        quantization: Load the layers below the adapter in 8 or 4 bits (NF4) with bitsandbytes (QLoRA); embedding, head
            and normalizations keep their ``dtype``.

    Raises:
        ValueError: If an adapter is to be put on random weights, or a quantized student has none.
    """

    weights: Literal["pretrained", "random"] = "pretrained"
    activation_checkpointing: bool = False
    adapter: LoRA | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.adapter is not None and self.weights == "random":
            raise ValueError(
                "an adapter leaves the weights below it as they are, and got weights='random'; use pretrained weights, "
                "or leave the adapter out"
            )
        if self.quantization is not None and self.adapter is None:
            raise ValueError(
                f"quantized weights cannot be trained, and got quantization={self.quantization!r} of a student without "
                "an adapter; give it one (adapter: {rank: 16}), or leave quantization out"
            )


@dataclass(kw_only=True)
class Teacher(ModelSource):
    r"""One teacher and how the student learns from it.

    Attributes:
        loss: The loss per span. ``auto``: TokenKL for the student's own tokenizer, else ProjectionKL or HybridKL as
            the coverage audit recommends; the choice and its reason are logged.
        alpha: Static weight :math:`\alpha_m >= 0` of this teacher in :math:`L_{KD} = \sum_m \alpha_m L_m`. At 0
            nothing is learned from it, but it is still loaded, run and logged.
        temperature: Softmax temperature > 0 on both sides; the loss is multiplied by its square.
        projection: A file of ``python -m xtoken_pl project``; None builds W from the two tokenizers.
        learn_projection: Learn the weights of W together with the student; for ProjectionKL.
        cpu_offload: Keep the weights in the host's memory, but for the teacher's pass; its head stays for the losses.
        quantization: Load the layers in 8 or 4 bits (NF4) with bitsandbytes; the head keeps its ``dtype``. Such a
            teacher is held whole by every process, sharded or not.
        cache: A folder of ``python -m xtoken_pl cache``: the teacher's distributions are read from it, and its weights
            are not loaded. Where k tokens of a row are stored, the loss sees the others as one bucket
            (``teacher_top_k``), evenly shared by those of them that a term compares.

    Raises:
        ValueError: If alpha is negative or no number, temperature is not > 0, the loss has no use for
            ``projection`` or ``learn_projection``, or a quantized teacher is to be offloaded.
    """

    loss: SpanLoss | Literal["auto"] = "auto"
    alpha: float = 1.0
    temperature: float = 1.0
    projection: str | None = None
    learn_projection: bool = False
    cpu_offload: bool = False
    quantization: Quantization | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        check_not_negative("alpha", self.alpha, "0 switches a teacher off")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be > 0, got {self.temperature}; 1 leaves the distributions as they are")
        if self.quantization is not None and self.cpu_offload:
            raise ValueError(
                f"quantization={self.quantization!r} and cpu_offload exclude each other (quantized weights stay where "
                "they were made); leave one out"
            )
        if isinstance(self.loss, SpanLoss):
            self.check_loss(self.loss)
        elif self.loss != "auto":
            raise ValueError(f"loss must be a SpanLoss or 'auto', got {self.loss!r}; name a class by its class_path")

    def check_loss(self, loss: SpanLoss) -> None:
        """Refuses options that ``loss``, given or chosen, has no use for.

        Raises:
            ValueError: For a projection, or one to be learned, beside a loss that does nothing with it.
        """
        kind = type(loss).__name__
        if self.projection is not None and not loss.needs_projection:
            raise ValueError(
                f"a projection was given, but {kind} uses none; leave `projection` out, "
                "or use a loss that projects (ProjectionKL)"
            )
        if self.learn_projection and not loss.can_learn_projection:
            raise ValueError(
                f"learn_projection needs a loss whose gradient reaches the weights of W, and {kind} gives them none"
                f"{' (W only chooses its pairs)' if loss.needs_projection else ''}; "
                "leave learn_projection out, or use ProjectionKL"
            )
