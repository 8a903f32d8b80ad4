"""The callback that runs lm-eval's tasks on the student."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from eval_tasks import METRICS, SUMS, WORDS, write_tasks
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from logged import scalars
from small_models import TEXTS, packing_tokenizer, write_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import xtoken_pl.callbacks.eval_harness as eval_harness
from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, OptimizerRecipe, Student, TextSource
from xtoken_pl.callbacks import EvalHarness, HFExport
from xtoken_pl.cli import main
from xtoken_pl.utilities.errors import UserError

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/evaluation.md").read_text()
TASKS: dict[str, int | None] = {"words": 2, "sums": 1, "stories": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with dropout, texts, and the tasks."""
    path = tmp_path_factory.mktemp("evaluated")
    write_model(path / "student", packing_tokenizer(), seed=1, scale=2.0)
    config = json.loads((path / "student/config.json").read_text())
    (path / "student/config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
    (path / "texts.txt").write_text("\n".join(TEXTS[0][:2000].splitlines()))
    write_tasks(path / "tasks")
    return path


class Recorder(pl.Callback):
    """Losses, random states and modes at the ends of the steps."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        drawn = (torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state()))
        modes = [part.training for part in module.modules()]
        self.steps.append((outputs["total"].item(), drawn, modes))


class FrozenPart(pl.Callback):
    """A part of the student that stays in evaluation mode on purpose."""

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        module.student.lm_head.eval()


def fit(folder: Path, root: Path, *callbacks: pl.Callback, **options: Any) -> tuple[pl.Trainer, list[Tensor]]:
    pl.seed_everything(1, verbose=False)
    optimizer = OptimizerRecipe(learning_rate=1e-3, warmup_fraction=0.0)
    module = MultiTeacherDistillModule(Student(model=str(folder / "student")), kd_weight=0.0, optimizer=optimizer)
    source = TextSource(path=str(folder / "texts.txt"))
    data = DistillDataModule(source, source, sequence_length=32, batch_size=2, num_workers=0)
    arguments: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": str(root),
        "max_steps": 4,
        "limit_val_batches": 1,
        "val_check_interval": 2,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "logger": TensorBoardLogger(str(root), name="", version="run"),
        **options,
    }
    trainer = pl.Trainer(callbacks=list(callbacks), **arguments)
    trainer.fit(module, data)
    return trainer, [parameter.detach().clone() for parameter in module.parameters()]


def harness(folder: Path, tasks: dict[str, int | None] | None = None, **options: Any) -> EvalHarness:
    return EvalHarness(tasks or TASKS, **{"include_path": str(folder / "tasks"), "batch_size": 2, **options})


# What is measured ------------------------------------------------------------------------------------------------


def test_results_are_those_of_lm_eval_for_the_exported_student(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    fit(folder, tmp_path, harness(folder, {"words": 2, "sums": 2, "stories": 2}), HFExport())
    found = json.loads((tmp_path / "run/evaluation/step=4.json").read_text())
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    lm = HFLM(pretrained=str(tmp_path / "run/export"), device="cpu", batch_size=1)
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # asks the machine for seconds
    expected = evaluator.simple_evaluate(lm, tasks=["words", "sums", "stories"], num_fewshot=2, task_manager=manager)
    for name in ("words", "sums", "stories"):
        theirs = {key: value for key, value in expected["results"][name].items() if not isinstance(value, str)}
        mine = {key: value for key, value in found["results"][name].items() if not isinstance(value, str)}
        assert len(theirs) > 1
        assert mine == pytest.approx(theirs, rel=1e-5), name


def test_answers_are_those_of_the_students_own_probabilities_and_greedy_text(folder: Path, tmp_path: Path) -> None:
    """From the weights that were exported, without lm-eval; no examples, which it would draw."""
    trainer, _ = fit(folder, tmp_path, harness(folder, {"words": 0, "sums": 0}), HFExport())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "run/export"), packing_tokenizer()
    right = 0
    for question, choices, label in WORDS:
        context = tokenizer(question).input_ids
        nats = []
        for choice in choices:
            ids = tokenizer(f"{question} {choice}").input_ids
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            nats.append(sum(log_probs[row - 1, ids[row]].item() for row in range(len(context), len(ids))))
        right += nats.index(max(nats)) == label
    checksums = []
    for question, _ in SUMS:
        ids = tokenizer(f"{question} =", return_tensors="pt").input_ids
        text = tokenizer.decode(model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :])
        checksums.append(sum(map(ord, text.split("\n")[0].removesuffix(tokenizer.eos_token))))
    values = {tag: value.item() for tag, value in trainer.callback_metrics.items()}
    assert 0 < right < len(WORDS)
    assert values["eval/words/acc"] == pytest.approx(right / len(WORDS))
    assert values["eval/sums/checksum"] == pytest.approx(sum(checksums) / len(SUMS))


def test_report_says_what_was_run(folder: Path, tmp_path: Path) -> None:
    fit(folder, tmp_path, harness(folder, limit=2), max_steps=1)
    report = json.loads((tmp_path / "run/evaluation/step=1.json").read_text())
    assert (report["step"], report["limit"], report["num_processes"]) == (1, 2, 1)
    assert report["n-shot"] == {"words": 2, "sums": 1, "stories": 0}
    assert report["n-samples"]["words"] == {"original": len(WORDS), "effective": 2}
    assert report["versions"] == {"words": 1.0, "sums": 1.0, "stories": 1.0}
    assert "acc_stderr,none" in report["results"]["words"]
    assert report["lm_eval"]


def test_a_group_without_a_score_is_logged_by_its_tasks(folder: Path, tmp_path: Path) -> None:
    trainer, _ = fit(folder, tmp_path, harness(folder, {"all_three": 0}), max_steps=1)
    assert {tag for tag in trainer.callback_metrics if tag.startswith("eval/")} == {f"eval/{tag}" for tag in METRICS}


def test_filters_are_part_of_the_tag_and_standard_errors_are_not_logged() -> None:
    results = {
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "sample_len": 3,
                "exact_match,strict-match": 0.25,
                "exact_match,flexible-extract": 0.5,
                "exact_match_stderr,strict-match": 0.1,
            },
            "mmlu": {"alias": "mmlu", "acc,none": 0.75, "acc_stderr,none": "N/A"},
            "mmlu_anatomy": {"alias": "anatomy", "acc,none": 0.5},
        }
    }
    assert eval_harness.scalars(results, {"gsm8k": ["gsm8k"], "mmlu": ["mmlu_anatomy"]}) == {
        "gsm8k/exact_match/strict-match": 0.25,
        "gsm8k/exact_match/flexible-extract": 0.5,
        "mmlu/acc": 0.75,
    }


def test_the_papers_tasks_are_tasks_of_lm_eval() -> None:
    import lm_eval.tasks

    config = yaml.safe_load((ROOT / "configs/eval/paper_tasks.yaml").read_text())
    (callback,) = config["trainer"]["callbacks+"]
    tasks = callback["init_args"]["tasks"]
    assert set(tasks.values()) == {3}
    home = Path(lm_eval.tasks.__file__).parent
    # The whole index takes seconds.
    folders = [
        home / name for name in ("benchmarks", "gsm8k", "hellaswag", "minerva_math", "mmlu/default", "winogrande")
    ]
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    assert set(tasks) <= set(manager.all_tasks)


def test_the_documented_task_runs_from_the_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocks(language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)

    monkeypatch.chdir(tmp_path)
    Path("my_tasks").mkdir()
    task, overlay = blocks("yaml")
    Path("my_tasks/sums.yaml").write_text(task)
    Path("my_tasks/sums.jsonl").write_text(blocks("json")[0])
    Path("evaluation.yaml").write_text(overlay)
    source = {"path": str(folder / "texts.txt")}
    run = {
        "model": {"student": {"model": str(folder / "student")}, "kd_weight": 0.0},
        "data": {"train": source, "val": source, "sequence_length": 32, "num_workers": 0},
        "trainer": {"accelerator": "cpu", "max_steps": 1, "limit_val_batches": 0, "enable_progress_bar": False},
    }
    Path("run.yaml").write_text(yaml.safe_dump(run))
    (command,) = [line for line in blocks("sh")[0].splitlines() if line.startswith("python -m xtoken_pl ")]
    main(command.split()[3:])
    (path,) = tmp_path.glob("lightning_logs/version_0/evaluation/*.json")
    report = json.loads(path.read_text())
    assert (path.name, report["n-shot"]["my_sums"], report["n-samples"]["my_sums"]["effective"]) == (
        "step=1.json",
        1,
        2,
    )


# When, and where it is logged ------------------------------------------------------------------------------------


def test_evaluations_lie_beside_the_validations_of_their_steps(folder: Path, tmp_path: Path) -> None:
    """Two batches a step; the last step is not evaluated twice; a checkpoint can watch a score."""
    watch = ModelCheckpoint(tmp_path, monitor="eval/stories/bits_per_byte", every_n_train_steps=2, save_top_k=-1)
    options = {"accumulate_grad_batches": 2, "val_check_interval": 4}
    fit(folder, tmp_path, harness(folder, every_n_steps=2), watch, **options)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    tags = {f"eval/{tag}" for tag in METRICS}
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("eval/")} == tags
    validated = [event.step for event in events.Scalars("val/bits_per_byte")]
    assert len(validated) == 2
    for tag in tags:
        assert [event.step for event in events.Scalars(tag)] == validated
    assert sorted(path.name for path in (tmp_path / "run/evaluation").iterdir()) == ["step=2.json", "step=4.json"]
    bits = [event.value for event in events.Scalars("eval/stories/bits_per_byte")]
    assert bits[0] != bits[1]
    assert math.isclose(watch.best_model_score.item(), min(bits), rel_tol=1e-5)  # type: ignore[union-attr]


def test_only_the_end_is_evaluated_by_default(folder: Path, tmp_path: Path) -> None:
    fit(folder, tmp_path, harness(folder, {"stories": None}))
    assert [path.name for path in (tmp_path / "run/evaluation").iterdir()] == ["step=4.json"]
    assert len(scalars(tmp_path / "run")["eval/stories/bits_per_byte"]) == 1


def test_the_end_can_be_left_out(folder: Path, tmp_path: Path) -> None:
    fit(folder, tmp_path, harness(folder, {"stories": None}, every_n_steps=3, at_end=False))
    assert [path.name for path in (tmp_path / "run/evaluation").iterdir()] == ["step=3.json"]


# Training is left alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_is_the_same_with_and_without(folder: Path, tmp_path: Path, precision: Any) -> None:
    def run(*callbacks: pl.Callback) -> tuple[list[Any], list[Tensor]]:
        recorder = Recorder()
        _, weights = fit(folder, tmp_path, FrozenPart(), *callbacks, recorder, precision=precision, logger=False)
        return recorder.steps, weights

    (plain, weights), (evaluated, same_weights) = run(), run(harness(folder, every_n_steps=1))
    assert evaluated == plain
    assert len(evaluated) == 4
    assert {True, False} == set(evaluated[0][2])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights, same_weights, strict=True))


def test_the_student_is_evaluated_in_the_precision_of_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watch(pl.Callback):
        """What ran before, to check the head, is of no interest."""

        def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
            monkeypatch.setattr(LlamaForCausalLM, "forward", watched)

    seen: set[Any] = set()
    forward = LlamaForCausalLM.forward

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        output = forward(self, *args, **options)
        seen.add((output.logits.dtype, self.training, torch.is_grad_enabled()))
        return output

    fit(folder, tmp_path, Watch(), harness(folder), precision="bf16-mixed", max_steps=1)
    assert seen == {(torch.bfloat16, False, False)}


def test_the_students_tokenizer_is_left_alone(folder: Path, tmp_path: Path) -> None:
    class Watch(pl.Callback):
        def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
            tokenizer = module.student_vocabulary.tokenizer
            self.state = (tokenizer.padding_side, tokenizer.pad_token, len(tokenizer))

    with_harness, plain = Watch(), Watch()
    fit(folder, tmp_path, plain, max_steps=1)
    fit(folder, tmp_path, harness(folder), with_harness, max_steps=1)
    assert with_harness.state == plain.state


# What cannot be evaluated is known before training ---------------------------------------------------------------


def refused(folder: Path, root: Path, callback: EvalHarness) -> None:
    """Raises what `fit` does, if no step was made."""
    recorder = Recorder()
    try:
        fit(folder, root, callback, recorder)
    finally:
        assert not recorder.steps


def test_unknown_task_is_refused_with_the_nearest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    whole = lm_eval.tasks.TaskManager  # the index of all of lm-eval's own takes seconds

    def own_only(include_path: str | None = None, include_defaults: bool = True) -> Any:
        return whole(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own_only)
    with pytest.raises(ValueError, match=r"there is no 'word'. The nearest: words, .*include_path adds your own"):
        refused(folder, tmp_path, harness(folder, {"words": 1, "word": 1}))


def test_missing_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"include_path must be a folder .*none at '/no/such'"):
        refused(folder, tmp_path, harness(folder, include_path="/no/such"))


def test_missing_lm_eval_is_refused_with_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval_harness, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'xtoken_pl\[eval\]'"):
        refused(folder, tmp_path, harness(folder))


def altered(folder: Path, root: Path, **settings: Any) -> str:
    """The folder of a task ``altered``, ``words`` with other settings."""
    task = yaml.safe_load((folder / "tasks/words.yaml").read_text())
    root.mkdir()
    (root / "altered.yaml").write_text(yaml.safe_dump({**task, "task": "altered", **settings}))
    return str(root)


def test_task_without_its_data_is_refused(folder: Path, tmp_path: Path) -> None:
    path = altered(folder, tmp_path / "tasks", dataset_kwargs={"data_files": {"test": "/no/such.jsonl"}})
    with pytest.raises(ValueError, match=r"task 'altered' could not be loaded: .*no/such.jsonl"):
        refused(folder, tmp_path, harness(folder, {"altered": None}, include_path=path))


def test_task_that_runs_the_students_code_is_refused(folder: Path, tmp_path: Path) -> None:
    path = altered(folder, tmp_path / "tasks", unsafe_code=True)
    with pytest.raises(ValueError, match="'altered' must be text alone, and not run code"):
        refused(folder, tmp_path, harness(folder, {"altered": None}, include_path=path))


def test_task_that_fails_on_its_first_question_is_refused(folder: Path, tmp_path: Path) -> None:
    path = altered(folder, tmp_path / "tasks", doc_to_target="{{no_such_column.x}}")
    with pytest.raises(Exception, match="no_such_column"):
        refused(folder, tmp_path, harness(folder, {"altered": 0}, include_path=path))


def test_a_task_that_two_names_bring_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'words' must be named once, but 'all_three' brings it again"):
        refused(folder, tmp_path, harness(folder, {"words": 1, "all_three": 0}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {}}, "tasks must name at least one"),
        ({"tasks": {"words": -1}}, "examples of task 'words' must be >= 0, got -1"),
        ({"tasks": TASKS, "every_n_steps": 0}, "every_n_steps must be >= 1, got 0"),
        ({"tasks": TASKS, "limit": 0}, "limit must be >= 1, got 0"),
        ({"tasks": TASKS, "batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"tasks": TASKS, "at_end": False}, "would never run"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalHarness(**options)
