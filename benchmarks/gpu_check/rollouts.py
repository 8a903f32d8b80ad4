"""On-policy steps: the student writes, the teacher reads what it wrote, and the student learns from that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.marks import Marks
from benchmarks.gpu_check.models import TEACHER, Pair, SharingModule, optimizer_of, train
from benchmarks.gpu_check.setting import Setting
from benchmarks.measure import Figure
from benchmarks.pair import TEXT
from xtoken_pl import BytePrefixKL, Rollouts
from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, DistillBatch, Prompt
from xtoken_pl.data import collate

_STEPS = 2


def figures(setting: Setting) -> Iterator[Figure]:
    """Speed of writing, its share of a step, and what there is to learn from the texts."""
    num_texts, num_new, prompt_length = (16, 128, 200) if setting.is_full else (3, 12, 30)
    marks = Marks(setting.device)
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair.build(setting, Path(folder))
        rollouts = Rollouts(share=1.0, max_new_tokens=num_new, seed=0)
        module = SharingModule(pair, BytePrefixKL(divergence="reverse"), marks, rollouts=rollouts, logits_memory=2.0)

        @contextmanager
        def around_writing() -> Iterator[None]:
            marks.mark("other")
            yield
            marks.mark("writing")

        module.around_writing = around_writing
        # Autocast keeps the weights that it has cast for writing, where nothing is differentiated.
        first = next(weight for name, weight in module.student.named_parameters() if "layers.0." in name)
        norms: list[float] = []
        first.register_post_accumulate_grad_hook(lambda weight: norms.append(float(weight.grad.norm())))
        batch, optimizer = _prompts(module, num_texts, prompt_length), optimizer_of(module)
        for step in range(_STEPS):
            output = train(module, batch, optimizer, marks)
            yield from _of_step(step, module, output, marks.take())
            yield Figure(
                f"step {step + 1}: gradient of a weight of the first layer", norms[-1], "", 1e-12, at_least=True
            )


def _prompts(module: SharingModule, num_texts: int, length: int) -> DistillBatch:
    """A batch that has nothing to learn but prompts, each the beginning of a stretch of text."""
    student, teachers = module.vocabularies()
    sides = {"": student, **teachers}
    texts = [TEXT[2000 * place :][:length] for place in range(num_texts)]
    prompts = [
        Prompt(
            {name: side.tokenizer.encode(text, add_special_tokens=False) for name, side in sides.items()},
            is_chat=False,
        )
        for text in texts
    ]
    batch = collate([{STUDENT_IDS: [0], LOSS_MASK: [0]}] * num_texts, [TEACHER])
    batch.prompts = list(prompts)
    return batch.to(module.device)


def _of_step(number: int, module: SharingModule, output: Any, seconds: dict[str, float]) -> Iterator[Figure]:
    step = f"step {number + 1}"
    assert module.written is not None
    num_tokens = sum(len(rollout.ids) for rollout in module.written.rollouts)
    num_spans = len(module.last_written_batch.teachers[TEACHER].spans)
    total = sum(seconds.values())
    if not torch.isfinite(output["loss"]):
        raise ArithmeticError(f"the loss of an on-policy step is {float(output['loss'])}")
    yield Figure(f"{step}: tokens written", num_tokens / seconds["writing"], "tokens/s", note=f"{num_tokens} tokens")
    yield Figure(f"{step}: time", total, "s")
    yield Figure(f"{step}: writing", 100 * seconds["writing"] / total, "%")
    yield Figure(f"{step}: spans with the teacher", num_spans, "", 1, at_least=True)
    yield Figure(f"{step}: distillation loss", float(output["kd"]), "nats per span")
