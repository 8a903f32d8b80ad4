"""Problems are right or random as they say, what is held out is never learned from, exact match counts whole lines."""

from __future__ import annotations

import json
import math
import re
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from experiments.held_out import HeldOutProblems, answer_lines, exact_match, is_first_digit, read_problems
from experiments.prepare import prepare, write_lines
from experiments.problems import Problem, Split, Task, noisy_lines, problems
from experiments.suites import Lines
from experiments.tokenizers import make_tokenizer

TASKS: tuple[Task, ...] = ("addition", "words", "letters")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared once: models without weights, held-out problems."""
    folder = tmp_path_factory.mktemp("evidence")
    prepare(folder)
    return folder


# Problems


def is_right(line: str) -> bool:
    """Whether a line says the truth, by its text alone."""
    assert line.endswith("\n")
    assert line.count("\n") == 1
    if ">" in line:
        word, answer = line.strip().split(">")
        return sorted(word) == list(answer)
    if line[0].isdigit():
        a, b, result = map(int, re.split(r"[+=]", line))
        return a + b == result
    a, b, c, *steps = map(int, re.findall(r"\d+", line))
    return steps == [a, b, a + b, a + b, c, a + b - c]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["learn", "search", "test"])
def test_answers_are_right_and_prompts_differ(task: Task, split: Split) -> None:
    number = 300 if split == "search" else 1500
    drawn = problems(task, number, seed=3, split=split)
    assert len(drawn) == number
    assert all(is_right(problem.prompt + problem.answer) for problem in drawn)
    assert all(text.endswith("\n") for problem in drawn for text in (problem.answer, problem.random_answer))
    assert not any("\n" in problem.prompt for problem in drawn)
    if task != "words":  # a story may come again
        assert len({problem.prompt for problem in drawn}) == number


def test_random_answers_have_the_form_of_right_ones_and_say_nothing_about_them() -> None:
    sums = problems("addition", 7977, seed=0)
    drawn = [int(problem.random_answer) for problem in sums]
    assert {*drawn} == set(range(199))
    assert abs(np.corrcoef(drawn, [int(problem.answer) for problem in sums])[0, 1]) < 0.05
    for problem in problems("letters", 500, seed=0):
        assert sorted(problem.random_answer.strip()) == sorted(problem.answer.strip())
    either = []
    for problem in problems("words", 1000, seed=0):
        a, b, c, *steps = map(int, re.findall(r"\d+", problem.prompt + problem.random_answer))
        assert [*steps[:2], *steps[3:5]] == [a, b, steps[2], c]  # the second step starts from what the first gave
        assert 0 <= steps[5] < 199
        either.append((steps[2] == a + b, steps[5] == steps[2] - c))
    assert all(first or second for first, second in either)
    assert 400 < sum(first and not second for first, second in either) < 600
    assert 400 < sum(second and not first for first, second in either) < 600


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.777, 1.0])
def test_exactly_the_share_of_lines_is_random_and_the_others_are_right(task: Task, share: float) -> None:
    drawn = problems(task, 1000, seed=1)
    assert noisy_lines(task, 1000, 0.0, seed=1) == [problem.prompt + problem.answer for problem in drawn]
    is_random = []
    for line, problem in zip(noisy_lines(task, 1000, share, seed=1), drawn, strict=True):
        assert line in (problem.prompt + problem.answer, problem.prompt + problem.random_answer)
        is_random.append(line == problem.prompt + problem.random_answer)
    right_by_chance = sum(problem.answer == problem.random_answer for problem in drawn)
    assert right_by_chance < 60  # letters: 1 in 24
    assert round(1000 * share) <= sum(is_random) <= round(1000 * share) + right_by_chance


@pytest.mark.parametrize("task", TASKS)
def test_same_arguments_give_the_same_lines_and_another_seed_others(task: Task) -> None:
    first, again, other = (noisy_lines(task, 200, 0.3, seed) for seed in (5, 5, 6))
    assert first == again
    assert len({*first} & {*other}) < 20


def questions(line: str) -> set[str]:
    """What is asked in a line, whatever the order: the numbers of its sums, or the letters of its word."""
    pairs = {"+".join(sorted(pair.split("+"))) for pair in re.findall(r"(\d+\+\d+)=", line)}
    return pairs | {"".join(sorted(word)) for word in re.findall(r"^([A-Z]+)>", line)}


def test_no_question_of_one_split_is_asked_in_another_whatever_the_task_and_the_order() -> None:
    most: dict[Split, dict[Task, int]] = {
        "learn": {"addition": 7977, "words": 8000, "letters": 20_000},
        "search": {"addition": 509, "words": 2000, "letters": 2000},
        "test": {"addition": 1514, "words": 4000, "letters": 2000},
    }
    asked = {
        split: {
            question
            for task, number in numbers.items()
            for problem in problems(task, number, 0, split)
            for question in questions(problem.prompt + problem.answer)
        }
        for split, numbers in most.items()
    }
    for one, other in combinations(asked.values(), 2):
        assert not one & other
    pairs = {"+".join(sorted((str(a), str(b)))) for a in range(100) for b in range(100)}
    assert pairs == {question for split in asked.values() for question in split if "+" in question}
    assert [len(split & pairs) for split in asked.values()] == [4030, 255, 765]


@pytest.mark.parametrize(
    ("task", "number", "split", "most"),
    [
        ("addition", 7978, "learn", "7,977"),  # 4,030 pairs, 83 of them of equal numbers
        ("addition", 1515, "test", "1,514"),
        ("letters", math.perm(26, 4), "test", "45,048"),
    ],
)
def test_more_problems_than_there_are_is_refused(task: Task, number: int, split: Split, most: str) -> None:
    with pytest.raises(ValueError, match=rf"there are {most}.*got {number:,}; ask for fewer"):
        problems(task, number, seed=0, split=split)


# Files


def test_lines_to_learn_from_are_in_a_file_of_their_own_for_each_description(tmp_path: Path) -> None:
    parts = [Lines("addition", 20, 0.3), Lines("letters", 10, 1.0)]
    descriptions = [(parts, 0), (parts, 1), (parts[:1], 0), ([parts[0]._replace(random_share=0.2)], 0)]
    paths = [write_lines(*description, tmp_path) for description in descriptions]
    assert len({*paths}) == 4
    text = paths[0].read_text()
    assert text.count("\n") == 30
    expected = [*noisy_lines("addition", 20, 0.3, 0), *noisy_lines("letters", 10, 1.0, 0)]
    assert re.findall(r'{"text": "(.*)\\n"}', text) == [line.strip() for line in expected]
    paths[0].write_text("something else\n")
    assert write_lines(parts, 0, tmp_path) == paths[0]
    assert paths[0].read_text() == text


def test_held_out_files_hold_the_problems_and_what_is_prepared_is_kept_but_for_what_differs(folder: Path) -> None:
    numbers: dict[Split, int] = {"search": 500, "test": 1500}
    for (split, number), task in product(numbers.items(), TASKS):
        drawn = read_problems(folder / split / f"{task}.jsonl")
        assert drawn == problems(task, number, 0, split)
        lines = (folder / split / f"{task}_lines.jsonl").read_text().splitlines()
        assert lines == [json.dumps({"text": problem.prompt + problem.answer}) for problem in drawn[:512]]
    halves = [(folder / f"test/{task}_lines.jsonl").read_text() for task in ("addition", "letters")]
    assert (folder / "test/addition+letters_lines.jsonl").read_text() == "".join(halves)
    files = [path for path in folder.rglob("*") if path.is_file()]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    damaged = folder / "models/student/config.json"
    damaged.write_text(damaged.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    prepare(folder)
    assert {path: path.read_bytes() for path in files} == {path: content for path, (_, content) in before.items()}
    assert {path for path in files if path.stat().st_mtime_ns != before[path][0]} == {*damaged.parent.iterdir()}


# Exact match


class Scripted(torch.nn.Module):
    """Generates what the script has for a prompt, and then the end of the text, as a model in Transformers does."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, script: dict[str, str]) -> None:
        super().__init__()
        self.tokenizer, self.script = tokenizer, script

    def generate(
        self, ids: torch.Tensor, *, attention_mask: torch.Tensor, max_new_tokens: int, do_sample: bool
    ) -> torch.Tensor:
        assert not do_sample
        assert attention_mask.all()
        end = [self.tokenizer.eos_token_id] * max_new_tokens
        rows = []
        for prompt in ids.tolist():
            text = self.script[self.tokenizer.decode(prompt, skip_special_tokens=True)]
            rows.append(
                [*prompt, *[*self.tokenizer(text, add_special_tokens=False)["input_ids"], *end][:max_new_tokens]]
            )
        return torch.tensor(rows)


