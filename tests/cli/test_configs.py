"""Every configuration parses by the command in its header, and the quickstart runs on its real teacher and texts."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml
from configurations import CONFIGS, ROOT, command_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from xtoken_pl.cli import main
from xtoken_pl.cli.prepare import prepare


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_header_names_what_the_config_needs(config: Path) -> None:
    assert re.search(r"^# Needs: ", config.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_parses_by_the_command_in_its_header(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert str(config.relative_to(ROOT)) in command_of(config)
    with pytest.raises(SystemExit) as stopped:
        main([*command_of(config), "--print_config"])
    assert stopped.value.code == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert model["teachers"] or model["kd_weight"] == 0


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the quickstart's files, prepared as the README says, and the configurations."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["prepare"])
    return folder


FEW_STEPS = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1"]
FEW_STEPS += ["--data.sequence_length", "64"]
#: Rollouts that fit into such windows.
SHORT_ROLLOUTS = ["--model.rollouts.max_new_tokens", "12", "--model.rollouts.prompt_bytes", "40"]


@pytest.mark.parametrize(
    "name",
    [
        "quickstart",
        pytest.param("quickstart_byte_prefix_kl", marks=pytest.mark.slow),
        pytest.param("quickstart_on_policy", marks=pytest.mark.slow),
        pytest.param("quickstart_two_teachers", marks=pytest.mark.slow),  # Gemma alone takes two minutes to prepare
    ],
)
def test_quickstart_runs_on_its_real_teachers_and_texts(
    quickstart: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(quickstart)
    if name == "quickstart_two_teachers":
        main(["prepare", "--teachers", "[smollm2, gemma3]"])
    few_steps = [*FEW_STEPS, *SHORT_ROLLOUTS * (name == "quickstart_on_policy")]
    main([*command_of(ROOT / "configs" / f"{name}.yaml"), *few_steps, "--trainer.log_every_n_steps", "1"])
    run = quickstart / "runs" / name / "version_0"
    events = EventAccumulator(str(run))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    teachers = ["smollm2", "gemma3"] if name == "quickstart_two_teachers" else ["smollm2"]
    by_teacher = ("train/scale", "train/spans_per_token", "throughput/teacher_share")
    assert {f"{tag}/{teacher}" for tag in by_teacher for teacher in teachers} <= tags
    assert "throughput/tokens_per_second" in tags
    assert ("projection/entropy/smollm2" in tags) == (name in ("quickstart", "quickstart_two_teachers"))
    for tag in ("rollouts/loss", "rollouts/length", "rollouts/teacher_nats_per_byte/smollm2"):
        assert (tag in tags) == (name == "quickstart_on_policy")  # in one of the two steps
    for tag in ("train/loss", "val/bits_per_byte", *(f"train/kd/{teacher}" for teacher in teachers)):
        assert all(math.isfinite(event.value) for event in events.Scalars(tag))
    for teacher in teachers:
        assert all(event.value > 0.95 for event in events.Scalars(f"train/span_coverage/{teacher}"))
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    model = AutoModelForCausalLM.from_pretrained(run / "export")
    prompt = tokenizer("The Python", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=4, do_sample=False).shape[1] == prompt["input_ids"].shape[1] + 4


def test_prepared_teacher_models_the_texts_well(quickstart: Path) -> None:
    """SmolLM2 at about one bit per byte: the conversion from GGUF kept weights and tokenizer."""
    folder = quickstart / "quickstart" / "teacher-smollm2"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.tokenize("in 1984") == ["in", "Ġ", "1", "9", "8", "4"]
    text = (quickstart / "quickstart/corpus/val.jsonl").read_text()[:1500].encode().decode("unicode_escape")
    ids = tokenizer(text, return_tensors="pt").input_ids
    nats = model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert nats / math.log(2) / len(text.encode()) < 1.6


def test_what_is_prepared_already_is_kept(quickstart: Path) -> None:
    files = [path for path in (quickstart / "quickstart").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    prepare(str(quickstart / "quickstart"), ["smollm2"])
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_train_and_validation_texts_do_not_overlap(quickstart: Path) -> None:
    train, val = (
        (quickstart / f"quickstart/corpus/{split}.jsonl").read_text().splitlines() for split in ("train", "val")
    )
    assert len(val) > 15
    assert not set(train) & set(val)
