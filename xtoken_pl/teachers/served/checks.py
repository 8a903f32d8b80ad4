"""Checks of a server before training: its model, tokenizer, context length and number of tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.specs import Teacher
from xtoken_pl.teachers.served.answers import BadAnswerError, Question
from xtoken_pl.teachers.served.api import expected_form, first_difference
from xtoken_pl.teachers.served.client import RefusedError
from xtoken_pl.teachers.served.teacher import PROBE_TEXT, ServedTeacher
from xtoken_pl.teachers.source import check_source
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import first_of
from xtoken_pl.weighting import Weighting

T = TypeVar("T")

_LARGEST = re.compile(r"max(?:imum)? allowed:? *(\d+)")


def open_servers(
    teachers: Mapping[str, Teacher], weighting: Weighting, vocabularies: Mapping[str, CanonicalVocabulary]
) -> dict[str, ServedTeacher]:
    """Makes the source of every teacher with a server and without a cache; nothing is asked.

    Args:
        teachers: Teachers by name, with their losses.
        weighting: Weighting of the teachers.
        vocabularies: Vocabulary of each teacher.

    Raises:
        UserError: If a loss or the weighting reads more of a teacher than a server gives.
    """
    servers: dict[str, ServedTeacher] = {}
    for name, teacher in teachers.items():
        if teacher.server is not None and teacher.cache is None:
            servers[name] = ServedTeacher(name, teacher.server, vocabularies[name])
            check_source(name, "its server", servers[name].gives, teacher.span_loss, weighting, "")
    return servers


def check_server(teacher: ServedTeacher, sequence_length: int | None) -> None:
    """Checks that a server runs the teacher and can answer for the run's texts; stores the probe's log-probabilities.

    A server that is not up yet is waited for, up to its ``patience``.

    Args:
        teacher: The teacher.
        sequence_length: Number of tokens of the longest text; None if it is not known.

    Raises:
        UserError: If the server does not answer, has another model or tokenizer, answers for fewer tokens of a row, or
            reads only shorter texts.
    """
    _check_top_k(teacher)
    _check_model(teacher, sequence_length)
    _check_tokenizer(teacher)
    _check_rows(teacher)
    scorer = teacher.scorer
    rows = scorer.client.keep_trying(_at_once(teacher, partial(scorer.ask_once, teacher.probe.question)))
    teacher.remember_probe(rows.log_observed)


def _check_top_k(teacher: ServedTeacher) -> None:
    num_tokens = int(teacher.vocabulary.exists.sum())
    if teacher.top_k is not None and teacher.top_k > num_tokens:
        raise UserError(
            f"top_k of the server of teacher {teacher.name!r} must be at most the number of its tokens, {num_tokens}, "
            f"got {teacher.top_k}; lower it, or ask for 'all'"
        )
    if teacher.top_k is None and teacher.server.api == "sglang":
        raise UserError(
            f"top_k of an SGLang server must be a number, got 'all' for teacher {teacher.name!r}; name one, or use vLLM"
        )


def _check_model(teacher: ServedTeacher, sequence_length: int | None) -> None:
    client, model = teacher.scorer.client, teacher.model

    def cards() -> dict[str, Any]:
        with expected_form("a list of models"):
            return {str(card["id"]): card.get("max_model_len") for card in client.send("/v1/models")["data"]}

    served = client.keep_trying(_at_once(teacher, cards))
    if model not in served:
        raise UserError(
            f"{client.place} must serve model {model!r}, but serves {first_of(served) or 'none'}; start it with the "
            "teacher, or give the name it is served under by `model` of the server"
        )
    # The servers want room for one token that they write.
    context = served[model]
    if context is not None and sequence_length is not None and sequence_length + 1 > context:
        raise UserError(
            f"{client.place} must read data.sequence_length={sequence_length} tokens and one more, but its context "
            f"has {context}; start it with a longer context ({sequence_length + 1} at least), or lower "
            "data.sequence_length"
        )


def _check_tokenizer(teacher: ServedTeacher) -> None:
    client, vocabulary = teacher.scorer.client, teacher.vocabulary
    body = {"model": teacher.model, "prompt": PROBE_TEXT, "add_special_tokens": False}

    def tokenize() -> list[int]:
        with expected_form("tokens"):
            return list(map(int, client.send("/tokenize", body)["tokens"]))

    try:
        theirs = client.keep_trying(_at_once(teacher, tokenize))
    except RefusedError as refusal:
        if refusal.status not in (404, 405):
            raise
        rank_zero_warn(
            f"{client.place} has no /tokenize, so that its tokenizer could not be compared with {vocabulary.name!r}"
        )
        return
    ours = vocabulary.encode([PROBE_TEXT])[0]
    if ours != theirs:
        place = first_difference(ours, theirs)
        raise UserError(
            f"{client.place} must have the teacher's tokenizer, but of a probe text it makes {theirs[place:][:3]} at "
            f"token {place} where {vocabulary.name!r} makes {ours[place:][:3]}; start it with the teacher's tokenizer, "
            "or name its own by the teacher's `model`"
        )


def _check_rows(teacher: ServedTeacher) -> None:
    """Asks for two tokens with as many alternatives as the run asks for."""
    question = Question(list(teacher.probe.ids[:2]), np.array([1]), teacher.top_k)
    scorer = teacher.scorer
    try:
        scorer.client.keep_trying(_at_once(teacher, partial(scorer.ask_once, question)))
    except RefusedError as refusal:
        if (largest := _LARGEST.search(str(refusal))) is None:
            raise
        wanted = -1 if teacher.top_k is None else teacher.top_k
        raise UserError(
            f"{scorer.client.place} must answer with top_k={teacher.server.top_k} tokens of a row, but gives at most "
            f"{largest[1]}; start it with {scorer.api.top_k_option} {wanted}, or lower `top_k` of the server"
        ) from None


def _at_once(teacher: ServedTeacher, attempt: Callable[[], T]) -> Callable[[], T]:
    """Makes an answer of a wrong form an error at once: before training, nothing suggests that it will change."""

    def checked() -> T:
        try:
            return attempt()
        except BadAnswerError as failure:
            raise UserError(
                f"{teacher.scorer.client.place} gave {failure}; check that it is a server of api="
                f"{teacher.server.api!r}, and its `url`"
            ) from None

    return checked
