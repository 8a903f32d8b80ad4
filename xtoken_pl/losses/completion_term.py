"""Cross-entropy of what may complete a teacher token that a student token has begun."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xtoken_pl.losses.base import SideRows
from xtoken_pl.losses.divergence import log_clamped
from xtoken_pl.losses.teacher_tokens import KeptTokens
from xtoken_pl.prefix_map import Completions, CompletionSets
from xtoken_pl.utilities.ranges import expand_ranges

# P student rows, Z completions, E entries of all completions


class CompletionTerm(nn.Module):
    """The completion term of :class:`xtoken_pl.ESCD`.

    Args:
        sets: Completion sets of the pair.
    """

    sources: Tensor
    source_start: Tensor
    source_length: Tensor
    group: Tensor
    targets: Tensor
    target_start: Tensor
    target_length: Tensor

    def __init__(self, sets: CompletionSets) -> None:
        super().__init__()
        start, target_start = torch.from_numpy(sets.source_start), torch.from_numpy(sets.target_start)
        buffers = {
            "sources": torch.from_numpy(sets.sources),
            "source_start": start[:-1],
            "source_length": start.diff(),
            "group": torch.from_numpy(sets.group),
            "targets": torch.from_numpy(sets.targets),
            "target_start": target_start,
            "target_length": torch.from_numpy(sets.target_end) - target_start,
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(
        self, completions: Completions, student: SideRows, teacher: SideRows, kept: KeptTokens | None = None
    ) -> Tensor:
        """``[P]`` nats, for each row that is to complete what the token before it has begun.

        Args:
            completions: Rows whose next row is to complete something.
            student, teacher: Rows of both sides.
            kept: Tokens that are kept of each teacher row; groups with none of them are merged. None for all.
        """
        log_probs = student.log_probs
        num_entries = completions.count("entries")
        if not num_entries:
            return log_probs.new_zeros(len(log_probs))
        place, entry = expand_ranges(completions.low, completions.high - completions.low, num_entries)
        group = self.group[entry]
        source_entry, source = expand_ranges(
            self.source_start[group], self.source_length[group], completions.count("sources")
        )
        target_entry, target = expand_ranges(
            self.target_start[entry], self.target_length[entry], completions.count("targets")
        )
        row, token = completions.teacher[place[source_entry]], self.sources[source]
        next_row = completions.row[place[target_entry]] + 1
        of_target = log_probs.take(next_row * log_probs.shape[1] + self.targets[target]).exp()
        if kept is not None:
            merged = self._merged(place, source_entry, kept.is_kept[row, token])
            source_entry, target_entry = merged[source_entry], merged[target_entry]
            num_entries += len(completions.row)
            place = torch.cat((place, torch.arange(len(completions.row), device=place.device)))
        of_source = teacher.log_probs[row, token].exp().to(log_probs.dtype)
        mass = of_source.new_zeros(num_entries).index_add_(0, source_entry, of_source)
        probs = of_source.new_zeros(num_entries).index_add(0, target_entry, of_target)
        nats = -mass * log_clamped(probs)
        return log_probs.new_zeros(len(log_probs)).index_add(0, completions.row[place] + 1, nats)

    @staticmethod
    def _merged(place: Tensor, source_entry: Tensor, is_kept: Tensor) -> Tensor:
        """``[E]`` the entry itself if one of its teacher tokens is kept, or else an extra one of its completion."""
        has_kept = torch.zeros_like(place).index_add_(0, source_entry, is_kept.long()) > 0
        return torch.where(has_kept, torch.arange(len(place), device=place.device), len(place) + place)
