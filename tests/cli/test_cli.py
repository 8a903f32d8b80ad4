"""The command line, end to end on small models: logs, exports, overrides, resume."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from logged import scalars
from small_run import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from xtoken_pl.cli import main
from xtoken_pl.projection import Projection
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def finished(workspace: Path) -> Path:
    """The folder of a run of four steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        main(["fit", "--config", "config.yaml"])
    return workspace / "runs/test/version_0"


def test_fit_logs_every_promised_tag(finished: Path) -> None:
    tags = scalars(finished)
    expected = {"train/loss", "train/ce", "train/kd", "train/kd_scale", "val/bits_per_byte", "val/ce"}
    for name in ("split", "same"):
        expected |= {f"train/{tag}/{name}" for tag in ("kd", "alpha", "scale", "span_coverage", "unmapped_mass")}
        expected |= {f"val/{tag}/{name}" for tag in ("kd", "top1_agreement")}
    assert expected <= tags.keys()
    assert all(len(tags[tag]) == 4 for tag in expected if tag.startswith("train/"))
    # Before the first step, and every two steps.
    assert all(len(tags[tag]) == 3 for tag in expected if tag.startswith("val/"))


def test_logged_scalars_fit_together(finished: Path) -> None:
    tags = scalars(finished)
    for step in range(4):
        kd = tags["train/kd/split"][step] + 0.5 * tags["train/kd/same"][step]
        assert tags["train/kd"][step] == pytest.approx(kd, rel=1e-5)
        assert tags["train/loss"][step] == pytest.approx(2 * tags["train/ce"][step], rel=1e-5)
        assert tags["train/scale/same"][step] == pytest.approx(0.5 * tags["train/kd_scale"][step], rel=1e-5)
        assert tags["train/unmapped_mass/same"][step] == 0
        assert tags["train/span_coverage/split"][step] > 0.9


def test_tensorboard_groups_the_scalars_on_a_custom_page(finished: Path) -> None:
    events = EventAccumulator(str(finished))
    events.Reload()
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0].decode(errors="replace")
    assert all(tag in layout for tag in ("train/kd/split", "train/alpha/same", "val/top1_agreement/split"))


