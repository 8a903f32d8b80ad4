"""Steps with ``teacher_top_k`` against exact ones, and a plain program: ``python -m benchmarks.top_k_steps``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Figure, ratios, run
from benchmarks.pair import KEPT, Case, Pair
from xtoken_pl import Projection, ProjectionKL
from xtoken_pl.callbacks import DynamicLossScaling
from xtoken_pl.scoring.memory import LogitMemory

_K = 8192
_ROUNDS = 3
_SIZES = [(hidden_size, num_tokens) for hidden_size in (1024, 64) for num_tokens in (512, 1024)]

# N student rows, Q teacher rows, S spans, V_s/V_t vocabulary sizes (student/teacher), k kept teacher tokens


def figures() -> Iterator[Figure]:
    """One thread; the time that the processor works, of which other programs on the machine take nothing."""
    torch.set_num_threads(1)
    pair = Pair()
    exact, kept = (pair.bound(ProjectionKL(teacher_top_k=k)) for k in (None, _K))
    for hidden_size, num_tokens in _SIZES:
        case, memory = Case(pair, num_tokens, hidden_size), LogitMemory(KEPT * num_tokens / 512)
        steps: dict[str, Callable[[], object]] = {
            "P-KL": partial(case.distil, exact, memory),
            f"P-KL, k = {_K:,}": partial(case.distil, kept, memory),
            f"P-KL, k = {_K:,}, plain program": partial(plain_step, case, pair.projection),
        }
        times = ratios(case.cross_entropy, steps, _ROUNDS, clock=time.process_time)
        size = f"hidden size {hidden_size:,}, {num_tokens:,} tokens"
        for name, target in zip(steps, (None, 1.3, None), strict=True):
            yield Figure(f"{size}: CE + {name}, kept", times.ratio(name), "x", target, note=times.note(name))
        of_exact, ours, plain = (times.candidates[name] for name in steps)
        for what, theirs, target in (("exact loss", of_exact, 1.0), ("plain program", plain, 1.2)):
            ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
            yield Figure(f"{size}: {what} against k = {_K:,}", ratio, "x", target, at_least=True)


def plain_step(case: Case, projection: Projection) -> None:
    """The same step as it is usually written: whole logits, autograd, and one set of k teacher tokens for all rows.

    The k tokens are those with the highest probability in any row. What the teacher gives to others is left out, so
    that this is another loss than ours; a span of several tokens is its first row, without the others' probabilities.
    """
    case.clear()
    ((name, teacher),) = case.teachers.items()
    spans = case.batch.teachers[name].spans
    logits = case.hidden @ case.head.weight.T  # [N, V_s]
    ce = F.cross_entropy(logits, case.batch.student.labels)
    with torch.no_grad():
        teacher_probs = (teacher.hidden @ teacher.head.layer.weight.T).softmax(-1)  # [Q, V_t]
        kept = teacher_probs.amax(0).topk(_K).indices
        target = teacher_probs[spans.teacher_first][:, kept]  # [S, k]
        target = target / target.sum(-1, keepdim=True)
        columns = _columns(projection, kept)  # [k, V_s]
    probs = logits.softmax(-1)[spans.student_first]  # [S, V_s]
    projected = torch.sparse.mm(columns, probs.T).T  # [S, k]
    log_projected = (projected / projected.sum(-1, keepdim=True)).clamp_min(1e-10).log()
    kd = F.kl_div(log_projected, target, reduction="batchmean")
    (ce + DynamicLossScaling.scale(ce.detach(), kd.detach()) * kd).backward()


def _columns(projection: Projection, kept: Tensor) -> Tensor:
    """The kept columns of W, transposed: ``[k, V_s]``, sparse."""
    student_ids, teacher_ids, weights = projection.entries()
    place = torch.full((projection.num_teacher,), -1).index_copy(0, kept, torch.arange(len(kept)))[teacher_ids]
    entries = torch.stack((place, student_ids))[:, place >= 0]
    return torch.sparse_coo_tensor(
        entries, weights[place >= 0], (len(kept), projection.num_student), check_invariants=False
    ).coalesce()


if __name__ == "__main__":
    run(figures)
