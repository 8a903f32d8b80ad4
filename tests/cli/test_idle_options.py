"""No option is silently ignored: what has no effect is said, and what is given on the command line counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from small_models import packing_tokenizer, splitting_tokenizer, write_model
from transformers import PreTrainedTokenizerFast

from xtoken_pl import (
    DistillDataModule,
    MultiTeacherDistillModule,
    ProjectionKL,
    Rollouts,
    Server,
    Student,
    Teacher,
    TextSource,
)
from xtoken_pl.cli import main
from xtoken_pl.cli.config_files import merge_config_arguments
from xtoken_pl.cli.idle_options import warn_of_idle_options, warn_of_missing_eos
from xtoken_pl.cli.preflight import _sources, check_positions
from xtoken_pl.projection import Projection
from xtoken_pl.training.optimization import OptimizerRecipe
from xtoken_pl.utilities.errors import UserError

TEXTS, OTHERS = TextSource(path="texts.jsonl"), TextSource(path="others.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_model(root / "student", packing_tokenizer())
    write_model(root / "split", splitting_tokenizer())
    return root


def module(folder: Path, recipe: OptimizerRecipe | None = None, **options: Any) -> MultiTeacherDistillModule:
    teachers = {"split": Teacher(model=str(folder / "split"), loss=ProjectionKL(), **options)}
    teachers["other"] = Teacher(model=str(folder / "split"), loss=ProjectionKL())
    return MultiTeacherDistillModule(Student(model=str(folder / "student")), teachers, optimizer=recipe)


@pytest.mark.parametrize(
    ("data", "option"),
    [
        ({"shuffle_buffer": 5}, "data.shuffle_buffer has no effect"),
        ({"streaming": True, "num_proc": 2}, "data.num_proc has no effect"),
        ({"val": TextSource(path="texts.jsonl")}, "data.val names the texts of data.train"),
    ],
)
def test_options_of_data_without_effect_are_said(data: dict[str, Any], option: str) -> None:
    with pytest.warns(UserWarning, match=option):
        warn_of_idle_options(pl.LightningModule(), DistillDataModule(TEXTS, **data))


@pytest.mark.parametrize(
    ("rate", "teacher", "option"),
    [
        (0.5, {}, "model.optimizer.projection_learning_rate has no effect"),
        (0.5, {"learn_projection": True, "alpha": 0.0}, "model.teachers.split.learn_projection has no effect"),
        (1e-2, {"chat_template": "chat.jinja"}, "model.teachers.split.chat_template has no effect"),
    ],
)
def test_options_of_teachers_without_effect_are_said(
    folder: Path, rate: float, teacher: dict[str, Any], option: str
) -> None:
    recipe = OptimizerRecipe(projection_learning_rate=rate)
    with pytest.warns(UserWarning, match=option):
        warn_of_idle_options(module(folder, recipe, **teacher), DistillDataModule(TEXTS))


@pytest.mark.parametrize(
    ("option", "value"), [("dtype", "bfloat16"), ("attn_implementation", "sdpa"), ("compile", True)]
)
def test_options_of_weights_that_a_server_has_are_said(folder: Path, option: str, value: Any) -> None:
    server = Server(url="http://localhost:8000/v1")
    with pytest.warns(UserWarning, match=rf"model\.teachers\.split\.{option} has no effect: .* on its server"):
        warn_of_idle_options(module(folder, server=server, **{option: value}), DistillDataModule(TEXTS))


def test_positions_and_weights_of_a_served_teacher_are_not_looked_for(folder: Path) -> None:
    teachers = {"big": Teacher(model="no/such-model", server=Server(url="http://localhost:8000/v1"))}
    served = MultiTeacherDistillModule(Student(model=str(folder / "student")), teachers)
    assert list(_sources(served)) == list(_sources(served, asked="big")) == ["student"]


def test_a_weight_of_the_cross_entropy_without_effect_is_said(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    def warned(share: float, **options: Any) -> bool:
        teachers = {"split": Teacher(model=str(folder / "split"), loss=ProjectionKL())}
        student, rollouts = Student(model=str(folder / "student")), Rollouts(share=share)
        recwarn.clear()
        warn_of_idle_options(
            MultiTeacherDistillModule(student, teachers, rollouts=rollouts, **options), DistillDataModule(TEXTS)
        )
        return any("model.ce_weight has no effect" in str(warning.message) for warning in recwarn)

    assert warned(1, ce_weight=0.5)
    assert not warned(1)
    assert not warned(0.5, ce_weight=0.5)


def test_options_of_rollouts_without_effect_are_said(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    def idle(*sources: TextSource, **options: Any) -> list[str]:
        teachers = {"split": Teacher(model=str(folder / "split"), loss=ProjectionKL())}
        student, data = Student(model=str(folder / "student")), dict(zip("ab", sources, strict=False))
        recwarn.clear()
        warn_of_idle_options(
            MultiTeacherDistillModule(student, teachers, rollouts=Rollouts(**options)), DistillDataModule(data)
        )
        said = [str(warning.message) for warning in recwarn]
        return [message.partition(" has no effect")[0].rpartition(".")[2] for message in said]

    chats = TextSource(path="chats.jsonl", messages_field="messages")
    assert idle(chats, prompt_bytes=64) == ["prompt_bytes"]
    assert idle(chats, prompt_end=":") == ["prompt_end"]
    assert idle(TEXTS, prompt_end=":", prompt_bytes=64) == ["prompt_bytes"]
    assert idle(TEXTS, temperature=0, top_p=0.9, top_k=3, num_samples=2) == ["top_p", "top_k", "num_samples"]
    assert idle(TEXTS, prompt_bytes=64, top_p=0.9, top_k=3, num_samples=2) == []
    assert idle(TEXTS, chats, prompt_end=":", temperature=0) == []


def test_nothing_is_said_of_options_that_have_an_effect(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    recipe = OptimizerRecipe(projection_learning_rate=0.5)
    warn_of_idle_options(module(folder, recipe, learn_projection=True), DistillDataModule(TEXTS, OTHERS))
    warn_of_idle_options(module(folder), DistillDataModule(TEXTS, streaming=True, shuffle_buffer=5))
    chats = TextSource(path="chats.jsonl", messages_field="messages")
    warn_of_idle_options(module(folder, chat_template="chat.jinja"), DistillDataModule(TEXTS, chats))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("packing", "consequence"), [("none", "where texts end; set"), ("joined", "without a separator")]
)
def test_a_student_that_cannot_learn_to_stop_is_warned_of(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, packing: Any, consequence: str
) -> None:
    tokenizer = packing_tokenizer()
    write_model(tmp_path / "student", tokenizer)
    student = Student(model=str(tmp_path / "student"))
    data = DistillDataModule(TEXTS, packing=packing)
    warn_of_missing_eos(MultiTeacherDistillModule(student, kd_weight=0), data)
    assert not recwarn.list
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    shutil.rmtree(tmp_path / "student")
    write_model(tmp_path / "student", without)
    with pytest.warns(UserWarning, match=f"has no eos token, .*{consequence}"):
        warn_of_missing_eos(MultiTeacherDistillModule(student, kd_weight=0), data)
    chats = TextSource(path="chats.jsonl", messages_field="messages")
    warn_of_missing_eos(MultiTeacherDistillModule(student, kd_weight=0), DistillDataModule(chats, packing=packing))
    assert not recwarn.list


@pytest.mark.parametrize(("beta", "is_said"), [(0.9, False), (0.5, True)])
def test_the_factor_that_normalization_cancels_is_said_to_have_no_effect(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, beta: float, is_said: bool
) -> None:
    sides = ["--student", str(folder / "student"), "--teacher", str(folder / "split")]
    main(["project", *sides, "--output", str(tmp_path / "default.safetensors")])
    main(["project", *sides, "--output", str(tmp_path / "w.safetensors"), "--beta", str(beta)])
    default, other = (Projection.load(str(tmp_path / f"{name}.safetensors")) for name in ("default", "w"))
    torch.testing.assert_close(other.weights, default.weights)
    assert ("beta=0.5 has no effect" in caplog.text) is is_said


@pytest.mark.parametrize("num_files", [1, 2])
def test_options_precede_files_wherever_they_stand(tmp_path: Path, num_files: int) -> None:
    files = []
    for number in range(num_files):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump({f"key_{number}": number}))
        files.append(f"--config={path}")
    verb, config, content, *options = merge_config_arguments(["fit", "--a", "1", files[0], "--b=2", *files[1:]])
    assert (verb, config, options) == ("fit", "--config", ["--a", "1", "--b=2"])
    assert content == str(tmp_path / "0.yaml") if num_files == 1 else yaml.safe_load(content).keys() >= {"key_1"}


@pytest.mark.parametrize(
    ("positions", "scaling", "limit"),
    [
        (512, None, 512),
        (512, {"rope_type": "linear", "factor": 4.0}, 2048),
        # Extended models state both lengths, in one of two ways: Llama 3.1's, and Qwen's.
        (
            512,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            512,
        ),
        (128, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
    ],
)
def test_scaled_positions_are_counted_once(
    folder: Path, positions: int, scaling: dict[str, Any] | None, limit: int
) -> None:
    file = folder / "student/config.json"
    config = json.loads(file.read_text())
    rope = {"rope_theta": 10000.0, **(scaling or {"rope_type": "default"})}
    file.write_text(json.dumps({**config, "max_position_embeddings": positions, "rope_parameters": rope}))
    student = MultiTeacherDistillModule(Student(model=str(folder / "student")), kd_weight=0)
    try:
        check_positions(student, DistillDataModule(TEXTS, sequence_length=limit))
        with pytest.raises(UserError, match=rf"has {limit}; lower it"):
            check_positions(student, DistillDataModule(TEXTS, sequence_length=limit + 1))
    finally:
        file.write_text(json.dumps(config))