def test_exported_student_loads_and_generates(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "export")
    tokenizer = AutoTokenizer.from_pretrained(finished / "export")
    prompt = tokenizer("The number", return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert generated.shape[1] == prompt["input_ids"].shape[1] + 5
    checkpoint = torch.load(finished / "checkpoints/last.ckpt", weights_only=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, checkpoint["state_dict"][f"student.{name}"])


def test_config_is_saved_beside_the_checkpoints(finished: Path) -> None:
    saved = yaml.safe_load((finished / "config.yaml").read_text())
    assert saved["model"]["init_args"]["teachers"]["same"]["alpha"] == 0.5
    assert saved["trainer"]["gradient_clip_val"] == 1.0
    assert (finished / "checkpoints/last.ckpt").is_file()


def test_checkpoint_holds_no_teacher_and_nothing_pickled(workspace: Path, finished: Path) -> None:
    checkpoint = torch.load(finished / "checkpoints/last.ckpt", weights_only=True)
    assert all(key.startswith("student.") for key in checkpoint["state_dict"])
    student = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
    states = checkpoint["optimizer_states"][0]["state"].values()
    moments = sum(value.numel() for state in states for value in state.values() if value.ndim)
    size = (finished / "checkpoints/last.ckpt").stat().st_size
    assert size < 1.2 * 4 * (student + moments)


def test_command_line_changes_one_value_of_one_teacher(run: Run) -> None:
    folder = run("fit", "--model.teachers.same.alpha", "0.125", "--trainer.max_steps", "1")
    assert scalars(folder)["train/alpha/same"] == [0.125]
    assert scalars(folder)["train/alpha/split"] == [1.0]


def test_later_config_adds_a_teacher_and_changes_another(workspace: Path, run: Run) -> None:
    other = {
        "model": {
            "teachers": {
                "same": {"alpha": 0.25},
                "third": {
                    "model": "split",
                    "loss": {"class_path": "xtoken_pl.ProjectionKL", "init_args": {"merge": "mean"}},
                },
            }
        },
        "trainer": {"max_steps": 1},
    }
    (workspace / "other.yaml").write_text(yaml.safe_dump(other))
    folder = run("fit", "--config", "other.yaml")
    tags = scalars(folder)
    assert tags["train/alpha/same"] == [0.25]
    assert {"train/kd/split", "train/kd/third"} <= tags.keys()


def test_without_the_callback_the_fixed_weight_applies(workspace: Path, run: Run) -> None:
    config = yaml.safe_load((workspace / "config.yaml").read_text())
    config["trainer"]["callbacks"] = config["trainer"]["callbacks"][1:2]
    (workspace / "fixed.yaml").write_text(yaml.safe_dump(config))
    folder = run("fit", "--model.kd_weight", "0.3", "--trainer.max_steps", "2", config="fixed.yaml")
    assert scalars(folder)["train/kd_scale"] == pytest.approx([0.3, 0.3])


def test_subclass_that_is_named_alone_runs(workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented example, its models replaced: a class_path, and nothing else under `model`."""
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text()
    example = next(
        block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "configure_teachers" in block
    )
    for hub, local in (
        ("meta-llama/Llama-3.2-1B", "student"),
        ("Qwen/Qwen3-4B", "split"),
        ("meta-llama/Llama-3.2-3B", "same"),
    ):
        assert f'"{hub}"' in example
        example = example.replace(f'"{hub}"', f'"{local}"')
    (workspace / "my_teachers.py").write_text(example)
    monkeypatch.syspath_prepend(workspace)
    monkeypatch.delitem(sys.modules, "my_teachers", raising=False)  # of another test
    config = yaml.safe_load((workspace / "config.yaml").read_text())
    config["model"] = {"class_path": "my_teachers.LlamaFromQwenAndLlama"}
    config["trainer"]["max_steps"] = 1
    (workspace / "subclass.yaml").write_text(yaml.safe_dump(config))
    tags = scalars(run("fit", config="subclass.yaml"))
    assert tags["train/alpha/qwen"] == pytest.approx([0.8])
    assert tags["train/alpha/llama"] == pytest.approx([0.2])
    changed = run("fit", "--model.optimizer.learning_rate", "0.125", config="subclass.yaml")
    assert (
        yaml.safe_load((changed / "config.yaml").read_text())["model"]["init_args"]["optimizer"]["learning_rate"]
        == 0.125
    )


@pytest.mark.slow
def test_learned_projection_is_trained_saved_exported_and_resumed(workspace: Path, run: Run) -> None:
    config = yaml.safe_load((workspace / "config.yaml").read_text())
    config["model"]["teachers"]["split"]["learn_projection"] = True
    config["model"]["optimizer"]["projection_learning_rate"] = 0.05
    config["trainer"]["callbacks"].append({"class_path": "xtoken_pl.callbacks.ProjectionExport"})
    (workspace / "learned.yaml").write_text(yaml.safe_dump(config))
    folder = run("fit", config="learned.yaml")
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    logits = checkpoint["state_dict"]["losses.split.learned.logits"]
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == [1e-3, 1e-3, 0.05]
    exported = Projection.load(folder / "projections/split.safetensors")
    assert exported.parameters["learned"] == 1.0

    resumed = run(
        "fit",
        *("--ckpt_path", str(folder / "checkpoints/last.ckpt"), "--trainer.max_steps", "6"),
        *("--model.optimizer.projection_learning_rate", "0.025"),
        config="learned.yaml",
    )
    after = torch.load(resumed / "checkpoints/last.ckpt", weights_only=True)
    assert after["lr_schedulers"][0]["base_lrs"] == [1e-3, 1e-3, 0.025]
    moved = after["state_dict"]["losses.split.learned.logits"] - logits
    assert 0 < moved.abs().max() < 0.1

    path = str(folder / "projections/split.safetensors")
    started = run("fit", "--model.teachers.split.projection", path, "--trainer.max_steps", "1")
    fixed = run("fit", "--trainer.max_steps", "1")
    assert abs(scalars(started)["train/kd/split"][0] - scalars(fixed)["train/kd/split"][0]) > 1e-4

    # A checkpoint says of which W it is.
    last = ["--ckpt_path", str(folder / "checkpoints/last.ckpt"), "--trainer.max_steps", "6"]
    with pytest.raises(ValueError, match="a learned projection of teacher 'split', which this run does not learn"):
        run("fit", *last)
    with pytest.warns(UserWarning, match="the learned projection of teacher 'split' in the checkpoint is not used"):
        run("validate", *last)
    run("validate", *last, config="learned.yaml")
    main(["project", "--student", "student", "--teacher", "split", "--output", "other_w.safetensors", "--gamma", "0.9"])
    with pytest.raises(ValueError, match="teacher 'split' in the checkpoint belongs to another W"):
        run("fit", *last, "--model.teachers.split.projection", "other_w.safetensors", config="learned.yaml")
    without = run("fit", "--trainer.max_steps", "1") / "checkpoints/last.ckpt"
    with pytest.raises(ValueError, match="the checkpoint holds no learned projection of teacher 'split'"):
        run("fit", "--ckpt_path", str(without), config="learned.yaml")


def test_cross_entropy_alone_needs_no_teacher(workspace: Path, run: Run) -> None:
    config = yaml.safe_load((workspace / "config.yaml").read_text())
    config["model"] = {"student": {"model": "student"}, "kd_weight": 0.0}
    config["trainer"] |= {"callbacks": config["trainer"]["callbacks"][1:2], "max_steps": 2}
    (workspace / "ce.yaml").write_text(yaml.safe_dump(config))
    tags = scalars(run("fit", config="ce.yaml"))
    assert "train/kd" not in tags
    assert tags["train/loss"] == tags["train/ce"]
    assert len(tags["val/bits_per_byte"]) == 2  # before and after


def test_teachers_without_a_weight_are_measured_at_validations_alone(
    workspace: Path, run: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = yaml.safe_load((workspace / "config.yaml").read_text())
    config["model"]["kd_weight"] = 0.0
    config["trainer"] |= {"callbacks": config["trainer"]["callbacks"][1:2], "max_steps": 2}
    (workspace / "idle.yaml").write_text(yaml.safe_dump(config))
    with caplog.at_level("INFO"):
        tags = scalars(run("fit", config="idle.yaml"))
    assert "teachers that run for validation and monitors only: same, split" in caplog.text
    assert len(tags["val/kd/split"]) == 2
    assert not {tag for tag in tags if tag.startswith(("train/kd", "train/alpha"))}
    assert "not learned from (kd_weight 0)" in capsys.readouterr().out


def test_resumed_run_continues_and_the_command_line_wins(run: Run, finished: Path) -> None:
    last = str(finished / "checkpoints/last.ckpt")
    folder = run(
        "fit",
        *("--ckpt_path", last, "--trainer.max_steps", "6", "--model.optimizer.learning_rate", "5e-4"),
        *("--model.teachers.same.alpha", "0.25"),
    )
    tags = scalars(folder)
    assert len(tags["train/loss"]) == 2  # steps 5 and 6
    assert tags["train/alpha/same"] == [0.25, 0.25]
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == [5e-4, 5e-4]
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 5e-4


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_validate_and_test_give_the_metrics_of_a_checkpoint(
    run: Run, finished: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--ckpt_path", str(finished / "checkpoints/last.ckpt")]
    arguments += ["--data.test.path", "texts.jsonl", "--trainer.limit_test_batches", "2"] if verb == "test" else []
    run(verb, *arguments)
    prefix = {"validate": "val", "test": "test"}[verb]
    printed = capsys.readouterr().out
    found = re.search(rf"{prefix}/bits_per_byte\D+([0-9.]+)", printed)
    assert found, printed
    assert float(found[1]) == pytest.approx(scalars(finished)["val/bits_per_byte"][-1], rel=1e-4)


def test_project_writes_w_and_prints_its_rows(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    main(["project", "--student", "student", "--teacher", "split", "--output", "w.safetensors"])
    printed = capsys.readouterr().out
    counts = Projection.load("w.safetensors").counts
    for label, count in (("exact", counts.exact), ("multi-token", counts.multi_token), ("zero", counts.zero)):
        assert re.search(rf"{label}\s+{count} rows", printed)
    with pytest.raises(UserError, match=r"w\.safetensors exists and is not overwritten"):
        main(["project", "--student", "student", "--teacher", "split", "--output", "w.safetensors"])


def test_half_precision_trains(run: Run) -> None:
    for precision in ("bf16-true", "bf16-mixed"):
        folder = run("fit", "--trainer.precision", precision, "--trainer.max_steps", "2")
        assert all(value == value for value in scalars(folder)["train/loss"])


def test_optimizer_of_a_subclass_is_left_alone_on_resume(
    workspace: Path, run: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "own_optimizer.py").write_text(
        "import torch\n"
        "from xtoken_pl import MultiTeacherDistillModule\n"
        "class Own(MultiTeacherDistillModule):\n"
        "    def configure_optimizers(self):\n"
        "        return torch.optim.SGD(self.parameters(), lr=0.25)\n"
    )
    monkeypatch.syspath_prepend(workspace)
    config = yaml.safe_load((workspace / "config.yaml").read_text())
    config["model"] = {"class_path": "own_optimizer.Own", "init_args": config["model"]}
    config["trainer"]["max_steps"] = 1
    (workspace / "own.yaml").write_text(yaml.safe_dump(config))
    first = run("fit", config="own.yaml") / "checkpoints/last.ckpt"
    resumed = run("fit", "--ckpt_path", str(first), "--trainer.max_steps", "2", config="own.yaml")
    checkpoint = torch.load(resumed / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.25
