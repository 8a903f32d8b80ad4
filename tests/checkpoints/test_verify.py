"""A checkpoint is used only by a run that it belongs to, and those of version 0.1.0 are read like new ones."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from xtoken_pl.checkpoints import Run, Stage, verify
from xtoken_pl.checkpoints.identity import RunIdentity
from xtoken_pl.utilities.errors import UserError

EARLIER: dict[str, Any] = {
    "pytorch-lightning_version": "2.6.6",
    "epoch": 0,
    "global_step": 3,
    "loops": {},
    "optimizer_states": [],
    "lr_schedulers": [],
    "state_dict": {"student.weight": torch.ones(2)},
    "xtoken_pl": {
        "identity": {
            "student": {"model": "student", "revision": None, "tokenizer": "s"},
            "teachers": {
                "t": {
                    "model": "t",
                    "revision": None,
                    "weights": "sha256:1",
                    "tokenizer": "a",
                    "projection": None,
                    "learned": "no",
                }
            },
            "settings": {"ce_weight": 1.0, "alpha of 't'": 0.5},
        },
        "random_states": [],
    },
    "DistillDataModule": {
        "identity": {
            "seed of the order (data.seed, else seed_everything)": 1,
            "number of windows": 13,
            "windows (texts, tokenizers, sequence_length)": "w",
            "global batch size (processes x batch_size)": 2,
        }
    },
}
"""A checkpoint of version 0.1.0, without its values."""


def run_of(checkpoint: dict[str, Any]) -> Run:
    """The run that wrote a checkpoint."""
    identity = RunIdentity(**copy.deepcopy(checkpoint["xtoken_pl"]["identity"]))
    module = nn.Module()
    module.student = nn.Linear(1, 2, bias=False)
    data = dict(checkpoint["DistillDataModule"]["identity"])
    return Run(paths=["a.ckpt", "a.ckpt"], student=identity.student, module=module, identity=identity, data=data)


def content_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {**checkpoint, "data": checkpoint["DistillDataModule"]}


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "export"])
def test_the_run_that_wrote_a_checkpoint_may_use_it(stage: Stage) -> None:
    verify(content_of(EARLIER), run_of(EARLIER), stage)


def change(*keys: str, to: object) -> Callable[[dict[str, Any]], None]:
    def apply(checkpoint: dict[str, Any]) -> None:
        part = checkpoint
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = to

    return apply


STUDENT, TEACHERS = ("xtoken_pl", "identity", "student"), ("xtoken_pl", "identity", "teachers")
PROJECTION = {"losses.t.learned.support": torch.ones(1), "losses.t.learned.logits": torch.ones(1)}
CHANGES = {
    "tokenizer": (change(*STUDENT, "tokenizer", to="x"), "has another tokenizer than 'student' (x there, s here)"),
    "adapter": (change(*STUDENT, "adapter", to={"rank": 4}), "holds an adapter of a student, and this run trains all"),
    "weights": (change("state_dict", "student.q.lora_A.x", to=None), "holds an adapter of a student, and this run"),
    "learned": (change("state_dict", to=PROJECTION), "a learned projection of teacher 't', which this run does not"),
    "missing": (change(*TEACHERS, to={"u": {}}), "written with teacher 'u', unlike this run"),
    "added": (change(*TEACHERS, to={}), "written without teacher 't'"),
    "teacher": (change(*TEACHERS, "t", "weights", to="sha256:2"), "teacher 't' has another weights than in"),
    "projection": (change(*TEACHERS, "t", "projection", to="p"), "teacher 't' has another projection than in"),
    "windows": (change("DistillDataModule", "identity", "number of windows", to=14), "number of windows (14 in the"),
}
#: The others matter where training resumes.
ALWAYS = ("tokenizer", "adapter", "weights")


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "export"])
def test_what_differs_is_refused_by_name_where_it_matters(what: str, stage: Stage) -> None:
    apply, message = CHANGES[what]
    checkpoint = copy.deepcopy(EARLIER)
    apply(checkpoint)
    if stage == "fit" or what in ALWAYS:
        with pytest.raises(ValueError, match=re.escape(message)):
            verify(content_of(checkpoint), run_of(EARLIER), stage)
    else:
        verify(content_of(checkpoint), run_of(EARLIER), stage)


def test_settings_that_may_change_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = copy.deepcopy(EARLIER)
    checkpoint["xtoken_pl"]["identity"]["settings"]["ce_weight"] = 2.0
    with caplog.at_level("INFO"):
        verify(content_of(checkpoint), run_of(EARLIER), "fit")
    assert "resuming with another ce_weight: 1.0, 2.0 in the checkpoint" in caplog.text


@pytest.mark.parametrize("where", ["in the checkpoint", "in this run"])
def test_weights_that_only_a_server_has_are_not_compared(where: str, recwarn: pytest.WarningsRecorder) -> None:
    served = copy.deepcopy(EARLIER)
    change(*TEACHERS, "t", "weights", to=None)(served)
    verify(content_of(served), run_of(served), "fit")
    assert not recwarn.list
    written, running = (served, EARLIER) if where == "in the checkpoint" else (EARLIER, served)
    with pytest.warns(UserWarning, match=f"weights of teacher 't' could not be compared .* {where} a server"):
        verify(content_of(written), run_of(running), "fit")
    change(*TEACHERS, "t", "tokenizer", to="x")(served)
    with pytest.raises(ValueError, match="teacher 't' has another tokenizer"):
        verify(content_of(written), run_of(running), "fit")


def test_weights_of_a_server_are_compared_by_what_it_says_of_a_probe(recwarn: pytest.WarningsRecorder) -> None:
    before, rounded, other, longer = (copy.deepcopy(EARLIER) for _ in range(4))
    of_runs = {"-1.00,-2.00": before, "-1.01,-2.01": rounded, "-1.00,-2.40": other, "-1.00": longer}
    for log_probs, run in of_runs.items():
        change(*TEACHERS, "t", "weights", to=f"server:big:{log_probs}")(run)
    verify(content_of(before), run_of(rounded), "fit")
    assert not recwarn.list
    with pytest.raises(UserError, match=r"server of teacher 't' must have the weights .* differ by 0\.2 nats"):
        verify(content_of(before), run_of(other), "fit")
    with pytest.warns(UserWarning, match="weights of teacher 't' could not be compared"):
        verify(content_of(before), run_of(longer), "fit")


def test_a_checkpoint_of_another_program_is_used_with_a_warning() -> None:
    content = {key: value for key, value in content_of(EARLIER).items() if key != "xtoken_pl"}
    with pytest.warns(UserWarning, match="does not name its teachers"):
        verify(content, run_of(EARLIER), "fit")


def test_processes_with_different_checkpoints_are_stopped() -> None:
    verify(None, Run(paths=["a.ckpt", "a.ckpt"]), "fit")
    verify(None, Run(paths=[None, None]), "fit")
    with pytest.raises(ValueError, match=r"they found a\.ckpt \(process 0\), b\.ckpt \(process 1\)"):
        verify(None, Run(paths=["a.ckpt", "b.ckpt"]), "fit")


def test_files_that_no_run_can_use_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.ckpt")
    weights_alone = {key: value for key, value in EARLIER.items() if key != "lr_schedulers"}
    torch.save(weights_alone, tmp_path / "weights.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "weights.ckpt").read_bytes()[:-100])
    for name, message in {
        "none": "there is none at .*none.ckpt'; check the path, or give `last`",
        "cut": "must be whole",
        "other": r"is none \(it holds weight\)",
        "weights": "must hold the states of optimizers",
    }.items():
        with pytest.raises(ValueError, match=message):
            verify(tmp_path / f"{name}.ckpt", Run(), "fit")
    verify(tmp_path / "weights.ckpt", Run(), "validate")
    for found_later in ("best", "s3://bucket/a.ckpt"):
        verify(found_later, Run(), cast(Stage, "validate"))
