"""What a teacher costs in batches that it does not teach: ``python -m benchmarks.domains``.

The quickstart's student and texts, 2 windows of 256 tokens; SmolLM2-135M teaches twice, under two names. Steps (forward
and backward) with both teachers are compared with steps of a run that has the first one alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, islice
from typing import Any, cast

import lightning.pytorch as pl

from benchmarks.measure import Figure, ratios, run
from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TextSource
from xtoken_pl.batch import DOMAIN, DistillBatch
from xtoken_pl.cli.prepare import prepare
from xtoken_pl.data import collate

_WINDOWS, _ROUNDS = 2, 7


def figures() -> Iterator[Figure]:
    """Ratios of step times: of a batch that the second teacher does not teach, and of one that it does."""
    prepare()
    text = "quickstart/corpus/val.jsonl"
    alone, alone_data = _connected(["first"], TextSource(path=text))
    sources = {"own": TextSource(path=text, teachers=["first"]), "both": TextSource(path=text)}
    both, both_data = _connected(["first", "second"], sources)
    candidates = {
        name: partial(_step, both, _batch(both_data, domain, list(both.teachers)))
        for domain, name in enumerate(("without a window", "with all windows"))
    }
    baseline = partial(_step, alone, _batch(alone_data, 0, list(alone.teachers)))
    times = ratios(baseline, candidates, _ROUNDS)
    for name, target in (("without a window", 1.02), ("with all windows", None)):
        label = f"a second teacher {name} in the batch: step against a step without it"
        yield Figure(label, times.ratio(name), "x", target, note=times.note(name))


def _connected(
    names: Sequence[str], train: TextSource | dict[str, TextSource]
) -> tuple[MultiTeacherDistillModule, DistillDataModule]:
    """A module with a teacher for each name, and its data."""
    pl.seed_everything(0, verbose=False)
    teachers = {name: Teacher(model="quickstart/teacher-smollm2", loss=ProjectionKL()) for name in names}
    module = MultiTeacherDistillModule(Student(model="quickstart/student", weights="random"), teachers)
    data = DistillDataModule(train, sequence_length=256, num_workers=0)
    module.connect(data)
    data.setup("fit")
    module.configure_model()
    module.train()
    return module, data


def _batch(data: DistillDataModule, domain: int, teachers: Sequence[str]) -> DistillBatch:
    """The first windows of a domain."""
    windows = (data.window("train", index) for index in count())
    return collate(list(islice((w for w in windows if w.get(DOMAIN, 0) == domain), _WINDOWS)), teachers)


def _step(module: MultiTeacherDistillModule, batch: DistillBatch) -> None:
    module.zero_grad()
    cast(dict[str, Any], module.training_step(batch, 0))["loss"].backward()


if __name__ == "__main__":
    run(figures)
