"""Tables of text reach TensorBoard, W&B and MLflow as they are, whatever the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from html_tables import cells_of
from inspected import NASTY
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from xtoken_pl.callbacks.trackers import FlatMLFlowLogger, log_table

COLUMNS = ["text", "tokens <of> both"]
MARKDOWN = (
    "# no heading\n\n\n* _no_ **list** `code`\n    indented\n```\nfence\n```\n| a | b |\n[x](http://y) \\* &amp; <b>"
)
ROWS = [
    ["", "  leading and  double spaces "],
    [MARKDOWN, NASTY],
    ["</pre></td></table><script>x</script>", "<!-- a --> <img src=x onerror=y> ]]>"],
]


def trainer_with(logger: Any) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", logger=logger, enable_checkpointing=False)


def test_tensorboard_shows_every_cell_as_it_is(tmp_path: Path) -> None:
    trainer = trainer_with(TensorBoardLogger(tmp_path, "", ""))
    log_table(trainer, "rollouts/samples", COLUMNS, ROWS, step=7, title="[a│b] *c*")
    trainer.loggers[0].finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Tensors("rollouts/samples/text_summary")
    assert event.step == 7
    html = markdown_to_safe_html(event.tensor_proto.string_val[0])  # what TensorBoard's text page does
    # It shows a question mark for the character of escape sequences.
    assert cells_of(html) == [[cell.replace("\x1b", "?") for cell in row] for row in (COLUMNS, *ROWS)]
    assert "<p>[a│b] *c*</p>" in html


def test_wandb_gets_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, Any] = {}

    def log_metrics(_: Any, metrics: dict[str, Any], step: int) -> None:
        logged.update(metrics, step=step)

    monkeypatch.setattr(WandbLogger, "log_metrics", log_metrics)
    log_table(trainer_with(WandbLogger(save_dir=tmp_path, offline=True)), "rollouts/samples", COLUMNS, ROWS, step=7)
    assert logged["step"] == 7
    assert cells_of(logged["rollouts/samples"].html) == [COLUMNS, *ROWS]


@pytest.mark.slow
def test_mlflow_gets_a_page_for_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    trainer = trainer_with(FlatMLFlowLogger("test", save_dir=str(tmp_path)))
    for step in (7, 8):
        log_table(trainer, "rollouts/samples", COLUMNS, ROWS, step=step)
    pages = sorted(tmp_path.glob("*/*/artifacts/tables/*"))
    assert [page.name for page in pages] == ["rollouts~samples-step=7.html", "rollouts~samples-step=8.html"]
    with pages[0].open(newline="") as page:
        assert cells_of(page.read()) == [COLUMNS, *ROWS]
