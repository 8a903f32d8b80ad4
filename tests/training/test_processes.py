"""Several processes, with sharded or split models or not, compute the losses of one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from eval_tasks import WORDS, write_tasks
from safetensors.torch import load_file
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, without_bos_and_eos, write_model
from started_helpers import run_helper
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from xtoken_pl.cli import main

#: A few minutes, together.
pytestmark = pytest.mark.slow

RECIPES = ["cross", "same", "both", "adaptive", "others", "learned", "features", "cached", "accumulated", "offloaded"]
#: Two processes; in the last one four, whose matrices are split over two, with other windows for the other two.
STRATEGIES = ["ddp", "fsdp2", "tensor", "grid"]
#: Every recipe under the strategies of two processes; four on two cores are slow.
RUNS = [(name, recipe) for name in STRATEGIES for recipe in RECIPES if name != "grid"]
RUNS += [("grid", recipe) for recipe in ("both", "same", "learned", "accumulated", "adaptive")]
EPSILON = torch.finfo(torch.float32).eps


def prepare(folder: Path) -> None:
    """A student, two teachers, and four texts, two of which share no span with the teacher that splits."""
    write_model(folder / "student", packing_tokenizer(), seed=1, tied=True, hidden_size=64)
    # Without an eos its one token of such a text has no predecessor.
    write_model(folder / "split", without_bos_and_eos(splitting_tokenizer()), seed=2)
    write_model(folder / "same", packing_tokenizer(), seed=3)
    # They are the whole epoch, so that every step sees all of them, in whatever order.
    texts = [f"{TEXTS[0][:60]} 12 and 345", f"{TEXTS[1][:25]} 67", "a", "b"]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    # Of two tokens the second is learned. It is a span, but where the teacher has one token for both.
    write_model(folder / "splitting", without_bos_and_eos(splitting_tokenizer()), seed=4)
    write_model(folder / "packing", without_bos_and_eos(packing_tokenizer()), seed=5)
    (folder / "singles.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("ab", "12", "xy")))
    write_tasks(folder / "tasks")
    source = {"path": str(folder / "texts.jsonl")}
    teacher = {"model": str(folder / "split"), "loss": "xtoken_pl.ProjectionKL"}
    config = {
        "model": {"student": {"model": str(folder / "student")}, "teachers": {"split": teacher}},
        "data": {"train": source, "val": source, "sequence_length": 64},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    stored = ["--output", str(folder / "cache"), "--top_k", "all", "--precision", "32"]
    main(["cache", "--config", str(folder / "run.yaml"), "--teacher", "split", *stored])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `strategies.py` wrote for one process, and for several under each strategy."""
    path = tmp_path_factory.mktemp("processes")
    prepare(path)
    for name in ("one", *STRATEGIES):
        chosen = RECIPES if name == "one" else [recipe for run, recipe in RUNS if run == name]
        chosen = [*chosen, "single"] if name in ("one", "tensor") else chosen
        run_helper("strategies", name, path, *chosen, timeout=600)
    return path


