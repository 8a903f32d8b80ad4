"""A run that goes on from a checkpoint computes what it would have computed, to the last bit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from logged import train_scalars
from resumed_runs import write_workspace
from small_models import packing_tokenizer, write_model

from xtoken_pl.checkpoints.run_state import RunState, random_state
from xtoken_pl.cli import main
from xtoken_pl.utilities.processes import gather

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def whole(workspace: Path) -> Path:
    """The folder of a run that nothing stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        main(["fit", "--config", "config.yaml"])
    return workspace / "runs/whole/version_0"


def checkpoint_of(run: Path, step: int) -> Path:
    (path,) = (run / "checkpoints").glob(f"*-step={step}.ckpt")
    return path


@pytest.fixture
def resume(workspace: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Goes on behind a step of the whole run; returns the folder of the resumed one."""
    monkeypatch.chdir(workspace)

    def resume(step: int, *arguments: str) -> Path:
        shutil.rmtree(workspace / "runs/resumed", ignore_errors=True)
        path = str(checkpoint_of(whole, step))
        name = ["--trainer.logger.init_args.name", "resumed"]
        main(["fit", "--config", "config.yaml", "--ckpt_path", path, *name, *arguments])
        return workspace / "runs/resumed/version_0"

    return resume


@pytest.mark.parametrize("step", [3, 7, 10])
def test_every_later_loss_is_that_of_the_run_that_was_not_stopped(resume: Run, whole: Path, step: int) -> None:
    expected = train_scalars(whole)
    assert len(expected["train/loss"]) == 14
    assert train_scalars(resume(step)) == {tag: values[step:] for tag, values in expected.items()}


def test_a_run_that_resumed_at_the_end_of_an_epoch_can_be_resumed_again(
    resume: Run, whole: Path, workspace: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again-step=110.ckpt"
    shutil.copy(checkpoint_of(resume(7), 10), again)
    arguments = ["--ckpt_path", str(again), "--trainer.logger.init_args.name", "again"]
    main(["fit", "--config", "config.yaml", *arguments])
    expected = {tag: values[10:] for tag, values in train_scalars(whole).items()}
    assert train_scalars(workspace / "runs/again/version_0") == expected


def test_a_checkpoint_has_the_layout_of_version_0_1_0(whole: Path) -> None:
    """An earlier version and a later one read each other's; see also test_verify.py."""
    state = torch.load(checkpoint_of(whole, 3), weights_only=True)
    assert state["xtoken_pl"].keys() == {"identity", "random_states", "step_losses"}  # the last is unknown to 0.1.0
    identity = state["xtoken_pl"]["identity"]
    assert identity.keys() == {"student", "teachers", "settings"}
    assert identity["student"].keys() == {"model", "revision", "tokenizer"}
    of_teacher = {"model", "revision", "weights", "tokenizer", "projection", "learned"}
    assert [teacher.keys() for teacher in identity["teachers"].values()] == [of_teacher, of_teacher]
    assert state["xtoken_pl"]["random_states"][0].keys() >= {"python", "numpy", "torch"}
    assert state["DistillDataModule"].keys() == {"identity"}
    assert state["DistillDataModule"]["identity"].keys() == {
        "seed of the order (data.seed, else seed_everything)",
        "number of windows",
        "windows (texts, tokenizers, sequence_length)",
        "global batch size (processes x batch_size)",
    }


def test_dropout_draws_what_it_would_have_drawn(resume: Run, whole: Path, workspace: Path) -> None:
    """The test above would pass without random states, did dropout not matter."""
    state = torch.load(checkpoint_of(whole, 3), weights_only=True)
    state["xtoken_pl"]["random_states"][0]["torch"] = torch.Generator().manual_seed(99).get_state()
    other = checkpoint_of(whole, 3).with_name("other-step=103.ckpt")
    torch.save(state, other)
    try:
        drawn = train_scalars(resume(103))
    finally:
        other.unlink()
    assert drawn["train/loss"] != train_scalars(whole)["train/loss"][3:]


def test_a_damaged_checkpoint_is_refused_before_texts_are_read(
    whole: Path, resume: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_text_is_read(*_: object, **__: object) -> None:
        raise AssertionError("texts were read")

    monkeypatch.setattr("xtoken_pl.data.part_windows.load_source", no_text_is_read)
    damaged = checkpoint_of(whole, 3).with_name("damaged-step=99.ckpt")
    damaged.write_bytes(checkpoint_of(whole, 3).read_bytes()[:-5000])
    try:
        with pytest.raises(ValueError, match=r"must be whole, .*damaged-step=99\.ckpt' is not.* --ckpt_path .*step=14"):
            resume(99)
    finally:
        damaged.unlink()


# Random states ------------------------------------------------------------------------------------------------------


def draw() -> list[Any]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def restore(states: list[Any], *, stored_size: int = 1, group_size: int = 1, **process: int) -> None:
    state = RunState()
    state.load({"xtoken_pl": {"random_states": states, "group_size": stored_size}})
    state.restore(**process, group_size=group_size)


def test_random_states_continue_where_they_were(tmp_path: Path) -> None:
    torch.save(gather(random_state()), tmp_path / "states.pt")
    expected = [draw(), draw()]
    states = torch.load(tmp_path / "states.pt", weights_only=True)
    restore(states, rank=0, num_processes=1, step=5)
    assert [draw(), draw()] == expected


def test_states_of_another_number_of_processes_are_seeded_anew_with_a_warning() -> None:
    states = gather(random_state()) * 2
    drawn = []
    for rank in (0, 1):
        with pytest.warns(
            UserWarning, match="random states of 2 processes, and 3 processes resume from it: they are seeded anew"
        ):
            restore(states, rank=rank, num_processes=3, step=5)
        drawn.append(draw())
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [((1, 2), "2 processes, and 2 processes in groups of 2"), ((2, 1), "2 processes in groups of 2, and 2 processes")],
)
def test_states_of_other_groups_are_not_taken(sizes: tuple[int, int], said: str) -> None:
    """As many processes, but other ones share their draws."""
    states = gather(random_state()) * 2
    before = float(torch.rand(()))
    with pytest.warns(UserWarning, match=f"random states of {said} resume from it: they are seeded anew"):
        restore(states, stored_size=sizes[0], group_size=sizes[1], rank=0, num_processes=2, step=5)
    assert float(torch.rand(())) != before


@pytest.mark.parametrize("rank", [2, 3])
def test_a_tensor_parallel_group_draws_what_its_first_process_draws(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise dropout would drop other parts of the states that all processes of a group have."""
    states = []
    for process in range(4):
        torch.manual_seed(process)
        states.append(random_state())
    monkeypatch.setattr("xtoken_pl.checkpoints.run_state.gather", lambda own: states)
    restore([], rank=rank, num_processes=4, step=0, group_size=2)
    assert float(torch.rand(())) == float(torch.rand((), generator=torch.Generator().manual_seed(2)))


# Who teaches whom ---------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(workspace: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What is said where a run of other teachers goes on."""
    monkeypatch.chdir(workspace)

    def refused(change: Callable[[dict[str, Any]], object]) -> str:
        config = yaml.safe_load((workspace / "config.yaml").read_text())
        change(config["model"]["teachers"])
        other = workspace / "other.yaml"
        other.write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match="start a new run from its exported student") as error:
            main(
                [
                    "fit",
                    "--config",
                    "other.yaml",
                    "--ckpt_path",
                    str(checkpoint_of(workspace / "runs/whole/version_0", 3)),
                ]
            )
        return str(error.value)

    return refused


def test_another_set_of_teachers_is_refused_by_name(refused: Callable[..., str]) -> None:
    assert "written with teacher 'same', unlike this run" in refused(lambda teachers: teachers.pop("same"))
    third = {"model": "same", "loss": "xtoken_pl.TokenKL"}
    assert "written without teacher 'third'" in refused(lambda teachers: teachers.update(third=third))


def test_other_weights_of_a_teacher_are_refused_wherever_they_are(workspace: Path, refused: Callable[..., str]) -> None:
    write_model(workspace / "later", packing_tokenizer(), seed=30)
    message = refused(lambda teachers: teachers["same"].update(model="later"))
    assert "teacher 'same' has another weights than in the checkpoint" in message
    assert "of 'same' there" in message
    assert "of 'later' here" in message


def test_the_same_weights_in_another_folder_and_other_alphas_go_on(
    workspace: Path, resume: Run, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(workspace / "same", workspace / "moved", dirs_exist_ok=True)
    with caplog.at_level("INFO"):
        resume(13, "--model.teachers.same.model", "moved", "--model.teachers.same.alpha", "0.25")
    assert "resuming with another alpha of 'same': 0.25, 0.5 in the checkpoint" in caplog.text


def test_validation_does_not_ask_who_the_teachers_were(
    workspace: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    arguments = ["--ckpt_path", str(checkpoint_of(whole, 3)), "--model.teachers.same.model", "student"]
    main(["validate", "--config", "config.yaml", *arguments])
