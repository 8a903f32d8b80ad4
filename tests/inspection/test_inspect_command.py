"""The command `inspect` shows texts and windows, and names wrong input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import cast

import pytest
import yaml
from inspected import write_models
from normalizing import DECOMPOSED, VIETNAMESE, rewriting
from small_models import TEXTS, write_model
from transformers import PreTrainedTokenizerFast

from xtoken_pl.cli import main
from xtoken_pl.cli.report import run
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def workspace(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, folder in folders.items():
        (tmp_path / name).symlink_to(folder)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text[:300]}) + "\n" for text in TEXTS[:3]))
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    teachers = {"split": {"model": "split", "loss": "xtoken_pl.ProjectionKL"}, "same": {"model": "same"}}
    config = {
        "seed_everything": 1,
        "model": {"student": {"model": "student"}, "teachers": teachers},
        "data": {"train": {"path": "texts.jsonl"}, "val": {"path": "texts.jsonl"}, "sequence_length": 48},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_text_is_printed_and_written_as_html(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--student", "student", "--teacher", "split"]
    main(["inspect", *pair, "--text", "in 1984 <b>", "--html", "out.html"])
    output = capsys.readouterr().out
    assert "rows of W" in output
    assert "written to out.html" in output
    assert "&lt;" in Path("out.html").read_text()
    with pytest.raises(UserError, match=r"out.html exists and is not overwritten by default"):
        main(["inspect", *pair, "--text", "a", "--html", "out.html"])
    main(["project", *pair, "--output", "w.safetensors"])
    Path("text.txt").write_text("in 1984 <b>")
    capsys.readouterr()
    stored = ["--projection", "w.safetensors", "--html", "out.html", "--overwrite", "true"]
    main(["inspect", *pair, "--text_file", "text.txt", *stored])
    assert capsys.readouterr().out.splitlines()[1:] == output.splitlines()[1:]


def test_a_text_is_shown_as_it_is_or_rewritten_for_both_sides(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewriting("NFC", splits=True).tokenizer.save_pretrained(workspace / "composing")

    def shown(text: str, *options: str) -> list[str]:
        main(["inspect", "--student", "student", "--teacher", "composing", "--text", text, *options])
        return capsys.readouterr().out.splitlines()

    composed = shown(VIETNAMESE)
    title, *rest = composed
    title_as_is, note, *rest_as_is = shown(DECOMPOSED)
    changed = sum(len(word) for word in DECOMPOSED.split() if not word.isascii())
    said = f"the normalizer of the teacher 'teacher' (NFC) rewrites {100 * changed / len(DECOMPOSED):.1f}% of the text"
    assert note == f"{said}, in whole words; where bytes differ, tokens are in no span"
    assert (title_as_is, rest_as_is) != (title, rest)
    title_rewritten, note, *rest_rewritten = shown(DECOMPOSED, "--normalize", "true", "--html", "out.html")
    assert note == f"{said}, in whole words; both sides read the rewritten text"
    assert (title_rewritten, rest_rewritten[:-1]) == (title, rest)
    assert "(NFC) rewrites" in Path("out.html").read_text()


def test_a_window_of_a_run_is_rewritten_by_the_option_of_its_data(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(workspace / "composing", cast(PreTrainedTokenizerFast, rewriting("NFC", splits=True).tokenizer))
    (workspace / "composed.txt").write_text(VIETNAMESE)
    (workspace / "decomposed.txt").write_text(DECOMPOSED)
    run_options = ["--config", "run.yaml", "--weights", "false", "--model.teachers.split.model", "composing"]

    def shown(path: str, *options: str) -> list[str]:
        main(["inspect", *run_options, "--data.val.path", path, *options])
        return [line for line in capsys.readouterr().out.splitlines() if "every side reads" not in line]

    composed = shown("composed.txt")
    assert shown("decomposed.txt") != composed
    assert shown("decomposed.txt", "--data.normalize", "true") == composed


def test_window_of_a_run_is_printed_with_predictions(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", "--config", "run.yaml", "--split", "train", "--window", "1", "--html", "out.html"])
    output, content = capsys.readouterr().out, Path("out.html").read_text()
    assert "train, window 1" in output
    assert "student through W" in output
    assert output.count(" nats") == content.count(" nats</span></header>") == 16
    assert "<h2>same</h2>" in content
    main(["inspect", "--config", "run.yaml", "--weights", "false"])
    without = capsys.readouterr().out
    assert "rows of W" in without
    assert "nats" not in without


def test_a_prompt_alone_is_shown_by_the_tokens_of_every_side(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--config", "run.yaml", "--split", "train", "--model.rollouts", "xtoken_pl.Rollouts"]
    asked += ["--model.rollouts.max_new_tokens", "16", "--model.rollouts.prompt_bytes", "20"]
    main(["inspect", *asked])
    output = capsys.readouterr().out
    assert "train, window 0: a prompt alone" in output
    shown = dict(re.findall(r"^(student|split|same) \S+: \d+ tokens\n  (.+)$", output, flags=re.MULTILINE))
    read = {side: re.sub("<[^>]*>", "", tokens.replace("│", "")) for side, tokens in shown.items()}
    assert set(read) == {"student", "split", "same"}
    assert len({*read.values()}) == 1
    assert TEXTS[0].replace(" ", "·").startswith(read["student"])
    with pytest.raises(UserError, match=r"is a prompt alone.*leave html='out.html' out"):
        main(["inspect", *asked, "--html", "out.html"])


def test_checkpoint_supplies_the_students_weights(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.logger", "false"]
    quick += ["--model.optimizer.learning_rate", "0.1", "--trainer.enable_progress_bar", "false"]
    main(["fit", "--config", "run.yaml", *quick, "--data.num_workers", "0", "--data.batch_size", "2"])
    (checkpoint,) = Path("checkpoints").glob("*.ckpt")
    capsys.readouterr()
    main(["inspect", "--config", "run.yaml"])
    before = capsys.readouterr().out
    main(["inspect", "--config", "run.yaml", "--ckpt_path", str(checkpoint)])
    after = capsys.readouterr().out
    assert before != after
    aligned = [
        [line for line in output.splitlines() if line.startswith(("student  ", "split    "))]
        for output in (before, after)
    ]
    assert aligned[0] == aligned[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--student", "student", "--teacher", "split"], "give --text or --text_file, got neither"),
        (["--student", "student", "--teacher", "split", "--text", "a", "--text_file", "b"], "got both"),
        (["--student", "student", "--teacher", "split", "--text", ""], "text must hold something to align"),
        (["--student", "student", "--teacher", "split", "--text_file", "no.txt"], "there is none at 'no.txt'"),
        (["--student", "student", "--teacher", "split", "--text_file", "empty.txt"], "'empty.txt' is empty"),
        (
            ["--student", "student", "--teacher", "split", "--text_file", "latin.txt"],
            "must be UTF-8, but 'latin.txt' is",
        ),
        (["--config", "run.yaml", "--split", "test"], "split must be one with texts (train, val), got 'test'"),
        (["--config", "run.yaml", "--split", "dev"], "must be one of train, val, test, got 'dev'"),
        (["--config", "run.yaml", "--window", "999"], "counted from 0, got 999"),
        (["--config", "run.yaml", "--window", "-1"], "counted from 0, got -1"),
        (["--config", "run.yaml", "--top_k", "0"], "top_k must be >= 1, got 0"),
        (["--config", "run.yaml", "--ckpt_path", "no.ckpt"], "there is none at 'no.ckpt'"),
        (["--config", "run.yaml", "--ckpt_path", "no.ckpt", "--weights", "false"], "exclude each other"),
        (["--config", "run.yaml", "--html", "student"], "student is a directory"),
        (["--config=missing.yaml"], "there is none at 'missing.yaml'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_named(
    workspace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert run(main, ["inspect", *arguments]) in (1, 2)
    (message,) = re.findall("^error: .*", capsys.readouterr().err, flags=re.MULTILINE)
    assert expected in message


def test_windows_of_a_stream_can_be_inspected(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streamed = ["--config", "run.yaml", "--split", "train", "--data.streaming", "true", "--weights", "false"]
    main(["inspect", *streamed, "--window", "2"])
    assert "train, window 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="window must be one of a stream of windows of train"):
        main(["inspect", *streamed, "--window", "99999"])
