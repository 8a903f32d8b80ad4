"""Binds the loss of a teacher's specification to its pair of vocabularies."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from xtoken_pl.audit import CHOICES, recommend_loss
from xtoken_pl.losses import BytePrefixKL, HybridKL, ProjectionKL, SpanLoss, TokenKL
from xtoken_pl.projection import Projection, build_projection
from xtoken_pl.specs import Teacher
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

#: Graphs of one function that torch keeps if losses are compiled.
_MOST_GRAPHS = 64
_RECOMMENDED: dict[str, type[SpanLoss]] = {
    kind.__name__: kind for kind in (TokenKL, ProjectionKL, HybridKL, BytePrefixKL)
}


def check_teachers(result: Any, *, given: dict[str, Teacher] | None, may_be_empty: bool) -> dict[str, Teacher]:
    """Checks the result of ``configure_teachers``.

    Args:
        result: Result of ``configure_teachers``.
        given: Teachers that the module was given.
        may_be_empty: Whether training without a teacher is allowed.

    Raises:
        UserError: If the result is not a dict of teachers.
        UserError: If there is no teacher, a name cannot be a tag, or teachers that were given are left out.
    """
    if not isinstance(result, dict) or not all(isinstance(teacher, Teacher) for teacher in result.values()):
        kinds = {name: type(item).__name__ for name, item in result.items()} if isinstance(result, dict) else result
        raise UserError(f"configure_teachers must return a dict such as {{'qwen': Teacher(model=...)}}, got {kinds!r}")
    for name in result:
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", name)) or hasattr(nn.ModuleDict(), name):
            raise UserError(
                f"a teacher's name must be letters, digits, _ or -, and no method of a dict, got {name!r}; "
                "it becomes a tag, choose another"
            )
    left_out = sorted((given or {}).keys() - result.keys())
    if left_out:
        raise UserError(
            f"the teachers {', '.join(left_out)} were given, but configure_teachers returns only "
            f"{', '.join(result) or 'none'}; remove them from `teachers`, or add super().configure_teachers() in it"
        )
    if not (result or may_be_empty):
        raise UserError(
            "at least one teacher is needed, got none; add one under model.teachers (NAME: {model: ...}), return one "
            "from configure_teachers, or train on cross-entropy alone with kd_weight=0"
        )
    return dict(result)


def check_judges(teachers: Mapping[str, Teacher]) -> None:
    """Checks that teachers can read what the student writes.

    Args:
        teachers: The teachers of a run with on-policy steps.

    Raises:
        UserError: If a teacher has a cache.
    """
    for name, teacher in teachers.items():
        if teacher.cache is not None:
            raise UserError(
                f"teachers must be run to read what the student writes, but teacher {name!r} has a cache, which knows "
                "the texts of the data only; leave `cache` out, or set model.rollouts.share to 0"
            )


def possible_losses(teacher: Teacher) -> list[SpanLoss]:
    """Returns the losses, not bound, that :func:`choose_loss` may give a teacher for any pair of tokenizers."""
    return (
        [teacher.loss]
        if isinstance(teacher.loss, SpanLoss)
        else [_RECOMMENDED[kind]() for kind in CHOICES[teacher.loss]]
    )


def choose_loss(
    name: str, teacher: Teacher, student_vocabulary: CanonicalVocabulary, teacher_vocabulary: CanonicalVocabulary
) -> tuple[Teacher, str]:
    """Gives a teacher whose loss is ``auto`` or ``auto_paper`` the loss that the rule chooses, and logs the reason.

    Args:
        name: Name of the teacher, for the log.
        teacher: Specification of the teacher; it is not changed.
        student_vocabulary: Vocabulary of the student.
        teacher_vocabulary: Vocabulary of the teacher.

    Returns:
        The teacher with its loss, not yet bound, and the reason for it.

    Raises:
        UserError: If the chosen loss cannot use an option of the teacher.
    """
    if isinstance(teacher.loss, SpanLoss):
        return teacher, "as configured"
    chosen = recommend_loss(student_vocabulary, teacher_vocabulary, rule=teacher.loss)
    rank_zero_info(f"teacher {name!r}: loss {teacher.loss} -> {chosen.loss}, because {chosen.reason}")
    return replace(teacher, loss=_RECOMMENDED[chosen.loss]()), f"{teacher.loss}, because {chosen.reason}"


def bind_loss(
    name: str, teacher: Teacher, student_vocabulary: CanonicalVocabulary, teacher_vocabulary: CanonicalVocabulary
) -> SpanLoss:
    """Binds a copy of the teacher's loss. Builds or loads W if the loss needs it, and logs the result.

    Args:
        name: Name of the teacher, for the log.
        teacher: Specification of the teacher, from :func:`choose_loss`.
        student_vocabulary: Vocabulary of the student.
        teacher_vocabulary: Vocabulary of the teacher.

    Raises:
        UserError: If the loss does not fit the vocabularies, W belongs to others, an option has no effect, the loss
            cannot be compiled, or the teacher has no span whose kind has a weight.
    """
    if teacher.spans.get("one_to_one") == 0 and student_vocabulary.fingerprint == teacher_vocabulary.fingerprint:
        raise UserError(
            f"teacher {name!r} has the student's tokenizer, so that all its spans are one to one, but "
            f"spans={teacher.spans} leaves these out; raise one_to_one, or remove the teacher"
        )
    loss = copy.deepcopy(teacher.span_loss)  # the specification stays as it was given
    projection = _projection(teacher, student_vocabulary, teacher_vocabulary) if loss.needs_projection else None
    loss.bind(student_vocabulary, teacher_vocabulary, projection)
    if teacher.learn_projection:
        loss.learn_projection()
    if teacher.compile_loss:
        _compile(name, loss)
    rank_zero_info(f"teacher {name!r}: {type(loss).__name__}({loss.extra_repr()})")
    return loss


def _compile(name: str, loss: SpanLoss) -> None:
    """Compiles a bound loss, once for any number of rows."""
    if loss.planner is not None:
        raise UserError(
            f"compile_loss needs a loss without a plan, whose operations are the same for every text, but "
            f"{type(loss).__name__} of teacher {name!r} plans each batch; leave compile_loss out, or use ProjectionKL, "
            "HybridKL or TokenKL"
        )
    # Compiled modules share one count of graphs, of which torch allows eight: a loss has three, its sizes of 1 others.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)
    loss.compile(dynamic=True)


def _projection(teacher: Teacher, student: CanonicalVocabulary, other: CanonicalVocabulary) -> Projection:
    if teacher.projection is None:
        return build_projection(student.tokenizer, other.tokenizer)
    projection = Projection.load(teacher.projection)
    projection.check_belongs_to(student, other)
    return projection
