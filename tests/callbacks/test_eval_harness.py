"""EvalHarness reports what lm-eval gives for the exported student."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from eval_tasks import METRICS, SUMS, WORDS
from evaluated_runs import fit, harness, write_workspace
from small_models import packing_tokenizer
from transformers import AutoModelForCausalLM

import xtoken_pl.callbacks.eval_harness as eval_harness
from xtoken_pl.callbacks import HFExport
from xtoken_pl.cli import main

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/evaluation.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workspace(tmp_path_factory.mktemp("evaluated"))


def test_results_equal_lm_evals_for_the_exported_student(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    fit(folder, tmp_path, harness(folder, {"words": 2, "sums": 2, "stories": 2}), HFExport())
    found = json.loads((tmp_path / "run/evaluation/step=4.json").read_text())
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    lm = HFLM(pretrained=str(tmp_path / "run/export"), device="cpu", batch_size=1)
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # takes seconds
    expected = evaluator.simple_evaluate(lm, tasks=["words", "sums", "stories"], num_fewshot=2, task_manager=manager)
    for name in ("words", "sums", "stories"):
        theirs = {key: value for key, value in expected["results"][name].items() if not isinstance(value, str)}
        mine = {key: value for key, value in found["results"][name].items() if not isinstance(value, str)}
        assert len(theirs) > 1
        assert mine == pytest.approx(theirs, rel=1e-5), name


def test_scores_follow_from_the_students_probabilities_and_greedy_text(folder: Path, tmp_path: Path) -> None:
    """Computed from the exported weights without lm-eval; zero-shot, since lm-eval draws the examples."""
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


def test_report_describes_the_run(folder: Path, tmp_path: Path) -> None:
    fit(folder, tmp_path, harness(folder, limit=2), max_steps=1)
    report = json.loads((tmp_path / "run/evaluation/step=1.json").read_text())
    assert (report["step"], report["limit"], report["num_processes"]) == (1, 2, 1)
    assert report["n-shot"] == {"words": 2, "sums": 1, "stories": 0}
    assert report["n-samples"]["words"] == {"original": len(WORDS), "effective": 2}
    assert report["versions"] == {"words": 1.0, "sums": 1.0, "stories": 1.0}
    assert "acc_stderr,none" in report["results"]["words"]
    assert report["lm_eval"]


def test_group_without_a_score_is_logged_by_its_tasks(folder: Path, tmp_path: Path) -> None:
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


def test_papers_tasks_exist_in_lm_eval() -> None:
    import lm_eval.tasks

    config = yaml.safe_load((ROOT / "configs/eval/paper_tasks.yaml").read_text())
    (callback,) = config["trainer"]["callbacks+"]
    tasks = callback["init_args"]["tasks"]
    assert set(tasks.values()) == {3}
    home = Path(lm_eval.tasks.__file__).parent
    # Only these directories: the whole index takes seconds.
    folders = [
        home / name for name in ("benchmarks", "gsm8k", "hellaswag", "minerva_math", "mmlu/default", "winogrande")
    ]
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    assert set(tasks) <= set(manager.all_tasks)


def test_documented_task_runs_from_the_command_line(
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
