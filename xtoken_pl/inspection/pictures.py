"""Renders an inspection as matplotlib figures for a dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from xtoken_pl.inspection.inspection import Cell, Inspection, Shade, break_lines
from xtoken_pl.inspection.predictions import Candidate
from xtoken_pl.inspection.tokens import Token

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FONT, _POINTS = "DejaVu Sans Mono", 9
# Width of a character of this font, a whole number of dots at 100 dpi, and height of a row of text.
_CHAR_INCHES, _ROW_INCHES = 0.08, 0.19
_LINE_CHARS, _MAX_LINES = 120, 16
_LINE_ROWS = 2.6  # two rows of text and the space between two lines
_CELL_GAP = 0.4  # characters between two cells
_COLORS: dict[Shade, str] = {"even": "#cfe3f8", "odd": "#fde8b3", "gap": "#f8c9c4", "masked": "#eceff2"}
_TEACHER_COLOR, _STUDENT_COLOR = "#e07b39", "#3b82c4"
_INK, _DIM = "#1c2430", "#667180"


def drawable(text: str) -> str:
    """Replaces characters that the font lacks by their code points, since matplotlib would draw boxes.

    >>> drawable("é数")
    'é⟨U+6570⟩'
    """
    return "".join(char if ord(char) in _characters() else f"⟨U+{ord(char):04X}⟩" for char in text)


@cache
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(_FONT)).get_charmap())


# Both tokenizations of a text ------------------------------------------------------------------------------------


def spans_figure(inspection: Inspection, name: str) -> Figure:
    """Draws both tokenizations of a text, one above the other, spans in alternating colours; truncates a long text."""
    from matplotlib.figure import Figure  # only pictures need it

    view = inspection.teachers[name]
    shown = break_lines(view.cells, lambda cell: _cell_width(cell) + _CELL_GAP, _LINE_CHARS)[:_MAX_LINES]
    height = _LINE_ROWS * len(shown) + 0.4  # in rows of text
    width_inches, height_inches = (_LINE_CHARS + 2) * _CHAR_INCHES, height * _ROW_INCHES + 0.75
    figure = Figure(figsize=(width_inches, height_inches))
    axes = figure.add_axes((0, 0, 1, height * _ROW_INCHES / height_inches))
    axes.set(xlim=(-1, _LINE_CHARS + 1), ylim=(height, 0))
    axes.axis("off")
    _draw_cells(axes, shown)
    figure.text(0.01, 1 - 0.24 / height_inches, f"student above, {name} below", fontsize=11, color=_INK, weight="bold")
    num_shown = sum(map(len, shown))
    cut = f"; the first {num_shown:,} of {len(view.cells):,} cells" if num_shown < len(view.cells) else ""
    figure.text(0.01, 1 - 0.5 / height_inches, view.summary + cut, fontsize=9, color=_DIM)
    return figure


def _cell_width(cell: Cell) -> float:
    return max(sum(len(text) + 0.4 for text in _texts(tokens)) for tokens in (cell.student, cell.teacher))


def _texts(tokens: Sequence[Token]) -> list[str]:
    return [drawable(token.text) for token in tokens]


def _draw_cells(axes: Axes, lines: Sequence[Sequence[Cell]]) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    # Two collections, since a thousand separate artists would take seconds.
    boxes: list[list[tuple[float, float]]] = []
    colors: list[str] = []
    borders: list[list[tuple[float, float]]] = []
    for row, line in enumerate(lines):
        left, top = 0.0, _LINE_ROWS * row + 0.2
        for cell in line:
            width = _cell_width(cell)
            for side, tokens in enumerate((cell.student, cell.teacher)):
                upper, lower = top + 1.13 * side, top + 1.13 * side + 1.07  # with a white gap between them
                boxes.append([(left, upper), (left + width, upper), (left + width, lower), (left, lower)])
                colors.append(_COLORS[cell.shade])
                column = left
                for place, text in enumerate(_texts(tokens)):
                    if place:
                        borders.append([(column, upper + 0.12), (column, lower - 0.12)])
                    axes.text(
                        column + 0.2,
                        upper + 0.55,
                        _literal(text),
                        family=_FONT,
                        fontsize=_POINTS,
                        verticalalignment="center_baseline",
                        color=_INK if cell.is_learned else _DIM,
                    )
                    column += len(text) + 0.4
            left += width + _CELL_GAP
    axes.add_collection(PolyCollection(boxes, facecolors=colors, linewidths=0), autolim=False)
    axes.add_collection(LineCollection(borders, colors=_DIM, linewidths=0.6), autolim=False)


def _literal(text: str) -> str:
    """Escapes text so that matplotlib does not parse it as math."""
    return text.replace("$", r"\$")


# Predictions -----------------------------------------------------------------------------------------------------


def predictions_figure(inspection: Inspection, name: str) -> Figure:
    """Draws the most probable tokens of the teacher beside those of the student, for some spans.

    Tokens that both sides list are in full colour; the token in the text is in bold.
    """
    from matplotlib.figure import Figure  # only pictures need it

    view = inspection.teachers[name]
    spans = view.predicted_spans
    height = 1.25 * max(1, len(spans)) + 0.75
    figure = Figure(figsize=(10, height))
    figure.text(
        0.02, 1 - 0.28 / height, f"predictions of {name} and the student", fontsize=11, weight="bold", color=_INK
    )
    for x, title, color in ((0.2, name, _TEACHER_COLOR), (0.7, view.student_title, _STUDENT_COLOR)):
        figure.text(x, 1 - 0.55 / height, title, fontsize=10, color=color, weight="bold")
    for row, span in enumerate(spans):
        top = height - 0.75 - 1.25 * row
        y = (top - 0.12) / height
        text = _literal(f"{drawable(span.before)[-44:]} ▸{drawable(span.cell.text)}◂")
        figure.text(0.02, y, text, family=_FONT, fontsize=9, color=_INK, va="top")
        figure.text(0.98, y, view.caption(span.cell), fontsize=9, color=_DIM, ha="right", va="top")
        sides = (
            (0.2, span.teacher, span.student, span.teacher_token, _TEACHER_COLOR),
            (0.7, span.student, span.teacher, span.student_token, _STUDENT_COLOR),
        )
        for x, candidates, others, observed, color in sides:
            axes = figure.add_axes((x, (top - 1.15) / height, 0.26, 0.8 / height))
            _draw_candidates(axes, candidates, {other.token.raw for other in others}, observed, color)
    return figure


def _draw_candidates(
    axes: Axes, candidates: Sequence[Candidate], shared: set[bytes], observed: Token, color: str
) -> None:
    shares = [candidate.probability for candidate in candidates]
    bars = axes.barh(range(len(candidates)), shares, color=color, height=0.72)
    axes.set(xlim=(0, 1), ylim=(len(candidates) - 0.4, -0.6), xticks=[])
    axes.set_yticks(range(len(candidates)), [_literal(drawable(candidate.token.text)) for candidate in candidates])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.spines["left"].set(visible=True, color="#c9d1d9")
    for candidate, bar, label in zip(candidates, bars, axes.get_yticklabels(), strict=True):
        is_observed = candidate.token == observed
        label.set(family=_FONT, fontsize=8, color=_INK, weight="bold" if is_observed else "normal")
        bar.set_alpha(1.0 if candidate.token.raw in shared else 0.4)
        axes.text(
            candidate.probability + 0.015,
            bar.get_y() + bar.get_height() / 2,
            f"{candidate.probability:.1%}",
            fontsize=7,
            color=_DIM,
            va="center",
        )
