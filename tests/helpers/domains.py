"""A module with two teachers on windows of several domains, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from small_models import TEXTS

from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.batch import DOMAIN, DistillBatch, Domain
from xtoken_pl.data import Windower, collate

NAMES = ["other", "same"]
#: Each teacher on a source of its own, and both, with weights of their own, on the third.
DOMAINS = [Domain("math", {"other": None}), Domain("code", {"same": None}), Domain("web", {"other": 0.5, "same": 2.0})]


def with_domains(module: MultiTeacherDistillModule, domains: Sequence[Domain] = DOMAINS) -> MultiTeacherDistillModule:
    """Sets the domains of all splits, as a data module does when it is connected."""
    module.domains = dict.fromkeys(("train", "val", "test"), domains)
    module._make_metrics()
    return module


def windows_of(module: MultiTeacherDistillModule, number: int, *texts: str) -> list[dict[str, Any]]:
    """Returns windows of a domain; by default of the text of its number, and of the two after it."""
    teachers = {name: module.teacher_vocabularies[name] for name in DOMAINS[number].alphas}
    texts = texts or tuple(text[:170] for text in TEXTS[number : number + 3])
    columns = Windower(module.student_vocabulary, teachers, 40)(texts)
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) | {DOMAIN: number} for row in rows]


def batch_of(windows: Sequence[dict[str, Any]]) -> DistillBatch:
    return collate(windows, NAMES)
