"""Checkpoints and exports with split matrices are those of one process, and any number of processes resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from split_checkpoints import NUM_STEPS, OTHERS, RUNS
from started_helpers import run_helper
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow

#: Adam's first steps are as large as the learning rate, 1e-2, also where a gradient is hardly more than its rounding.
ATOL = 1e-4


def prepare(folder: Path) -> None:
    """A student, a teacher, and the texts of one step."""
    write_model(folder / "student", packing_tokenizer(), seed=1, tied=True, hidden_size=64)
    write_model(folder / "split", splitting_tokenizer(), seed=2)
    texts = [f"{TEXTS[0][:60]} 12 and 345", f"{TEXTS[1][:25]} 67", TEXTS[2][:40], TEXTS[3][:50]]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints")
    prepare(path)
    for run in [*RUNS, "last"]:
        run_helper("split_checkpoints", run, path, timeout=600)
    return path


def results(folder: Path, run: str) -> Any:
    return json.loads((folder / f"{run}.json").read_text())


@pytest.mark.parametrize("run", list(RUNS))
def test_a_run_resumes_from_its_checkpoint_with_the_losses_that_it_had(folder: Path, run: str) -> None:
    expected, found = results(folder, "one")["whole"], results(folder, run)
    assert len(expected) == NUM_STEPS
    for mine, theirs in zip(expected, found["whole"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)
    for mine, theirs in zip(expected[2:], found["resumed"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)


@pytest.mark.parametrize(("run", "other"), [(run, other) for run, others in OTHERS.items() for other in others])
def test_another_number_of_processes_resumes(folder: Path, run: str, other: str) -> None:
    expected, found = results(folder, "one")["whole"], results(folder, run)
    for mine, theirs in zip(expected[2:], found[f"after {other}"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)


@pytest.mark.parametrize("run", ["tensor", "distributed", "grid"])
def test_the_exported_student_is_whole(folder: Path, run: str) -> None:
    expected, found = (load_file(folder / name / "export/model.safetensors") for name in ("one", run))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=ATOL)
    assert type(AutoModelForCausalLM.from_pretrained(folder / run / "export")).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("run", ["tensor", "grid"])
def test_a_checkpoint_of_one_file_has_the_weights_and_moments_of_one_process(folder: Path, run: str) -> None:
    expected, found = (
        torch.load(folder / name / "step=2.ckpt", weights_only=True, map_location="cpu") for name in ("one", run)
    )
    assert expected["state_dict"].keys() == found["state_dict"].keys()
    for name, tensor in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], tensor, rtol=1e-4, atol=ATOL)
    (mine,), (theirs,) = expected["optimizer_states"], found["optimizer_states"]
    assert mine["state"].keys() == theirs["state"].keys()
    for number, moments in mine["state"].items():
        torch.testing.assert_close(theirs["state"][number]["exp_avg"], moments["exp_avg"], rtol=1e-3, atol=1e-6)
