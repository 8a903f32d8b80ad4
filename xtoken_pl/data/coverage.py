"""Warns before training if much of the text is in no span with a teacher, and says which normalizer is the cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from xtoken_pl.batch import STUDENT_IDS, TeacherBatch, teacher_columns
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.normalization import Normalizer, rewritten_share
from xtoken_pl.utilities.words import percent

#: Share of the learned tokens in spans below which a warning is given. Tokenizers that write the text unchanged
#: have at least 0.86 (windows of 64 tokens, in a script that one side writes in bytes) and mostly more than 0.98.
LOW_COVERAGE = 0.8
# Share of the text from which on a normalizer is named as the cause.
_MUCH_REWRITTEN = 0.02


def check_coverage(view: TeacherBatch, name: str, windows: Sequence[Window], where: str, maker: WindowMaker) -> None:
    """Warns if less than :data:`LOW_COVERAGE` of the learned tokens are in a span, or logs what normalizers rewrite.

    Of conversations, the share in spans is logged, too.

    Args:
        view: A teacher's view of some windows of a source, collated.
        name: Name of the teacher.
        windows: These windows.
        where: Name of the split, or of the source, for messages.
        maker: Maker of the windows.
    """
    coverage = (view.spans.student_span < len(view.spans)).float().mean().item()
    if maker.source.holds_conversations:
        rank_zero_info(
            f"{where}: {100 * coverage:.1f}% of the tokens to learn are in a span with teacher {name!r}, in "
            f"{len(windows)} windows; the others are learned by cross-entropy alone (reasoning, parts of tool calls "
            "and turn ends that the chat templates write differently)"
        )
    if coverage < LOW_COVERAGE:
        rank_zero_warn(
            f"{where}: only {100 * coverage:.0f}% of the tokens to learn are in a span with teacher {name!r}, in "
            f"{len(windows)} windows (95% or more is usual); the others are learned by cross-entropy alone. "
            f"{likely_cause(windows, name, maker)}"
        )
    elif maker.normalizer is None:
        _log_rewritten(windows, name, where, maker)


def likely_cause(windows: Sequence[Window], teacher: str, maker: WindowMaker) -> str:
    """Describes what probably keeps tokens out of spans with a teacher, and what to change."""
    for found in _rewritten_shares(windows, teacher, maker):
        if maker.normalizer is None and (found.share > _MUCH_REWRITTEN or found.is_unknown):
            how_much = "may rewrite" if found.is_unknown else f"rewrites {100 * found.share:.0f}% of"
            return (
                f"The normalizer of the {found.role} ({found.normalizer}) {how_much} this text (in whole words), so "
                "that the student and the teacher read different bytes; set data.normalize to true to give the "
                "rewritten text to both"
            )
    chats = (
        ", reasoning and tool calls that the chat templates write differently"
        if maker.source.holds_conversations
        else ""
    )
    return (
        f"No normalizer rewrites it: the text may hold characters that one vocabulary lacks{chats}, or stretches that "
        f"no window of sequence_length={maker.windower.sequence_length} can hold. `python -m xtoken_pl inspect` shows "
        "them"
    )


@dataclass(frozen=True)
class _RewrittenShare:
    """How much of a text a side's normalizer rewrites.

    Attributes:
        role: The side.
        normalizer: Its normalizer.
        share: Share of the text that is in words which it changes.
        is_unknown: True if the windows hold no text of the other side.
    """

    role: str
    normalizer: str
    share: float
    is_unknown: bool


def _rewritten_shares(windows: Sequence[Window], teacher: str, maker: WindowMaker) -> Iterator[_RewrittenShare]:
    """How much of what the student reads is rewritten by a teacher's normalizer, and the other way round."""
    sides = {"": maker.windower.student, teacher: maker.windower.teachers[teacher]}
    columns = {"": STUDENT_IDS, teacher: teacher_columns(teacher)[0]}
    roles = {"": "student", teacher: f"teacher {teacher!r}"}
    for reads, rewrites in (("", teacher), (teacher, "")):
        normalizer = Normalizer(sides[rewrites])
        text = _text_of(windows, columns[reads], sides[reads])
        # Stretches without a common token boundary are longer than a window, and stored for the student alone.
        is_unknown = bool(normalizer.name) and not text.strip()
        name = normalizer.name or "▁ as a space"
        yield _RewrittenShare(roles[rewrites], name, rewritten_share(normalizer, text), is_unknown)


def _log_rewritten(windows: Sequence[Window], teacher: str, where: str, maker: WindowMaker) -> None:
    """Logs how much of the text the normalizers of the student and of a teacher rewrite, if they do."""
    for found in _rewritten_shares(windows, teacher, maker):
        if found.share:
            rank_zero_info(
                f"{where}: the normalizer of the {found.role} ({found.normalizer}) rewrites {percent(found.share)} of "
                f"the text (in whole words, in {len(windows)} windows); where their bytes differ, nothing is learned "
                f"from teacher {teacher!r}. data.normalize gives the rewritten text to both"
            )


def _text_of(windows: Sequence[Window], column: str, vocabulary: CanonicalVocabulary) -> str:
    """Text of the windows, as one side reads it."""
    ids = np.concatenate([np.asarray(window[column], dtype=np.int64) for window in windows])
    stream, _ = vocabulary.byte_stream(ids)
    return stream.tobytes().decode(errors="ignore")
