"""The command `audit`: table, JSON, picture and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib.image
import pytest
from transformers import PreTrainedTokenizerFast

from xtoken_pl.cli import main
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def tokenizers(
    tmp_path_factory: pytest.TempPathFactory, smollm2: PreTrainedTokenizerFast, llama2_style: PreTrainedTokenizerFast
) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    smollm2.save_pretrained(folder / "smollm2")
    llama2_style.save_pretrained(folder / "llama2")
    (folder / "text.txt").write_text(topics["numbers"])
    return folder


def test_audit_prints_a_table_and_writes_json_and_picture(
    tokenizers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tokenizers)
    command = ["audit", "--student", "llama2", "--teacher", "smollm2", "--text", "text.txt"]
    main([*command, "--json_output", "audit.json", "--picture", "audit.png"])
    printed = capsys.readouterr().out
    stored = json.loads(Path("audit.json").read_text())
    common = stored["partition"]["strict"]["common"]
    assert f"overlap: {common:,} tokens" in printed
    assert f"|C| = {common:,}" in printed
    assert f"recommended: {stored['recommendation']['loss']}" in printed
    lines = {line[:20].strip(): line[20:].split() for line in printed.splitlines() if line.count("%") == 3}
    rows = [row for row in stored["categories"].values() if row["count"]]
    rows.append({key: sum(row[key] for row in rows) for key in rows[0]})
    shown = list(lines.values())
    assert list(lines)[-1] == "all"
    for row, line in zip(rows, shown, strict=True):
        shares = [f"{row[part] / row['count']:.2%}" for part in ("strict", "enlarged", "covered")]
        assert line == [f"{row['count']:,}", *shares, f"{row['unmapped']:,}"]
        assert row["unmapped"] == row["count"] - row["covered"]
    assert stored["spans"]["one_to_many"] + stored["spans"]["many_to_one"] > 0
    for kind, count in stored["positions"].items():
        assert re.search(rf"^  {kind} +{count:,} +[\d.]+%  ", printed, flags=re.MULTILINE)
    assert min(stored["positions"][kind] for kind in ("single", "grouped", "inside")) > 0
    assert sum(row["count"] for row in stored["categories"].values()) == stored["num_student"]
    assert matplotlib.image.imread("audit.png").shape[0] > 300
    with pytest.raises(UserError, match=r"audit\.json exists and is not overwritten"):
        main([*command, "--json_output", "audit.json"])
    main([*command, "--json_output", "audit.json", "--overwrite", "true"])


def test_stored_projection_is_audited(tokenizers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tokenizers)
    pair = ["--student", "llama2", "--teacher", "smollm2"]
    main(["project", *pair, "--output", "w.safetensors"])
    for name, extra in (("built", []), ("stored", ["--projection", "w.safetensors"])):
        main(["audit", *pair, *extra, "--json_output", f"{name}.json"])
    assert Path("built.json").read_text() == Path("stored.json").read_text()
    with pytest.raises(ValueError, match="must belong to the tokenizers"):
        main(["audit", "--student", "smollm2", "--teacher", "llama2", "--projection", "w.safetensors"])


def test_critical_categories_can_be_set_on_the_command_line(
    tokenizers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tokenizers)
    main(["audit", "--student", "llama2", "--teacher", "smollm2", "--critical", "[whitespace]"])
    assert "whitespace" in capsys.readouterr().out.splitlines()[-1]


def test_tokenizer_without_exact_bytes_is_refused(
    tmp_path: Path, tokenizers: Path, wordpiece: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wordpiece.save_pretrained("wordpiece")
    with pytest.raises(ValueError, match=r"wordpiece.* cannot be treated exactly: its model is WordPiece"):
        main(["audit", "--student", str(tokenizers / "smollm2"), "--teacher", "wordpiece"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--critical", "[digits]"], "digits"),
        (["--text", "nowhere.txt"], "there is none at 'nowhere.txt'"),
        (["--student", "nowhere"], "'nowhere' could not be loaded"),
        (["--text", "empty.txt"], "text must have content, but 'empty.txt' is empty"),
        (["--text", "latin.txt"], "text must be UTF-8, but 'latin.txt' is not"),
        (["--picture", "audit.jpg"], "picture must be a .png file, got 'audit.jpg'"),
        (["--picture", "x.png", "--json_output", "x.png"], "must be two files"),
        (["--json_output", "llama2", "--overwrite", "true"], "a file is to be written, but llama2 is a directory"),
        (["--json_output", "empty.txt/x.json"], "empty.txt is not a directory"),
    ],
)
def test_wrong_input_of_the_command_is_named(
    tokenizers: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tokenizers)
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises((SystemExit, ValueError, OSError)) as error:
        main(["audit", "--student", "smollm2", "--teacher", "llama2", *arguments])
    assert expected in str(error.value) + capsys.readouterr().err
    assert (tokenizers / "llama2/tokenizer.json").is_file()
