"""The notebook runs as it is and its stored outputs are those of a run."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from xtoken_pl.cli.prepare import prepare

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tour.ipynb"
# Cells whose output is the same on every machine; the others hold pictures, or figures of this Python's documentation.
DETERMINISTIC = ("train", "export")


def read() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(notebook: NotebookNode, cell: str) -> str:
    (found,) = [each for each in notebook.cells if each.id == cell]
    return "".join(output.get("text", "") for output in found.outputs)


def test_stored_outputs_are_small_and_name_no_machine() -> None:
    nbformat.validate(read())
    content = NOTEBOOK.read_text()
    assert len(content) < 300_000
    assert not re.findall(r"site-packages|/home/|/root/|/tmp/|Traceback|stderr", content)
    code = [cell for cell in read().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) == 2


@pytest.mark.slow
def test_notebook_runs_and_prints_what_is_stored(tmp_path: Path) -> None:
    prepare(str(tmp_path / "quickstart"))
    notebook = read()
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    stored = read()
    for cell in DETERMINISTIC:
        assert printed(notebook, cell) == printed(stored, cell) != ""
