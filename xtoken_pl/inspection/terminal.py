"""Renders an inspection for the terminal: both tokenizations, one above the other, spans in alternating colours.

Without colours (NO_COLOR, or no terminal) brackets mark the spans instead.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from xtoken_pl.inspection.counterparts import Counterparts
from xtoken_pl.inspection.inspection import Cell, Inspection, Shade, TeacherView, break_lines
from xtoken_pl.inspection.predictions import Candidate
from xtoken_pl.inspection.tokens import Token

_STYLES: dict[Shade, Style] = {
    "even": Style(color="color(16)", bgcolor="color(153)"),
    "odd": Style(color="color(16)", bgcolor="color(222)"),
    "gap": Style(color="color(16)", bgcolor="color(210)"),
    "masked": Style(color="color(244)"),
}
_BRACKETS: dict[Shade, str] = {"even": "[]", "odd": "[]", "gap": "{}", "masked": "()"}
_DIM, _BOLD = Style(dim=True), Style(bold=True)
#: Separates the tokens of a span.
BETWEEN = "│"
_BAR_WIDTH = 12
_SIGNS = "· is a space, ↵ the end of a line"
#: How a text without colours is to be read.
BRACKETS = f"[token{BETWEEN}token of a span] {{in no span}} (not learned); {_SIGNS}"


def print_inspection(inspection: Inspection, console: Console | None = None) -> None:
    """Prints the alignment with each teacher, the rows of W that are not exact, and the predictions."""
    printer = _Printer(console or Console(highlight=False))
    printer.line(Text(inspection.title, _BOLD))
    for note in inspection.notes:
        printer.line(Text(note))
    printer.line(Text(f"student {inspection.tokenizer}: {len(inspection.tokens):,} tokens"))
    for name, view in inspection.teachers.items():
        printer.line(Text())
        printer.teacher(name, view)


def alignment_text(view: TeacherView, name: str, *, width: int) -> str:
    """Returns both tokenizations of a text, one above the other, spans in brackets, in lines of a number of columns."""
    file = io.StringIO()
    _Printer(Console(file=file, width=width, force_terminal=False)).cells(name, view)
    return file.getvalue().rstrip("\n")


class _Printer:
    def __init__(self, console: Console) -> None:
        self.has_colors = console.is_terminal and console.color_system is not None and not console.no_color
        if not self.has_colors:  # no bold or dim text either
            console = Console(file=console.file, width=console.width, color_system=None, highlight=False)
        self.console = console

    def line(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)

    def teacher(self, name: str, view: TeacherView) -> None:
        self.line(Text(f"{name}: {view.tokenizer}, {len(view.tokens):,} tokens", _BOLD))
        self.line(Text(view.summary))
        self.line(self._legend())
        self.cells(name, view)
        if view.counterparts is not None:
            self._counterparts(view.counterparts)
        self._predictions(name, view)

    def cells(self, name: str, view: TeacherView) -> None:
        gutter = max(cell_len("student"), cell_len(name)) + 2
        for cells in break_lines(view.cells, lambda cell: self._width(cell) + 1, self.console.width - gutter):
            student = [(cell, self._side(cell, cell.student)) for cell in cells]
            teacher = [(cell, self._side(cell, cell.teacher)) for cell in cells]
            for label, texts in (("student", student), (name, teacher)):
                row = Text.assemble((set_cell_size(label, gutter), _DIM))
                for cell, text in texts:
                    text.pad_right(self._width(cell) - text.cell_len)
                    row.append_text(text).append(" ")
                row.rstrip()
                self.line(row)
            self.line(Text())

    def _legend(self) -> Text:
        if not self.has_colors:
            return Text(BRACKETS)
        labels: dict[Shade, str] = {"even": " span ", "odd": " span ", "gap": " in no span ", "masked": " not learned "}
        parts = [(label, _STYLES[shade]) for shade, label in labels.items()]
        return Text.assemble(*parts, (f"  {_SIGNS}", _DIM))

    def _width(self, cell: Cell) -> int:
        return max(self._side(cell, tokens).cell_len for tokens in (cell.student, cell.teacher))

    def _side(self, cell: Cell, tokens: Sequence[Token]) -> Text:
        text = Text(style=_STYLES[cell.shade])
        for place, token in enumerate(tokens):
            text.append(BETWEEN if place else "", _DIM).append(token.text, Style(italic=token.is_special))
        if self.has_colors:
            return text
        brackets = _BRACKETS[cell.shade]
        return Text(f"{brackets[0]}{text.plain}{brackets[1]}")

    def _counterparts(self, counterparts: Counterparts) -> None:
        num_plain, others = len(counterparts.plain), counterparts.others
        num_rows = num_plain + len(others)
        self.line(Text(f"{counterparts.name}: {num_plain:,} of {num_rows:,} have exactly one teacher token"))
        width = max((cell_len(row.token.text) for row in others), default=0)
        for row in others:
            self.line(Text.assemble("  ", set_cell_size(row.token.text, width), (" → ", _DIM), str(row)))
        self.line(Text())

    def _predictions(self, name: str, view: TeacherView) -> None:
        for span in view.predicted_spans:
            text = self._side(span.cell, span.cell.student)
            self.line(Text.assemble((span.before[-40:], _DIM), text, f"  {view.caption(span.cell)}"))
            table = Table.grid(padding=(0, 1))
            table.add_row(Text(name, _DIM), "", "", Text(view.student_title, _DIM))
            teacher = _rows(span.teacher, span.teacher_token)
            student = _rows(span.student, span.student_token)
            for left, right in zip_longest(teacher, student, fillvalue=(Text(), Text(), Text())):
                table.add_row(*left, *right)
            self.console.print(Padding(table, (0, 0, 1, 2), expand=False))


def _rows(candidates: Sequence[Candidate], observed: Token) -> list[tuple[Text, Text, Text]]:
    """Text, probability and bar of each candidate; the token in the text is bold."""
    return [
        (
            Text(candidate.token.text, Style(bold=candidate.token == observed)),
            Text(f"{candidate.probability:>6.1%}"),
            Text(set_cell_size("█" * round(candidate.probability * _BAR_WIDTH), _BAR_WIDTH), "color(32)"),
        )
        for candidate in candidates
    ]
