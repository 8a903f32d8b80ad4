"""Pages, terminals and pictures show every token, and nothing in a text can act on them."""

from __future__ import annotations

import io
import os
import re
import warnings
from html.parser import HTMLParser
from typing import Any

import pytest
from inspected import NASTY, inspection_of, make_module, vocabularies, windows_of, with_rows_of_w, write_models
from rich.cells import cell_len
from rich.console import Console
from small_models import TEXTS

from xtoken_pl import ProjectionKL
from xtoken_pl.data import collate
from xtoken_pl.inspection import Inspection, predict
from xtoken_pl.inspection.page import page
from xtoken_pl.inspection.pictures import drawable, predictions_figure, spans_figure
from xtoken_pl.inspection.terminal import print_inspection


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_models(tmp_path_factory.mktemp("models"))


class _Reader(HTMLParser):
    """Collects the texts and hover details of the tokens, and every tag and attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.tokens: list[tuple[str, str]] = []
        self._about: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._about = dict(attrs).get("data-about")

    def handle_data(self, data: str) -> None:
        if self._about is not None:
            self.tokens.append((data, self._about))
            self._about = None


def test_page_shows_every_token_and_escapes_the_text() -> None:
    shown = with_rows_of_w(NASTY)
    content = page(shown)
    reader = _Reader()
    reader.feed(content)
    view = shown.teachers["split"]
    expected = [token for cell in view.cells for token in (*cell.student, *cell.teacher)]
    assert [text for text, _ in reader.tokens] == [token.text for token in expected]
    for token, (_, about) in zip(expected, reader.tokens, strict=True):
        assert f"id {token.id}" in about
        assert token.raw.hex(" ") in about
    assert not reader.tags & {"script", "link", "img", "iframe"}
    assert not reader.attributes & {"src", "href", "onclick", "onload"}
    assert "url(" not in content
    assert "\x1b" not in content


def test_title_and_names_are_escaped() -> None:
    student, teachers = vocabularies()
    (window,) = windows_of(student, teachers, "a b")
    assert "<b>" not in page(Inspection.from_window("<b>&", window, student, teachers)).split("<body>")[0]


def printed(shown: Inspection, **options: Any) -> str:
    file = io.StringIO()
    print_inspection(shown, Console(file=file, highlight=False, **options))
    return file.getvalue()


def test_terminal_without_colours_marks_spans_with_brackets() -> None:
    output = printed(with_rows_of_w("1984 is"), width=70)
    assert "\x1b" not in output
    (above,) = [line.split() for line in output.splitlines() if line.startswith("student  ")]
    (below,) = [line.split() for line in output.splitlines() if line.startswith("split  ")]
    assert above == ["student", "(<|begin_of_text|>)", "[198]", "[4]", "[·is]", "[<|end_of_text|>]"]
    assert below == ["split", "()", "[1│9│8]", "[4]", "[·i│s]", "[<|end_of_text|>]"]
    assert "multi-token: 0.9" in output


def test_terminal_colours_alternate_and_a_text_cannot_control_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    # `datasets` replaces os.environ when it maps in several processes; rich has kept the old one.
    monkeypatch.setattr(Console, "_environ", os.environ)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    options = {"width": 70, "force_terminal": True, "color_system": "256"}
    shown = inspection_of(NASTY)
    coloured = printed(shown, **options)
    assert "48;5;153m" in coloured
    assert "48;5;222m" in coloured
    assert "\x1b[31m" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed(shown, **options) == printed(shown, width=70)
    assert "\x1b" not in printed(shown, width=70)


@pytest.mark.parametrize("width", [50, 80])
def test_lines_are_wrapped_to_the_terminal(width: int) -> None:
    output = printed(inspection_of(TEXTS[0][:400].replace("\n", " ") + " 数字 café"), width=width)
    rows = [line for line in output.splitlines() if line.startswith(("student  ", "split    "))]
    assert len(rows) > 8
    assert all(cell_len(row) <= width for row in rows)
    # Both sides of a span begin in the same column.
    for above, below in zip(rows[::2], rows[1::2], strict=True):
        starts = [
            [cell_len(row[: opening.start()]) for opening in re.finditer(r"(?<= )\[(?=[^ ])", row)]
            for row in (above, below)
        ]
        assert starts[0] == starts[1]
        assert starts[0]


def test_pictures_are_drawn_without_a_warning(folders: dict[str, str]) -> None:
    module = make_module(folders, split=("split", {"loss": ProjectionKL()}))
    student, teachers = module.vocabularies()
    (window,) = windows_of(student, teachers, NASTY + TEXTS[0][:400])
    batch = collate([window], ["split"])
    shown = Inspection.from_batch("", batch, student, teachers).with_predictions(
        predict(module, batch, num_spans=4, top_k=3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (spans_figure(shown, "split"), predictions_figure(shown, "split")):
            figure.savefig(io.BytesIO(), dpi=30)
    assert len(predictions_figure(shown, "split").axes) == 8
    assert drawable("a数é") == "a⟨U+6570⟩é"
