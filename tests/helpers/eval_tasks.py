"""Tasks of lm-eval in files of one's own: one that chooses, one that generates, one that scores a text, and a group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

#: (question, choices, number of the right one)
WORDS = [
    ("The statement that leaves a function is", ["return", "import", "while"], 0),
    ("An exception is caught by", ["break", "except"], 1),
    ("The value of 7 + 5 is", ["11", "12", "13", "14"], 1),
    ("A class is made by", ["class", "def"], 0),
    ("A mapping is called", ["list", "dict", "set"], 1),
]
#: (question, answer)
SUMS = [("12 + 3", "15"), ("7 + 7", "14"), ("1 + 1", "2")]
STORIES = [
    "The for statement is used to iterate over the elements of a sequence.",
    "An object's identity never changes.",
]
METRICS = {"words/acc", "words/acc_norm", "sums/checksum", "sums/exact_match", "stories/bits_per_byte"}


def write_tasks(folder: Path) -> str:
    """Writes ``words``, ``sums``, ``stories``, and the group ``all_three``; returns the folder's path."""
    folder.mkdir()
    data: dict[str, list[dict[str, Any]]] = {
        "words": [{"question": question, "choices": given, "label": right} for question, given, right in WORDS],
        "sums": [{"question": question, "answer": answer} for question, answer in SUMS],
        "stories": [{"text": text} for text in STORIES],
    }
    for name, rows in data.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"data_files": {"test": str(path)}}
        task = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **TASKS[name]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task).replace("'!function utils.scores'", FUNCTION))
    (folder / "utils.py").write_text(SCORES)
    (folder / "group.yaml").write_text(yaml.safe_dump({"group": "all_three", "task": list(data)}))
    return str(folder)


FUNCTION = "!function utils.scores"
# Whether two students wrote the same; a small one is seldom right.
SCORES = """
def scores(doc, results):
    return {"checksum": sum(map(ord, results[0])), "exact_match": float(results[0].strip() == doc["answer"])}
"""
MEAN = {"aggregation": "mean", "higher_is_better": True}
TASKS: dict[str, dict[str, Any]] = {
    "words": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "fewshot_split": "test",
        "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
        "metadata": {"version": 1.0},
    },
    "sums": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}} =",
        "doc_to_target": " {{answer}}",
        "fewshot_split": "test",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "process_results": "!function utils.scores",
        "metric_list": [{"metric": "checksum", **MEAN}, {"metric": "exact_match", **MEAN}],
        "metadata": {"version": 1.0},
    },
    "stories": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
        "metadata": {"version": 1.0},
    },
}
