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
    for hidden_size, num_tokens in _SIZES:
        yield from _of_size(pair, hidden_size, num_tokens)


def _of_size(pair: Pair, hidden_size: int, num_tokens: int) -> Iterator[Figure]:
    """Holds the memory of one size only."""
    case, memory = Case(pair, num_tokens, hidden_size), LogitMemory(KEPT * num_tokens / 512)
    fixed, learned = ([_bound(pair, k, learns=learns) for k in (None, _K)] for learns in (False, True))
    names = "P-KL", f"P-KL, k = {_K:,}", "P-KL, learned W", f"P-KL, learned W, k = {_K:,}"
    steps: dict[str, Callable[[], object]] = {
        name: partial(_step, case, loss, memory) for name, loss in zip(names, (*fixed, *learned), strict=True)
    }
    plain = f"P-KL, k = {_K:,}, plain program"
    steps[plain] = partial(plain_step, case, pair.projection)
    times = ratios(case.cross_entropy, steps, _ROUNDS, clock=time.process_time)
    size = f"hidden size {hidden_size:,}, {num_tokens:,} tokens"
    for name in steps:
        # The gradient of W is no sum over rows: with it, nothing can be kept.
        way = "" if "learned" in name else ", kept"
        yield Figure(
            f"{size}: CE + {name}{way}",
            times.ratio(name),
            "x",
            1.3 if name == names[1] else None,
            note=times.note(name),
        )
    for what, name, ours, target in (
        ("exact loss against", names[0], names[1], 1.0),
        ("plain program against", plain, names[1], 1.2),
        ("learned W, exact loss against", names[2], names[3], 1.0),
    ):
        ratio = statistics.median(a / b for a, b in zip(times.candidates[name], times.candidates[ours], strict=True))
        yield Figure(f"{size}: {what} k = {_K:,}", ratio, "x", target, at_least=True)


def _bound(pair: Pair, k: int | None, *, learns: bool) -> ProjectionKL:
    loss = pair.bound(ProjectionKL(teacher_top_k=k))
    if learns:
        loss.learn_projection()
    return loss


def _step(case: Case, loss: ProjectionKL, memory: LogitMemory) -> None:
    loss.zero_grad()
    case.distil(loss, memory)


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
