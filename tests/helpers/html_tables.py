"""Cells of an HTML table, as a browser shows them."""

from __future__ import annotations

from html.parser import HTMLParser


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._is_open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("html", "head", "body", "meta", "p", "table", "tbody", "tr", "th", "td", "pre"), tag
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        self._is_open = tag in ("th", "pre")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "pre"):
            self._is_open = False

    def handle_data(self, data: str) -> None:
        if self._is_open:
            self.rows[-1][-1] += data


def cells_of(html: str) -> list[list[str]]:
    """Cells by row, the headings first; fails at a tag that belongs to no table."""
    reader = _Cells()
    reader.feed(html)
    return reader.rows
