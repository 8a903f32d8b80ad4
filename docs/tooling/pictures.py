"""Draws the pictures of the documentation from the quickstart's tokenizers and a run of the quickstart.

Usage, after ``make quickstart``: ``python docs/tooling/pictures.py``; ``--run`` is the directory of another run.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xtoken_pl import CanonicalVocabulary, CoverageAudit, SpanAligner, build_projection
from xtoken_pl.audit.report import figure_of
from xtoken_pl.tokenization import load_tokenizer

FOLDER = Path(__file__).parents[1] / "pictures"
TEXT = "In 1987 the naïve café sold 123 crêpes."
NUMERALS = [b"1", b"12", b"123", b"111"]
# Okabe and Ito's colours, lightened so that text can be read on them.
COLORS = ("#99C6E0", "#F0C9A0", "#99D8C7", "#E9C6DC", "#F5E79E", "#BBE1F6")
STRONG = ("#0072B2", "#D55E00")


def shown(token: bytes) -> str:
    """Text of a token, with spaces as ␣; bytes that are part of a character are hexadecimal."""
    try:
        return token.decode().replace(" ", "␣")
    except UnicodeDecodeError:
        return token.hex()


def spans(student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> Figure:
    """Tokens of a text on both sides, as wide as their number of bytes; each colour is a span."""
    (student_ids,), (teacher_ids,) = student.encode([TEXT]), teacher.encode([TEXT])
    found = SpanAligner(student.tokenizer, teacher.tokenizer).align(student_ids, teacher_ids)
    figure = Figure(figsize=(10, 1.7), layout="constrained")
    axes = figure.subplots()
    sides = (
        ("student", student, student_ids, found.student_start, found.student_end, 1.0),
        ("teacher", teacher, teacher_ids, found.teacher_start, found.teacher_end, 0.0),
    )
    for _, vocabulary, ids, starts, ends, y in sides:
        tokens = [vocabulary.token_bytes[token] for token in ids]
        left = [sum(map(len, tokens[:index])) for index in range(len(tokens))]
        for start, end, color in zip(starts, ends, cycle(COLORS), strict=False):
            for index in range(start, end):
                width = len(tokens[index])
                axes.barh(y, width, left=left[index], height=0.8, color=color, edgecolor="white", linewidth=2)
                label(axes, left[index] + width / 2, y, shown(tokens[index]))
    axes.set_yticks([1, 0], ["student", "teacher"])
    axes.set_xlabel(f"bytes of the text; {len(student_ids)} tokens, {len(teacher_ids)} tokens, {len(found)} spans")
    axes.set_xlim(0, len(TEXT.encode()))
    return figure


def rows_of_w(student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> Figure:
    """Weights of teacher tokens in some rows of W."""
    projection = build_projection(student.tokenizer, teacher.tokenizer)
    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.subplots()
    for y, token in enumerate(NUMERALS):
        row, left = student.token_bytes.index(token), 0.0
        for target, weight, color in zip(projection.indices[row], projection.weights[row], COLORS, strict=False):
            if weight > 0:
                axes.barh(y, float(weight), left=left, height=0.75, color=color, edgecolor="white", linewidth=2)
                name = f"{shown(teacher.token_bytes[int(target)])}: {float(weight):.3f}"
                # The text of a thin box goes after it.
                label(axes, left + float(weight) / 2 if weight > 0.05 else 1.05, y, name)
                left += float(weight)
    axes.set_yticks(range(len(NUMERALS)), [shown(token) for token in NUMERALS])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("weight of teacher tokens in the row of W")
    axes.set_ylabel("student token")
    return figure


def curves(run: Path) -> Figure:
    """Curves of the values that a run of the quickstart logs."""
    events = EventAccumulator(str(run))
    events.Reload()

    def line(axes: Axes, tag: str, name: str, **look: Any) -> None:
        scalars = events.Scalars(tag)
        axes.plot([scalar.step + 1 for scalar in scalars], [scalar.value for scalar in scalars], label=name, **look)

    figure = Figure(figsize=(10, 2.8), layout="constrained")
    losses, scale, quality = figure.subplots(1, 3)
    line(losses, "train/ce", "cross-entropy, nats per token", color=STRONG[0])
    line(losses, "train/kd/smollm2", "P-KL, nats per span", color=STRONG[1])
    losses.set_title("training")
    losses.legend(frameon=False)
    line(scale, "train/kd_scale", "s", color=STRONG[0])
    scale.set_title("factor of the distillation loss")
    line(quality, "val/bits_per_byte", "bits per byte", color=STRONG[0], marker="o")
    quality.set_title("held-out text, bits per byte")
    for axes in (losses, scale, quality):
        axes.set_xlabel("step")
    return figure


def label(axes: Axes, x: float, y: float, text: str) -> None:
    """Writes text into the middle of a box."""
    axes.text(x, y, text, ha="center", va="center", fontsize=8)


def pictures(
    student: str = "quickstart/student",
    teacher: str = "quickstart/teacher-smollm2",
    run: str = "runs/quickstart/version_0",
    only: list[str] | None = None,
) -> None:
    """Draws the pictures of the documentation.

    Args:
        student: Directory of the student's tokenizer.
        teacher: Directory of the teacher's tokenizer.
        run: Directory of a quickstart run, with its event files.
        only: Names of the pictures to draw; all of them by default.
    """
    of_student = CanonicalVocabulary.from_tokenizer(load_tokenizer(student))
    of_teacher = CanonicalVocabulary.from_tokenizer(load_tokenizer(teacher))
    draws: dict[str, Callable[[], Figure]] = {
        "spans": lambda: spans(of_student, of_teacher),
        "rows_of_w": lambda: rows_of_w(of_student, of_teacher),
        "curves": lambda: curves(Path(run)),
        "audit": lambda: figure_of(CoverageAudit.from_vocabularies(of_student, of_teacher)),
    }
    FOLDER.mkdir(exist_ok=True)
    for name in only or draws:
        with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
            draws[name]().savefig(FOLDER / f"{name}.png", dpi=140)


if __name__ == "__main__":
    auto_cli(pictures, as_positional=False)
