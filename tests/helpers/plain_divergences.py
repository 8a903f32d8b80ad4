"""The three divergences as they are defined: of lists of numbers, and of tensors that autograd differentiates."""

from __future__ import annotations

import math

import torch
from group_division import ListedGroups
from torch import Tensor

from xtoken_pl.losses import Divergence

#: Rows of a student for groups that are written by hand.
PROBS = torch.tensor([[0.1, 0.2, 0.05, 0.15, 0.2, 0.1, 0.2], [0.1, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2]], dtype=torch.float64)


def listed_divergence(teacher: list[float], student: list[float], divergence: Divergence) -> float:
    """The divergence of two distributions, nats."""

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    if divergence == "jensen_shannon":
        middle = [(a + b) / 2 for a, b in zip(teacher, student, strict=True)]
        return kl(teacher, middle) / 2 + kl(student, middle) / 2
    return kl(teacher, student) if divergence == "forward" else kl(student, teacher)


def covered_divergence(teacher: Tensor, student: Tensor, divergence: Divergence) -> Tensor:
    """``[..., G] -> [...]``: the divergence over groups, less the logarithm of the mass that the student gives them."""
    covered = student.sum(-1, keepdim=True)
    student = student / covered
    middle = (teacher + student) / 2
    nats = {
        "forward": _nats_of(teacher, student),
        "reverse": _nats_of(student, teacher),
        "jensen_shannon": (_nats_of(teacher, middle) + _nats_of(student, middle)) / 2,
    }[divergence]
    return nats - covered.squeeze(-1).log()


def grouped_divergence(groups: ListedGroups, probs: Tensor, divergence: Divergence) -> Tensor:
    """``[V] -> []``: the same over the listed groups that have mass, of a student's probabilities; 0 without any."""
    listed = [group for group in groups.values() if group[0] > 0]
    if not listed:
        return 0.0 * probs.sum()
    teacher = torch.tensor([mass for mass, _ in listed], dtype=torch.float64)
    student = torch.stack([probs[tokens].sum() for _, tokens in listed])
    return covered_divergence(teacher, student, divergence)


def _nats_of(above: Tensor, below: Tensor) -> Tensor:
    return (above * (above.clamp_min(1e-300).log() - below.clamp_min(1e-300).log())).sum(-1)