@pytest.mark.parametrize("name", ["student", "splitting"])
def test_an_answer_counts_that_is_generated_to_the_end_of_its_line(name: Any) -> None:
    generated = {
        "90+95=": ("185\n", True),
        "1+2=": ("3\n", True),
        "37+85=": ("122\n1+1=3\n", True),  # what follows the line is not asked for
        "37+86=": ("122\n", False),
        "3+9=": ("120\n", False),  # begins with the answer
        "37+88=": ("125", False),  # ends with the text
        "37+89=": (" 126\n", False),
        "37+90=": ("0127\n", False),
        "5+5=": ("\n", False),
    }
    asked = [Problem(text, f"{eval(text[:-1])}\n", "") for text in generated]
    tokenizer = make_tokenizer(name)
    model = Scripted(tokenizer, {text: shown for text, (shown, _) in generated.items()})
    lines = answer_lines(model, tokenizer, asked)  # prompts of several lengths, answered in their order
    for line, problem in zip(lines, asked, strict=True):
        assert exact_match([line], [problem]) == generated[problem.prompt][1], problem.prompt
    assert exact_match(lines, asked) == pytest.approx(3 / 9)


@pytest.mark.parametrize(
    ("line", "answer", "expected"),
    [
        ("1\n", "122\n", True),
        ("11\n", "122\n", True),
        ("111\n", "122\n", True),
        ("8", "82\n", True),
        ("122\n", "122\n", False),
        ("12\n", "122\n", False),
        ("2\n", "122\n", False),
        ("\n", "122\n", False),
        ("77\n", "77\n", False),  # right
        ("7\n", "77\n", True),
    ],
)
def test_an_answer_of_the_first_digit_alone_is_told_from_others(line: str, answer: str, expected: bool) -> None:
    assert is_first_digit(line, Problem("", answer, "")) == expected


