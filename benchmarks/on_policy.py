"""An on-policy step of the quickstart against its parts alone: ``python -m benchmarks.on_policy``."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from benchmarks.measure import Figure, run, seconds
from benchmarks.quickstart import fit
from xtoken_pl import CanonicalVocabulary
from xtoken_pl.cli.prepare import prepare
from xtoken_pl.data import collate
from xtoken_pl.rollouts import Request, Rollout, Sampling, TransformersEngine

_STEPS, _WARM_UP = 13, 3


class RecordingEngine(TransformersEngine):
    """Remembers what it was asked last."""

    asked: tuple[Sequence[Request], Sampling]

    def write(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        student: PreTrainedModel,
        vocabulary: CanonicalVocabulary,
    ) -> list[Rollout]:
        """Writes as its base does."""
        self.asked = requests, sampling
        return super().write(requests, sampling, student, vocabulary)


class ThreeParts(pl.Callback):
    """After every step: its generation, its teacher's forward pass and its student's step, of copies and by themselves.

    The copy of the student has the weights that the step began with, so that it writes the same texts.
    """

    def __init__(self) -> None:
        self.whole: list[float] = []
        self.parts: list[tuple[float, float, float]] = []
        self.tokens_per_second: list[float] = []
        self._engine = RecordingEngine()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copies the student."""
        module: Any = pl_module
        module.rollouts.engine = self._engine
        self._student = copy.deepcopy(module.student)
        self._optimizer = torch.optim.AdamW(self._student.parameters(), lr=1e-3)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The step begins."""
        module: Any = pl_module
        self._student.load_state_dict(module.student.state_dict())
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is over, its logging included."""
        self.whole.append(time.perf_counter() - self._start)
        module: Any = pl_module
        written = module.written
        ((name, loaded),) = module.loaded_teachers.items()
        rollouts = collate(written.windows, [name])
        writing = partial(self._engine.write, *self._engine.asked, self._student, module.student_vocabulary)
        teacher = partial(_forward, loaded.model, rollouts.teachers[name].tokens)
        self.parts.append((seconds(writing), seconds(teacher), seconds(partial(self._student_step, rollouts.student))))
        self.tokens_per_second.append(sum(len(rollout.ids) for rollout in written.rollouts) / written.seconds)

    def _student_step(self, tokens: Any) -> None:
        """A step on the cross-entropy of the same tokens."""
        self._optimizer.zero_grad()
        logits = self._student(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
        F.cross_entropy(logits.flatten(0, 1)[tokens.rows], tokens.labels).backward()
        torch.nn.utils.clip_grad_norm_(self._student.parameters(), 1.0)
        self._optimizer.step()


@torch.no_grad()
def _forward(model: Any, tokens: Any) -> None:
    model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False)


def figures() -> Iterator[Figure]:
    """One run in which every step is on-policy; whole steps and their parts take turns."""
    prepare()
    parts = ThreeParts()
    with tempfile.TemporaryDirectory() as folder:
        callbacks = ["TeacherMonitor", "RolloutMonitor"]
        names = ["quickstart", "quickstart_on_policy"]
        fit(names, _STEPS, folder, "--model.rollouts.share=1.0", callbacks=callbacks, callback=parts)
    whole, alone = parts.whole[_WARM_UP:], parts.parts[_WARM_UP:]
    ratio = statistics.median(step / sum(own) for step, own in zip(whole, alone, strict=True))
    medians = (f"{statistics.median(own):.2f}" for own in zip(*alone, strict=True))
    note = f"{statistics.median(whole):.2f} s / ({' + '.join(medians)}) s"
    what = "on-policy: step against generation + teacher forward + student step with CE alone"
    yield Figure(what, ratio, "x", 1.15, note=note)
    speed = statistics.median(parts.tokens_per_second[_WARM_UP:])
    yield Figure("on-policy: tokens written", speed, "tokens/s")


if __name__ == "__main__":
    run(figures)
