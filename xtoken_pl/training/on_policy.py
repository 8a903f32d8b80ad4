"""Batches of on-policy steps: what the student has written from the prompts of the data's batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, DistillBatch, Prompt, as_steps
from xtoken_pl.data import collate
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.row_servers import add_served_rows
from xtoken_pl.rollouts import Request, Rollout
from xtoken_pl.rollouts.reading import RolloutReader
from xtoken_pl.rollouts.written import WrittenStep
from xtoken_pl.scoring.tasks import RowScores
from xtoken_pl.training.resumable import ResumableModule
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import attached_trainer
from xtoken_pl.utilities.processes import data_share

if TYPE_CHECKING:
    from xtoken_pl.data import DistillDataModule

# M teachers, N student rows, S spans

_BLANK: Window = {STUDENT_IDS: [0], LOSS_MASK: [0]}


class WritingModule(ResumableModule):
    """The part of :class:`xtoken_pl.MultiTeacherDistillModule` that writes the batches of on-policy steps.

    The arguments are those of :class:`xtoken_pl.training.parts.DistillParts`.

    Attributes:
        written: Rollouts of this process in the last on-policy step; None before the first.
        around_writing: Context in which the student writes; a callback sets it to time it.
        around_asking: Context in which servers of teachers are asked for the rows of what it wrote, likewise.
    """

    kd_scale: Callable[[Tensor, Tensor], Tensor]
    fixed_kd_scale: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.written: WrittenStep | None = None
        self.around_writing: Callable[[], AbstractContextManager[None]] = nullcontext
        self.around_asking: Callable[[], AbstractContextManager[None]] = nullcontext
        self._written_batches: list[DistillBatch] = []
        self._reader: RolloutReader | None = None

    def connect(self, data: DistillDataModule) -> None:
        """Connects a data module, and reads rollouts anew at its length of sequences."""
        super().connect(data)
        self._reader = None

    def setup(self, stage: str) -> None:
        """Binds the losses, and logs which steps are on-policy and what the losses are multiplied by."""
        super().setup(stage)
        if stage == "fit" and self.rollouts is not None:
            rank_zero_info(f"rollouts: {self._losses_of_steps()}")

    def _losses_of_steps(self) -> str:
        assert self.rollouts is not None
        own_text = f"learns its own text, at {self.kd_weight:g} KD without CE"
        if not self.rollouts.learns_data:
            return f"the student {own_text}, in every optimizer step"
        is_fixed = self.kd_scale == self.fixed_kd_scale
        scale = f"{self.kd_weight:g}" if is_fixed else getattr(self.kd_scale, "__qualname__", str(self.kd_scale))
        after = f" after the first {warm_up:,}" if (warm_up := self.rollouts.warm_up_steps) else ""
        return (
            f"in a share of {self.rollouts.share:g} of the optimizer steps{after} the student {own_text}; in the "
            f"others it learns the data, at {self.ce_weight:g} CE + {scale} KD"
        )

    @property
    def is_on_policy_step(self) -> bool:
        """Whether the student writes the text of the current optimizer step."""
        return self.rollouts is not None and self.rollouts.is_on_policy(self.global_step)

    def written_batch(self, batch: DistillBatch) -> DistillBatch:
        """Returns the batch that the student has written from the prompts of a batch.

        At the first batch of an optimizer step it writes those of the whole step: the weights stay the same until its
        end, and the losses are divided by the counts of all its batches. Every process has to call this method.
        """
        step = batch.step_counts
        if step.is_first:
            if step.prompts is None:
                raise UserError(
                    "the student writes from prompts, and the batches of an on-policy step have none; use "
                    "DistillDataModule, give every DistillBatch its `prompts`, or leave model.rollouts out"
                )
            self._finite.check()  # weights that are NaN write nothing
            self._written_batches = self._write_step(step.prompts)
        assert len(self._written_batches) == step.num_batches, (
            f"batch {step.place + 1} of a step came without the first one"
        )
        return self._written_batches[step.place].to(batch.student.labels.device)

    @property
    def last_written_batch(self) -> DistillBatch:
        """The last batch of the last on-policy step."""
        return self._written_batches[-1]

    def _write_step(self, prompts: Sequence[Sequence[Prompt | None]]) -> list[DistillBatch]:
        """Writes the texts of all batches of an optimizer step, given the prompts of each."""
        asked = list(self._requests(prompts))
        begin = perf_counter()
        rollouts = self._write([request for _, _, request in asked])
        seconds = perf_counter() - begin
        of_text = [prompt for _, prompt, _ in asked]
        windows = self._rollout_reader.read(of_text, rollouts)
        self.written = WrittenStep(self.global_step, of_text, rollouts, windows, seconds)

        teachers, planners = list(self.teachers), self.planners()
        batches: list[DistillBatch] = []
        for number in range(len(prompts)):
            own = [window for window, (place, _, _) in zip(windows, asked, strict=True) if place == number]
            batches.append(replace(collate(own or [_BLANK], teachers, planners), is_rollout=True))
        with self.around_asking():
            add_served_rows(batches, self.servers)
        return [replace(batch, step=counts) for batch, counts in zip(batches, as_steps(batches), strict=True)]

    def _write(self, requests: list[Request]) -> list[Rollout]:
        assert self.rollouts is not None
        engine = self.rollouts.engine
        with self.around_writing():
            rollouts = engine.write(requests, self.rollouts.sampling, self.student, self.student_vocabulary)
        if len(rollouts) != len(requests):
            raise UserError(
                f"an engine must write one rollout for each request, but {type(engine).__name__}.write returned "
                f"{len(rollouts)} for {len(requests)}; correct the engine"
            )
        return rollouts

    def _requests(self, prompts: Sequence[Sequence[Prompt | None]]) -> Iterator[tuple[int, Prompt, Request]]:
        """Yields the number of the batch, the prompt and the request of every text of an optimizer step.

        The seed of a request is made of the place of its prompt among those of all processes, which share the data out
        row by row: it is the same however they are distributed and cut into batches.
        """
        assert self.rollouts is not None
        place, num_shares = data_share(attached_trainer(self))
        for number, of_batch in enumerate(prompts):
            for prompt in of_batch:
                if prompt is not None:
                    stop_ids = self._rollout_reader.stop_ids(prompt)
                    for sample in range(self.rollouts.num_samples):
                        seed = (self.rollouts.draw_seed, self.global_step, place, sample)
                        yield number, prompt, Request(prompt.ids[""], stop_ids, seed)
                place += num_shares

    @property
    def _rollout_reader(self) -> RolloutReader:
        if self._reader is None:
            limit = sys.maxsize if self.sequence_length is None else self.sequence_length
            self._reader = RolloutReader(self.student_vocabulary, self.teacher_vocabularies, limit)
        return self._reader


def text_sums(scores: RowScores, batch: DistillBatch, num_bytes_of_token: Tensor) -> Tensor:
    """Adds up the negative log-likelihood of a batch's text, and its bytes; tokens without bytes are left out.

    Args:
        scores: Scores of the batch, with the teachers' likelihoods.
        batch: The batch.
        num_bytes_of_token: ``[V_s]`` number of bytes of each token of the student's vocabulary.

    Returns:
        ``[1 + M, 2]``, by the student over all its tokens, and by each teacher over its spans.
    """
    num_bytes = num_bytes_of_token[batch.student.labels]  # [N]
    sides = [(scores.token_nats.detach(), num_bytes)]
    for name, nats in scores.teacher_nats.items():
        sides.append((nats, batch.teachers[name].spans.sum_student_rows(num_bytes)))  # [S]
    sums = [torch.stack((nats.where(size > 0, 0).sum(), size.sum().to(nats.dtype))) for nats, size in sides]
    return torch.stack(sums)
