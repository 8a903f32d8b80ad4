"""The teacher's side of a block as a cache or a server gives it."""

from __future__ import annotations

from typing import Any

import torch
from span_rows import Spans, block_of
from torch import Tensor

from xtoken_pl.batch import KnownRows, SpanBatch
from xtoken_pl.losses import SpanLoss
from xtoken_pl.losses.base import SideRows
from xtoken_pl.scoring.tasks import GivenRows, TeacherTask
from xtoken_pl.teachers.cache.row_format import RowFormat


def known_teacher(
    loss: SpanLoss,
    logits: Tensor,
    labels: Tensor,
    spans: Spans,
    *,
    rows: Any = "span_starts",
    top_k: Any = "all",
    temperature: float = 1.0,
) -> SideRows:
    """Stores the rows in 32 bits, all tokens or ``top_k`` of each, and makes the side of them."""
    live = block_of(logits, logits, (labels, labels), [(c, d, c, d) for _, _, c, d in spans]).teacher
    batch = SpanBatch(live.first, live.length, live.first, live.length, live.span, live.span)
    num_ids = logits.shape[1]
    stored = RowFormat(rows, top_k, 32, num_ids, num_ids, has_text=temperature != 1.0)
    plain, tempered = logits.log_softmax(-1), (logits / temperature).log_softmax(-1)
    chosen = stored.choose(live.first, len(logits))
    observed = [side.gather(1, labels[:, None]).squeeze(1) for side in (tempered, plain)]
    arrays = stored.encode(tempered[chosen], labels[chosen]) | stored.encode_observed(observed[0], observed[1], batch)
    known, holes = KnownRows.from_windows([arrays]), torch.zeros(num_ids, dtype=torch.bool)
    task = TeacherTask(GivenRows(known, labels[chosen], holes, num_ids), batch, loss, temperature)
    return task.side(slice(0, len(logits)), slice(0, len(spans)), None)
