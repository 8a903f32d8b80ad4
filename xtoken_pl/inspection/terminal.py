"""Renders an inspection for the terminal: both tokenizations, one above the other, spans in alternating colours.

Without colours (NO_COLOR, or no terminal) brackets mark the spans instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from xtoken_pl.inspection.inspection import Cell, Inspection, TeacherView
from xtoken_pl.inspection.predictions import Candidate
from xtoken_pl.inspection.tokens import Token

_COLORS = (Style(color="color(16)", bgcolor="color(153)"), Style(color="color(16)", bgcolor="color(222)"))
_GAP = Style(color="color(16)", bgcolor="color(210)")
_MASKED = Style(color="color(244)")
_DIM = Style(dim=True)
_BETWEEN = "│"  # separates the tokens of a span
_BAR_WIDTH = 12


def print_inspection(inspection: Inspection, console: Console | None = None) -> None:
    """Prints the alignment with each teacher, the rows of W that are not exact, and the predictions."""
    console = console or Console(highlight=False)
    printer = _Printer(console)
    printer.line(Text(inspection.title, Style(bold=True)))
    printer.line(Text(f"student {inspection.tokenizer}: {len(inspection.tokens):,} tokens"))
    for name, view in inspection.teachers.items():
        printer.line(Text())
        printer.teacher(name, view)


class _Printer:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.has_colors = console.is_terminal and console.color_system is not None and not console.no_color

    def line(self, text: Text) -> None:
        self.console.print(text if self.has_colors else text.plain, soft_wrap=True, markup=False, emoji=False)

    def teacher(self, name: str, view: TeacherView) -> None:
        self.line(Text(f"{name}: {view.tokenizer}, {len(view.tokens):,} tokens", Style(bold=True)))
        gaps = f"{view.statistics.student_gaps:,} and {view.statistics.teacher_gaps:,}"
        self.line(Text(f"{view.statistics.num_spans:,} spans ({view.kinds_text}); tokens in no span: {gaps}"))
        self.line(self._legend())
        labels = ["student", name]
        gutter = max(map(cell_len, labels)) + 2
        for cells in self._lines(view.cells, self.console.width - gutter):
            for side, label in enumerate(labels):
                row = Text.assemble((_pad(label, gutter), _DIM))
                for cell in cells:
                    row.append_text(self._padded(cell, side))
                    row.append(" ")
                row.rstrip()
                self.line(row)
            self.line(Text())
        self._counterparts(view)
        self._predictions(name, view)

    def _legend(self) -> Text:
        if not self.has_colors:
            return Text(
                f"[token{_BETWEEN}token of a span] {{in no span}} (not learned); · is a space, ↵ the end of a line"
            )
        legend = Text.assemble((" span ", _COLORS[0]), (" span ", _COLORS[1]), " ", (" in no span ", _GAP), " ")
        return legend.append(" not learned ", _MASKED).append("  · is a space, ↵ the end of a line", _DIM)

    # Cells ---------------------------------------------------------------------------------------------------------

    def _lines(self, cells: Iterable[Cell], width: int) -> Iterable[list[Cell]]:
        line: list[Cell] = []
        used = 0
        for cell in cells:
            needed = self._width(cell) + 1
            if line and used + needed > width:
                yield line
                line, used = [], 0
            line.append(cell)
            used += needed
            if cell.ends_line:
                yield line
                line, used = [], 0
        if line:
            yield line

    def _padded(self, cell: Cell, side: int) -> Text:
        text = self._side(cell, side)
        text.append(" " * (self._width(cell) - cell_len(text.plain)), self._style(cell) if self.has_colors else "")
        return text

    def _width(self, cell: Cell) -> int:
        return max(cell_len(self._side(cell, side).plain) for side in (0, 1))

    def _side(self, cell: Cell, side: int) -> Text:
        style, tokens = self._style(cell), (cell.teacher if side else cell.student)
        texts = [Text(token.text, style + Style(italic=token.is_special)) for token in tokens]
        if self.has_colors:
            return Text(_BETWEEN, style + _DIM).join(texts)
        brackets = "()" if not cell.is_learned else "{}" if cell.span is None else "[]"
        return Text(brackets[0] + _BETWEEN.join(text.plain for text in texts) + brackets[1])

    def _style(self, cell: Cell) -> Style:
        if not cell.is_learned:
            return _MASKED
        return _GAP if cell.span is None else _COLORS[cell.span % 2]

    # Rows of W, predictions ----------------------------------------------------------------------------------------

    def _counterparts(self, view: TeacherView) -> None:
        if view.counterparts is None:
            return
        rows = view.counterparts.by_id.values()
        others = [row for row in rows if not row.is_plain]
        num_plain = len(rows) - len(others)
        self.line(Text(f"{view.counterparts.name}: {num_plain:,} of {len(rows):,} have exactly one teacher token"))
        width = max((cell_len(row.token.text) for row in others), default=0)
        for row in others:
            self.line(Text.assemble("  ", _pad(row.token.text, width), (" → ", _DIM), str(row)))
        self.line(Text())

    def _predictions(self, name: str, view: TeacherView) -> None:
        if view.predictions is None:
            return
        ours = "student through W" if view.predictions.is_projected else "student"
        for span in view.predictions.spans:
            index = view.cell_at(span.student_start)
            cell, loss = view.cells[index], view.predictions.losses[span.student_start]
            self.line(
                Text.assemble(
                    (view.context(index)[-40:], _DIM), self._side(cell, 0), f"  {cell.kind}, loss {loss:.3f} nats"
                )
            )
            columns = [[(name, None), *_entries(span.teacher)], [(ours, None), *_entries(span.student)]]
            widths = [max(cell_len(text) for text, _ in column) for column in columns]
            for row in range(max(map(len, columns))):
                line = Text("  ")
                for column, width, tokens in zip(columns, widths, (cell.teacher, cell.student), strict=True):
                    entry = column[row] if row < len(column) else ("", None)
                    line.append_text(_entry(entry, width, tokens))
                line.rstrip()
                self.line(line)
            self.line(Text())


def _entries(candidates: Sequence[Candidate]) -> list[tuple[str, float | None]]:
    return [(candidate.token.text, candidate.probability) for candidate in candidates]


def _entry(entry: tuple[str, float | None], width: int, tokens: Sequence[Token]) -> Text:
    text, probability = entry
    if probability is None:
        return Text.assemble((_pad(text, width + _BAR_WIDTH + 11), _DIM))
    is_observed = bool(tokens) and text == tokens[0].text
    bar = "█" * round(probability * _BAR_WIDTH)
    return Text.assemble(
        (_pad(text, width), Style(bold=is_observed)), f" {probability:>6.1%} ", (_pad(bar, _BAR_WIDTH + 3), "color(32)")
    )


def _pad(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))
