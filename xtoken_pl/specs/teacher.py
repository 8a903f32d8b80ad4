"""A teacher as a plain specification; its weights are loaded when training starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from xtoken_pl.batch import SPAN_KINDS, SpanKind
from xtoken_pl.losses import SpanLoss
from xtoken_pl.specs.model_source import ModelSource, Quantization
from xtoken_pl.specs.server import Server
from xtoken_pl.utilities.checks import check_not_negative
from xtoken_pl.utilities.errors import UserError

#: Rules that choose a loss for a pair of tokenizers; see :func:`xtoken_pl.recommend_loss`.
AutoLoss = Literal["auto", "auto_paper"]


@dataclass(kw_only=True)
class Teacher(ModelSource):
    r"""One teacher and how the student learns from it.

    Attributes:
        loss: Loss per span, or the rule that chooses it for the pair of tokenizers: ``auto``, or ``auto_paper`` for
            the paper's rule, the coverage audit (:func:`xtoken_pl.recommend_loss`). The choice and its reason are
            logged.
        alpha: Static weight :math:`\alpha_m >= 0` of this teacher in :math:`L_{KD} = \sum_m \alpha_m L_m`. At 0
            nothing is learned from it, but it is still loaded, run and logged.
        spans: Weight >= 0 of each kind of span (``one_to_one``, ``one_to_many``, ``many_to_one``, ``many_to_many``:
            student tokens to teacher tokens), by which the loss of every span of the kind is multiplied. The sum over
            spans is divided by the sum of their weights, so that 0 leaves a kind out. A missing kind has the weight 1.
        temperature: Softmax temperature > 0 on both sides; the loss is multiplied by its square.
        projection: File written by ``python -m xtoken_pl project``; None builds W from the two tokenizers.
        learn_projection: Whether to learn the weights of W together with the student; for ProjectionKL.
        compile_loss: Whether to compile the loss with ``torch.compile``, which fuses its elementwise passes over the
            vocabulary; for losses that do not plan each batch. The results are the same but for rounding. Off by
            default, since no gain has been measured on a GPU.
        cpu_offload: Whether to hold the weights in CPU memory except during the teacher's forward pass; a copy of its
            head stays on the device for the losses.
        adapter: PEFT adapter on top of ``model``, a directory or a hub id. Teachers that load the same ``model`` with
            the same options share its weights in memory, each with an adapter of its own or none.
        quantization: Load the layers in 8 or 4 bits (NF4) with bitsandbytes; the head keeps its ``dtype``. Every
            process holds a whole quantized teacher, even under a strategy that shards.
        cache: Cache directory, as written by ``python -m xtoken_pl cache``: the teacher's distributions are read from
            it, and its weights are not loaded. If only k tokens of a row are stored, the loss treats the others as one
            bucket (``teacher_top_k``), whose mass is shared evenly by those of them that a term compares.
        server: Server that runs the teacher; only the tokenizer is loaded here. With a ``cache``, too, the server
            builds it, and training reads it.

    Raises:
        UserError: If no model is named, alpha is negative or not finite, ``spans`` names an unknown kind, has a weight
            that is negative or not finite, or leaves all kinds out, temperature is not > 0 (with a server: not 1), the
            loss cannot use ``projection`` or ``learn_projection``, or options exclude each other.
    """

    loss: SpanLoss | AutoLoss = "auto"
    alpha: float = 1.0
    spans: dict[SpanKind, float] = field(default_factory=dict)
    temperature: float = 1.0
    projection: str | None = None
    learn_projection: bool = False
    compile_loss: bool = False
    cpu_offload: bool = False
    adapter: str | None = None
    quantization: Quantization | None = None
    cache: str | None = None
    server: Server | None = None
    model: str = ""  # by default the server's name for it

    def __post_init__(self) -> None:
        if not self.model:
            if self.server is None or not self.server.model:
                raise UserError(
                    "a teacher needs a `model`: a directory or a hub id, of its tokenizer and, without a server, its "
                    "weights"
                )
            self.model = self.server.model
        if self.server is not None:
            self.server = replace(self.server, model=self.server.model or self.model)
            self._check_served()
        check_not_negative("alpha", self.alpha, "0 disables a teacher")
        self._check_spans()
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature must be > 0, got {self.temperature}; 1 leaves the distributions unchanged")
        if self.quantization is not None and self.cpu_offload:
            raise UserError(
                f"quantization={self.quantization!r} and cpu_offload exclude each other (quantized weights stay on "
                "their device); leave one out"
            )
        if isinstance(self.loss, SpanLoss):
            self.check_loss(self.loss)
        elif self.loss not in get_args(AutoLoss):
            rules = " or ".join(map(repr, get_args(AutoLoss)))
            raise UserError(f"loss must be a SpanLoss, {rules}, got {self.loss!r}; name a class by its class_path")

    @property
    def span_loss(self) -> SpanLoss:
        """The loss, once a rule has chosen it; see :attr:`xtoken_pl.MultiTeacherDistillModule.teachers_with_losses`."""
        assert isinstance(self.loss, SpanLoss), "choose_loss comes first"
        return self.loss

    @property
    def kind_weights(self) -> tuple[float, ...] | None:
        """Weights of the kinds of spans, in the order of ``SPAN_KINDS``; None if all of them are 1."""
        weights = tuple(float(self.spans.get(kind, 1.0)) for kind in SPAN_KINDS)
        return None if set(weights) == {1.0} else weights

    @property
    def origin(self) -> str | None:
        """Describes where the rows come from if the teacher does not run in this process; None if it does."""
        if self.cache is not None:
            return f"from the cache {self.cache}"
        if self.server is not None:
            return f"served by {self.server.url} as {self.server.model}, k = {self.server.top_k}"
        return None

    def _check_spans(self) -> None:
        kinds = ", ".join(SPAN_KINDS)
        for kind, weight in self.spans.items():
            if kind not in SPAN_KINDS:
                raise UserError(f"spans must name kinds of spans ({kinds}), got {kind!r}; correct or remove it")
            check_not_negative(f"spans.{kind}", weight, "0 leaves spans of this kind out, 1 is the default")
        if not any(self.kind_weights or [1.0]):
            raise UserError(
                f"spans must give at least one kind ({kinds}) a weight > 0, got {self.spans}; raise one, or set alpha "
                "to 0 to learn nothing from the teacher"
            )

    def _check_served(self) -> None:
        if self.temperature != 1.0:
            raise UserError(
                f"temperature of a served teacher must be 1, got {self.temperature}: the k tokens that a server gives "
                "do not tell how its other tokens share their mass at another temperature; leave it out"
            )
        weights = {"adapter": self.adapter, "quantization": self.quantization, "cpu_offload": self.cpu_offload}
        for name, value in weights.items():
            if value:
                raise UserError(
                    f"{name} is about weights in this process, and a served teacher has none, got {value!r}; leave it "
                    "out, and set it where the server is started"
                )

    def check_loss(self, loss: SpanLoss) -> None:
        """Checks that ``loss`` can use this teacher's ``projection`` and ``learn_projection``.

        Raises:
            UserError: If the loss uses no projection, or gives its weights no gradient.
        """
        kind = type(loss).__name__
        if self.projection is not None and not loss.needs_projection:
            raise UserError(
                f"projection must not be set for a loss that has no use for it: {kind} uses none; leave `projection` "
                "out, or use a loss that projects (ProjectionKL)"
            )
        if self.learn_projection and not loss.can_learn_projection:
            raise UserError(
                f"learn_projection needs a loss whose gradient reaches the weights of W, but {kind} gives them none"
                f"{' (W only chooses its pairs)' if loss.needs_projection else ''}; "
                "leave learn_projection out, or use ProjectionKL"
            )