class Logged(SimpleNamespace):
    """A module that keeps what it logs."""

    def log(self, tag: str, value: float) -> None:
        self.values[tag] = value

    def log_dict(self, values: dict[str, float]) -> None:
        self.values |= values


def test_callback_logs_the_mean_over_files_and_each_of_several(folder: Path) -> None:
    asked = {task: read_problems(folder / f"test/{task}.jsonl")[:8] for task in ("addition", "letters")}
    script = {problem.prompt: problem.answer for problem in (*asked["addition"], *asked["letters"][:2])}
    script |= {problem.prompt: "WRONG\n" for problem in asked["letters"][2:]}
    source = SimpleNamespace(model=str(folder / "models/student"))
    model = Scripted(make_tokenizer("student"), script)
    paths = [str(folder / f"test/{task}.jsonl") for task in asked]
    tag = "held_out/exact_match"
    for given, expected in (
        (paths, {tag: 0.625, f"{tag}/addition": 1.0, f"{tag}/letters": 0.25, "held_out/first_digit": 0.0}),
        (paths[1:], {tag: 0.25, f"{tag}/letters": 0.25}),
    ):
        module = Logged(student=model, student_source=source, values={})
        callback = HeldOutProblems(given, limit=8, first_digits="addition" in given[0])
        callback.on_validation_epoch_end(cast(Any, SimpleNamespace(sanity_checking=True)), cast(Any, module))
        assert module.values == {}
        callback.on_validation_epoch_end(cast(Any, SimpleNamespace(sanity_checking=False)), cast(Any, module))
        assert module.values == expected


def test_two_files_of_one_name_are_refused_for_their_tags_would_be_one(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "addition.jsonl"
    other.write_text((folder / "test/addition.jsonl").read_text())
    with pytest.raises(ValueError, match=r"different names.*addition.*rename one"):
        HeldOutProblems([str(folder / "test/addition.jsonl"), str(other)])
