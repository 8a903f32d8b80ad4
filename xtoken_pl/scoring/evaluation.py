"""The two passes over a batch: scores, and then gradients for weights that are known only when all is scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xtoken_pl.batch import Block, RowCuts
from xtoken_pl.losses.base import SideRows, SpanScores, observed_log_probs
from xtoken_pl.models.head import accumulate_product, logits
from xtoken_pl.scoring.kept import KeptGradients, subtract_at
from xtoken_pl.scoring.memory import BlockSizes, LogitMemory
from xtoken_pl.scoring.pieces import StudentLeaves
from xtoken_pl.scoring.shares import Shares
from xtoken_pl.scoring.tasks import GivenRows, HiddenRows, RowScores, TeacherTask

# N/Q student/teacher rows, P rows of a block or piece, S spans, H hidden size, V_s/V_t vocabulary sizes

#: Weight and bias of every side, in the precision of their products.
_Heads = Mapping[str, tuple[Tensor, Tensor | None]]


class Evaluation:
    """One batch: the first pass scores it, the second computes the gradients."""

    def __init__(
        self,
        student: HiddenRows,
        teachers: Mapping[str, TeacherTask],
        cuts: RowCuts,
        memory: LogitMemory,
        shares: Shares,
    ) -> None:
        self.student, self.teachers, self.memory, self.shares = student, teachers, memory, shares
        layer = student.head.layer
        # Several teachers may share a loss.
        losses = nn.ModuleList(task.loss for task in teachers.values())
        self.parameters = [parameter for parameter in losses.parameters() if parameter.requires_grad]
        #: Differentiable inputs: hidden states, the head's weight and bias, and parameters of the losses.
        self.inputs: list[Tensor | None] = [
            student.hidden,
            layer.weight,
            getattr(layer, "bias", None),
            *self.parameters,
        ]
        self.is_differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in self.inputs)
        heads = {name: task.rows for name, task in teachers.items() if isinstance(task.rows, HiddenRows)}
        #: Rows that have logits, by teacher; "" is the student.
        self.sides: dict[str, HiddenRows] = {"": student, **heads}
        kind = student.hidden.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        #: Precision of the heads' products, by side.
        self.dtypes = {name: autocast or rows.head.layer.weight.dtype for name, rows in self.sides.items()}
        self.loss_dtype = torch.promote_types(self.dtypes[""], torch.float32)
        num_rows = max(len(side.labels) for side in self.sides.values())
        cuts = shares.own(cuts)
        sizes = BlockSizes.from_budget(
            memory.budget_on(kind),
            num_rows=num_rows if shares.number == 1 else min(num_rows, cuts.num_rows),
            student_size=student.head.vocabulary_size,
            teacher_sizes=[rows.head.vocabulary_size for rows in heads.values()],
            dtype=self.loss_dtype,
            kind=kind,
            known_sizes=[len(task.rows.holes) for task in teachers.values() if isinstance(task.rows, GivenRows)],
            hidden_sizes=[student.hidden.shape[1] for task in teachers.values() if task.loss.needs_hidden_states],
            logits_dtype=max(self.dtypes.values(), key=lambda dtype: dtype.itemsize),
        )
        # Without any row, an empty block connects the zero loss to the parameters.
        self.blocks = cuts.blocks(sizes.block_rows, sizes.piece_rows) or [Block.empty(teachers)]
        #: Rows of the largest block, by side.
        self.capacities = {name: max(block.num_rows(name) for block in self.blocks) for name in self.sides}
        # The gradient of a loss's own parameters is no sum over rows: their blocks are computed again.
        keeps = self.is_differentiable and not self.parameters
        self.num_kept = sizes.kept_rows // max(1, self.capacities[""]) if keeps else 0  # first blocks
        self.kept: dict[int, KeptGradients] = {}  # by block
        self.still_there: dict[int, dict[str, Tensor]] = {}  # by block, the memory of each side's logits

    # The first pass ------------------------------------------------------------------------------------------------

    def score(self) -> RowScores:
        """Scores all blocks, and keeps what there is room for."""
        # Filled in place: small results that stay among large ones that go would leave gaps in the memory.
        scores: RowScores | None = None
        num_spans = {name: len(task.spans) for name, task in self.teachers.items()}
        with torch.no_grad(), self._full_precision():
            heads = self._heads(self.sides)
            for index, block in enumerate(self.blocks):
                kept = None
                if index < self.num_kept:
                    room = self.capacities[""]
                    kept = KeptGradients.allocate(self.student, self.teachers, room, self.loss_dtype, self.memory)
                    self.kept[index] = kept
                # The second pass begins with the last block, whose logits are still there.
                stays = self.is_differentiable and kept is None and block is self.blocks[-1]
                with self._logits(index, heads, stays=stays) as rows:
                    for piece in block.pieces:
                        part = self._score_piece(block, piece, rows, kept)
                        scores = scores or RowScores.room_for(part, len(self.student.labels), num_spans)
                        scores.write(piece, part)
            assert scores is not None, "every block has a piece"
            if self.shares.has_unchecked(self.teachers):
                self.shares.check_alike(self.teachers, scores, self._score_nothing(heads))
        self.shares.add_up(scores.vectors())
        return scores

    def _score_nothing(self, heads: _Heads) -> RowScores:
        nothing = Block.empty(self.teachers)
        none = {name: weight.new_empty(0, len(weight)) for name, (weight, _) in heads.items()}
        return self._score_piece(nothing, nothing.pieces[0], none, None)

    def _score_piece(
        self, block: Block, piece: Block, rows: Mapping[str, Tensor], kept: KeptGradients | None
    ) -> RowScores:
        inside = _inside(piece.student_rows, block.student_rows)
        log_probs = self.student.head.normalize(rows[""][inside])  # [P, V_s]
        labels = self.student.labels[piece.student_rows]
        token_nats = -observed_log_probs(log_probs, labels)
        slope = None
        if kept is not None:
            torch.exp(log_probs, out=kept.probs[inside])
            slope = self._slope(rows[""][inside])
        spans: dict[str, SpanScores] = {}
        confidence: dict[str, Tensor] = {}
        nats: dict[str, Tensor] = {}
        for name, task in self.teachers.items():
            teacher = self._teacher_side(name, block, piece, rows)
            with torch.set_grad_enabled(kept is not None):
                leaves = StudentLeaves.from_piece(self.student, piece, log_probs, [task])
                scores = leaves.score(name, task, piece, teacher)
                if kept is not None:
                    gradient, of_hidden, _ = leaves.gradients(scores.loss.sum())
                    kept.units[name][inside] = self._to_logits(gradient, kept.probs[inside], slope)
                    if of_hidden is not None:
                        kept.hidden_units.setdefault(name, []).append(of_hidden)
            spans[name] = scores._replace(loss=scores.loss.detach())
            if (of_spans := task.span_confidence(piece.rows(name), piece.spans[name], teacher)) is not None:
                confidence[name] = of_spans
            if (of_text := task.span_nats(piece.rows(name), piece.spans[name], teacher)) is not None:
                nats[name] = of_text
        if kept is not None and slope is not None:
            kept.apply_slope(inside, slope, labels)
        return RowScores(token_nats, spans, confidence, nats)

    # The second pass -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def gradients(
        self, token_nats: Tensor, losses: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the hidden states, the head's weight and bias, and the losses' parameters.

        Args:
            token_nats, losses: Gradients with respect to the results of :meth:`score`.
            wanted: Which gradients are needed.
        """
        size = self.student.head.vocabulary_size
        grads = [
            torch.empty_like(x) if want and x is not None else None for x, want in zip(self.inputs, wanted, strict=True)
        ]
        hidden, weight, bias, *of_parameters = grads
        if weight is not None:
            weight[size:].zero_()
        rows_elsewhere = hidden if self.shares.number > 1 else None
        for grad in (rows_elsewhere, bias, *of_parameters):
            if grad is not None:
                grad.zero_()
        span_weights = dict(zip(self.teachers, losses, strict=True))
        with self._full_precision():
            nothing_again = len(self.kept) + len(self.still_there) == len(self.blocks)
            heads = self._heads([""] if nothing_again else self.sides)
            last = len(self.blocks) - 1
            for index, block in reversed(list(enumerate(self.blocks))):
                logit_grad, of_losses = self._gradients_of(index, heads, token_nats, span_weights, of_parameters)
                head_weight, _ = heads[""]
                logit_grad = logit_grad.to(head_weight.dtype)  # [P, V_s]
                if hidden is not None:
                    hidden[block.student_rows] = (logit_grad @ head_weight + of_losses).to(hidden.dtype)  # [P, H]
                if weight is not None:
                    rows = self.student.hidden[block.student_rows].to(head_weight.dtype)
                    accumulate_product(weight[:size], logit_grad, self.shares.scaled(rows), is_first=index == last)
                if bias is not None:
                    bias[:size] += self.shares.scaled(logit_grad.sum(0))
        self.shares.add_up([] if hidden is None else [hidden])
        of_parameters = [None if grad is None else self.shares.scaled(grad) for grad in of_parameters]
        return hidden, weight, bias, *of_parameters

    def _gradients_of(
        self,
        index: int,
        heads: _Heads,
        token_nats: Tensor,
        span_weights: Mapping[str, Tensor],
        of_parameters: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor | float]:
        """The gradients of a block, from what was kept of it or from its logits.

        Adds to the gradients of the losses' parameters.

        Returns:
            ``[P, V_s]`` of the logits, in memory that the next block overwrites, and ``[P, H]`` of the hidden states
            that losses read, or 0.
        """
        block, kept = self.blocks[index], self.kept.pop(index, None)
        if kept is not None:
            kept.give_back(self.memory)
            return kept.combine(block, self.student, self.teachers, token_nats, span_weights)
        of_hidden: list[Tensor] = []
        with self._logits(index, heads) as rows:
            for piece in block.pieces:
                inside = _inside(piece.student_rows, block.student_rows)
                log_probs = self.student.head.normalize(rows[""][inside])
                with torch.enable_grad():
                    leaves = StudentLeaves.from_piece(self.student, piece, log_probs, self.teachers.values())
                    total = log_probs.new_zeros(())
                    for name, task in self.teachers.items():
                        scores = leaves.score(name, task, piece, self._teacher_side(name, block, piece, rows))
                        total = total + (scores.loss * span_weights[name][piece.spans[name]]).sum()
                    grad, of_states, others = leaves.gradients(total, self.parameters)
                for sum_, other in zip(of_parameters, others, strict=True):
                    if sum_ is not None:
                        sum_ += other
                if of_states is not None:
                    of_hidden.append(of_states)
                weight = token_nats[piece.student_rows, None].to(grad.dtype)
                subtract_at(grad, leaves.labels, weight)
                rows[""][inside] = self._to_logits(grad, log_probs.exp(), self._slope(rows[""][inside]))
        return rows[""], torch.cat(of_hidden) if of_hidden else 0.0

    # What both passes do -------------------------------------------------------------------------------------------

    def _full_precision(self) -> torch.autocast:
        """Products have their own precision; everything else is computed in float32 at least."""
        return torch.autocast(self.student.hidden.device.type, enabled=False)

    def _slope(self, logits: Tensor) -> Tensor | None:
        """The slope of the student's transformation of its logits, ``[P, V_s]``; None if it has none."""
        transform = self.student.head.transform
        return None if transform is None else transform.slope(logits)

    def _to_logits(self, grad: Tensor, probs: Tensor, slope: Tensor | None) -> Tensor:
        """The gradient of the student's log-probabilities as that of its logits; in place."""
        if (holes := self.student.head.holes) is not None:
            grad.masked_fill_(holes.to(grad.device), 0.0)
        grad.addcmul_(probs, grad.sum(-1, keepdim=True), value=-1)
        return grad if slope is None else grad.mul_(slope)

    def _heads(self, names: Iterable[str]) -> _Heads:
        return {name: self.sides[name].head.parameters(self.dtypes[name]) for name in names}

    @contextmanager
    def _logits(self, index: int, heads: _Heads, *, stays: bool = False) -> Iterator[dict[str, Tensor]]:
        """``[P, V]`` of every side of a block, in memory that the next block gets again.

        Args:
            stays: Whether the logits stay where they are until they are asked for again.
        """
        block = self.blocks[index]
        matrices = self.still_there.pop(index, None) or self._compute_logits(block, heads)
        yield {name: matrix[: block.num_rows(name)] for name, matrix in matrices.items()}
        if stays:
            self.still_there[index] = matrices
        else:
            self.memory.give(*matrices.values())

    def _compute_logits(self, block: Block, heads: _Heads) -> dict[str, Tensor]:
        matrices: dict[str, Tensor] = {}
        for name, side in self.sides.items():
            hidden, (weight, bias) = side.hidden[block.rows(name)], heads[name]
            matrices[name] = self.memory.take(self.capacities[name], len(weight), weight.dtype, weight.device)
            logits(hidden, weight, bias, out=matrices[name][: len(hidden)])
        return matrices

    def _teacher_side(self, name: str, block: Block, piece: Block, rows: Mapping[str, Tensor]) -> SideRows:
        piece_rows = piece.rows(name)
        of_piece = rows[name][_inside(piece_rows, block.rows(name))] if name in rows else None
        return self.teachers[name].side(piece_rows, piece.spans[name], of_piece)


def _inside(piece: slice, block: slice) -> slice:
    return slice(piece.start - block.start, piece.stop - block.start)
