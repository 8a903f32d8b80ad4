"""A whole training step on the CPU, and the memory that it takes."""

from __future__ import annotations

import gc

from head_rows import WatchedMemory
from planned import most_allocated, one_thread
from small_models import TEXTS
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.data import Windower, collate
from xtoken_pl.plan.moments import MemoryPlan
from xtoken_pl.plan.run import Run


def measured_step(run: Run) -> int:
    """Peak of the second step of a run, with all weights, gradients and the optimizer's state."""
    module = MultiTeacherDistillModule(run.student, dict(run.teachers))
    module.logit_memory = memory = WatchedMemory(run.logits_memory)
    module.setup("fit")
    module.configure_model()
    windows = Windower(module.student_vocabulary, module.teacher_vocabularies, run.sequence_length)
    rows = windows([" ".join(TEXTS[:4])])
    places = range(run.batch_size)
    batch = collate([{key: values[place] for key, values in rows.items()} for place in places], list(run.teachers))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = AdamW(trained, foreach=True)

    def step() -> None:
        loss = module.training_step(batch, 0)["loss"]  # type: ignore[call-overload,index]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    gc.collect()
    there_before = sum(parameter.nbytes for parameter in module.student.parameters())
    there_before += sum(3 * parameter.nbytes for parameter in trained)  # gradients, Adam's moments
    weights = {id(p): p.nbytes for teacher in module.loaded_teachers.values() for p in teacher.model.parameters()}
    there_before += sum(weights.values()) + sum(matrix.nbytes for matrix in memory.alive)
    with one_thread(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    return there_before + most_allocated(profiler)


def planned_step(run: Run) -> int:
    """Planned peak of a step, without the allowances for CUDA and fragmentation."""
    peak = MemoryPlan.from_run(run).peak.terms
    return sum(size for term, size in peak.items() if not term.startswith("allowance"))
