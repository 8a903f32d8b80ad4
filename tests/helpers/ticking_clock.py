"""A clock that a test sets, and a trainer without a run, for what ThroughputMonitor counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.profilers import PassThroughProfiler


class Clock:
    """Replaces `perf_counter`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in ("throughput_monitor", "clocks"):
            monkeypatch.setattr(f"xtoken_pl.callbacks.{module}.perf_counter", lambda: self.now)


def trainer_without_a_run(*, log_every_n_steps: int) -> Any:
    return SimpleNamespace(
        profiler=PassThroughProfiler(),
        global_step=0,
        log_every_n_steps=log_every_n_steps,
        fit_loop=SimpleNamespace(_should_accumulate=lambda: False),
        world_size=1,
        distributed_sampler_kwargs=None,
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
    )
