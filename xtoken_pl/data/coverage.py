"""Warns before training if much of the text is in no span with a teacher, and says which normalizer is the cause."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from xtoken_pl.batch import STUDENT_IDS, TeacherBatch, teacher_columns
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.normalization import Normalizer

#: Share of the learned tokens in spans below which a warning is given. Tokenizers that write the text unchanged
#: have at least 0.86 (windows of 64 tokens, in a script that one side writes in bytes) and mostly more than 0.98.
LOW_COVERAGE = 0.8
# Share of the text from which on a normalizer is named as the cause.
_REWRITTEN = 0.02


def check_coverage(view: TeacherBatch, name: str, windows: Sequence[Window], where: str, maker: WindowMaker) -> None:
    """Warns if less than :data:`LOW_COVERAGE` of the learned tokens are in a span; of conversations, logs the share.

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


def likely_cause(windows: Sequence[Window], teacher: str, maker: WindowMaker) -> str:
    """Describes what probably keeps tokens out of spans with a teacher, and what to change."""
    sides = {"": maker.windower.student, teacher: maker.windower.teachers[teacher]}
    columns = {"": STUDENT_IDS, teacher: teacher_columns(teacher)[0]}
    roles = {"": "student", teacher: f"teacher {teacher!r}"}
    for reads, rewrites in (("", teacher), (teacher, "")):
        normalizer = Normalizer(sides[rewrites])
        text = _text_of(windows, columns[reads], sides[reads])
        share = rewritten_share(normalizer, text)
        # Stretches without a common token boundary are longer than a window, and stored for the student alone.
        is_unknown = normalizer.name and not text.strip()
        if maker.normalizer is None and (share > _REWRITTEN or is_unknown):
            how_much = "may rewrite" if is_unknown else f"rewrites {100 * share:.0f}% of"
            return (
                f"The normalizer of the {roles[rewrites]} ({normalizer.name or '▁ as a space'}) {how_much} this text "
                "(in whole words), so that the student and the teacher read different bytes; set data.normalize to "
                "true to give the rewritten text to both"
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


def rewritten_share(normalizer: Normalizer, text: str) -> float:
    """Share of a text, without white space, that is in words which a normalizer changes."""
    words = re.findall(r"\S+", text)
    changed = sum(len(word) for word in words if normalizer(word) != word)
    return changed / max(1, sum(map(len, words)))


def _text_of(windows: Sequence[Window], column: str, vocabulary: CanonicalVocabulary) -> str:
    """Text of the windows, as one side reads it."""
    ids = np.concatenate([np.asarray(window[column], dtype=np.int64) for window in windows])
    stream, _ = vocabulary.byte_stream(ids)
    return stream.tobytes().decode(errors="ignore")