def results(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize(("strategy", "recipe"), RUNS)
def test_twenty_steps_of_several_processes_have_the_losses_of_one(folder: Path, strategy: str, recipe: str) -> None:
    one, two = results(folder, "one")[recipe], results(folder, strategy)[recipe]
    assert len(one["steps"]) == len(two["steps"]) == 20
    assert one["steps"][0]["train/loss"] > 1.1 * one["steps"][-1]["train/loss"]  # it learned: the gradients mattered
    assert "train/kd" in one["steps"][0]
    assert all("numerals/mass" in validation for validation in one["validations"])
    for mine, theirs in zip(one["steps"] + one["validations"], two["steps"] + two["validations"], strict=True):
        assert theirs.keys() == mine.keys()
        for tag, value in mine.items():
            # Small differences of probabilities and of weights, which are up to 1, are no more precise than these.
            least = 2 * EPSILON if "kd_gradient" in tag or "moved" in tag else 0.0
            assert theirs[tag] == pytest.approx(value, rel=1e-5, abs=least), tag


def test_monitors_count_over_all_processes(folder: Path) -> None:
    """The scalars of the alignment and of W are among those that the test above compares."""
    for name in ("one", *STRATEGIES[:-1]):
        found = results(folder, name)
        assert 0 < found["cross"]["steps"][0]["train/spans_per_token/split"] < 1
        assert found["learned"]["steps"][-1]["projection/moved/split"] > 0
        assert found["both"]["throughput"].keys() > found["cached"]["throughput"].keys()  # a cache has no passes
        for tag, value in found["both"]["throughput"].items():
            assert 0 < value < (1 if "share" in tag else math.inf)


def test_offloaded_teachers_and_recomputed_activations_change_nothing(folder: Path) -> None:
    for name in ("one", *STRATEGIES[:-1]):
        found = results(folder, name)
        for offloaded, plain in zip(found["offloaded"]["steps"], found["both"]["steps"], strict=True):
            assert offloaded == pytest.approx(plain, rel=1e-5)


def test_a_cache_of_everything_stands_for_its_teacher(folder: Path) -> None:
    for name in ("one", *STRATEGIES[:-1]):
        found = results(folder, name)
        for cached, plain in zip(found["cached"]["steps"], found["cross"]["steps"], strict=True):
            assert cached == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("strategy", ["one", *STRATEGIES])
def test_the_first_process_logs_the_pictures_of_models_that_all_of_them_run(folder: Path, strategy: str) -> None:
    events = EventAccumulator(str(folder / strategy / "both"), size_guidance={"images": 0})
    events.Reload()
    found = {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}
    kinds = ("audit", "spans", "top_tokens")
    assert found == {f"pictures/{kind}/{name}": [0] for kind in kinds for name in ("split", "same")}


def test_a_process_without_a_span_takes_part(folder: Path) -> None:
    """Otherwise the texts would not test what they are for."""
    steps = results(folder, "one")["cross"]["steps"]
    assert 0.5 < steps[0]["train/span_coverage/split"] < 1


def test_matrices_are_split_where_a_batch_is_one_row(folder: Path) -> None:
    """One of the processes has no row and no span of it; in every third batch both have no span."""
    one, two = (results(folder, name)["single"]["steps"] for name in ("one", "tensor"))
    assert len(one) == len(two) == 20
    coverage = [step["train/span_coverage/packing"] for step in one]
    assert {*coverage} == {0.0, 1.0}
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)


def test_weights_between_teachers_are_those_of_all_processes(folder: Path) -> None:
    alphas = {step["train/alpha/same"] for step in results(folder, "one")["adaptive"]["steps"]}
    assert len(alphas) == 1  # the teachers stay as they are, and every step sees the same texts
    assert 0.4 < alphas.pop() < 0.99  # by confidence, and not its own 0.3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_exports_of_several_processes_are_those_of_one(folder: Path, strategy: str) -> None:
    mine, theirs = folder / "one/learned", folder / strategy / "learned"
    expected, found = (load_file(path / "export/model.safetensors") for path in (mine, theirs))
    assert expected.keys() == found.keys()
    assert "lm_head.weight" not in found  # tied, and stored once
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    learned, other = (load_file(path / "projections/split.safetensors")["weights"] for path in (mine, theirs))
    torch.testing.assert_close(other, learned, rtol=1e-4, atol=1e-5)
    assert type(AutoModelForCausalLM.from_pretrained(theirs / "export")).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("step", [10, 20])
def test_processes_share_an_evaluation_and_find_what_one_finds(folder: Path, strategy: str, step: int) -> None:
    """While training, too, which goes on with the losses of one process: `same` is the recipe with the evaluations."""
    one, two = (
        json.loads((folder / name / f"same/evaluation/step={step}.json").read_text()) for name in ("one", strategy)
    )
    assert (one["num_processes"], two["num_processes"]) == (1, 4 if strategy == "grid" else 2)
    assert two["n-samples"] == one["n-samples"]
    assert two["n-samples"]["words"]["effective"] == len(WORDS)
    for name in ("words", "sums", "stories"):
        mine, theirs = (
            {key: value for key, value in report["results"][name].items() if not isinstance(value, str)}
            for report in (one, two)
        )
        assert theirs == pytest.approx(mine, rel=1e-4), name


@pytest.mark.parametrize("strategy", ["one", *STRATEGIES])
def test_a_checkpoint_holds_the_student_its_optimizer_and_little_else(folder: Path, strategy: str) -> None:
    path = folder / strategy / "learned/last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    learned = sum(tensor.nbytes for name, tensor in state.items() if name.startswith("losses."))
    whole = load_file(folder / strategy / "learned/export/model.safetensors")  # ties once
    student = sum(tensor.nbytes for tensor in whole.values())
    # AdamW has two moments of each weight.
    assert path.stat().st_size <= 1.05 * 3 * (student + learned)
