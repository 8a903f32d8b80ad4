"""A catalogue of wrong inputs: each gives one message with rule, value and way out, and no traceback."""

from __future__ import annotations

import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import wrong_combinations
import wrong_configurations
import wrong_files
import wrong_servers
from wrong_inputs import Case, arguments_of, write_workspace

from xtoken_pl import DistillDataModule, TextSource
from xtoken_pl.cli import main
from xtoken_pl.cli.preflight import check_fit
from xtoken_pl.cli.report import run

MOST_CHARACTERS = 600

#: Rules that the tests of their own parts hold, too.
SLOW = {
    *("config: every alpha zero", "config: learning rate", "config: temperature 0", "config: alpha that is no number"),
    *("data: null", "data: other split", "data: no match", "data: empty folder", "data: other kind", "data: no batch"),
    *("tokenizers: word pieces", "tokenizers: cut", "models: attention", "models: no configuration"),
    *("W: cut", "W: another file", "W: no use", "W: learned without use", "caches: of another teacher"),
    *("caches: other temperature", "caches: stream", "checkpoints: random bytes", "checkpoints: of another student"),
    *("devices: a word", "devices: none", "devices: unknown accelerator", "config: negative steps"),
}

_CASES = [*wrong_configurations.CASES, *wrong_combinations.CASES, *wrong_files.CASES, *wrong_servers.CASES]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_workspace()
    return root


@pytest.mark.parametrize(
    "wrong",
    [pytest.param(wrong, id=wrong.name, marks=[pytest.mark.slow] * (wrong.name in SLOW)) for wrong in _CASES],
)
def test_a_wrong_input_gives_one_message(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], wrong: Case
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("XTOKEN_PL_TRACEBACK", raising=False)
    code = run(main, arguments_of(wrong, workspace))
    captured = capfd.readouterr()
    (message,) = re.findall(r"^error: (.*)$", captured.err, flags=re.MULTILINE)
    assert code in (1, 2)
    assert [part for part in wrong.expected if part not in message] == [], message
    assert "Traceback" not in captured.out + captured.err
    assert wrong_servers.SECRET not in captured.out + captured.err
    assert len(message) <= MOST_CHARACTERS


def test_a_stream_may_end_with_epochs_of_so_many_batches() -> None:
    data = DistillDataModule(TextSource(path="x.jsonl"), streaming=True)
    trainer = pl.Trainer(max_epochs=2, limit_train_batches=3, logger=False, enable_checkpointing=False)
    check_fit(trainer, pl.LightningModule(), data)
    endless = pl.Trainer(max_epochs=2, logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="a stream has no epochs"):
        check_fit(endless, pl.LightningModule(), data)
