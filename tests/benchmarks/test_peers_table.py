"""The tables of whole training runs, made from results alone, and where they are stored."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.__main__ import BEGIN, END, README, RESULTS, collect, store
from benchmarks.peers.alignment import Alignment
from benchmarks.peers.runs import ALIGNED, LEFT_OUT, RUNS
from benchmarks.peers.table import per_step, render, time_ratio

COUNTS = asdict(Alignment(num_tokens=2000, num_lost=10, num_misaligned=4, num_groups=800, num_unequal_rows=200))
OWN = asdict(Alignment(num_tokens=2000, num_lost=5, num_groups=800))


def timed(*rounds: list[float]) -> dict[str, Any]:
    cpu = [[2 * seconds for seconds in own] for own in rounds]
    return {"seconds": [*rounds], "cpu_seconds": cpu, "peak_bytes": [3_000_000_000, 1_000_000_000, 2_000_000_000]}


def results() -> dict[str, Any]:
    """A peer and this package; the second round is disturbed."""
    theirs = {**timed([4.0, 4.0], [40.0, 44.0], [4.0, 6.0]), "bits_per_byte": 2.5, "alignment": COUNTS}
    runs = {"trl_uld": theirs, "uld": {**timed([2.0, 2.0], [20.0, 22.0], [2.5, 2.5]), "bits_per_byte": 2.0}}
    settings = {"machine": "a machine", "threads": 2, "packages": {"ours": {"torch": "1"}}, "tokens_per_step": 500.4}
    settings |= {"rounds": 3, "timed_steps": 2, "warm_up": 1, "steps": 100}
    scripts = {name: {"theirs": COUNTS, "ours": OWN} for name in ALIGNED}
    return {"settings": settings, "runs": runs, "own_alignment": OWN, "scripts": scripts}


def cells(page: str, label: str) -> list[str]:
    """Cells behind a label, in the first table that has it."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_times_are_medians_over_rounds_and_ratios_are_taken_within_a_round() -> None:
    runs = results()["runs"]
    assert per_step(runs["trl_uld"]) == 5.0
    assert time_ratio(runs["trl_uld"], runs["uld"]) == 2.0


def test_row_of_a_peer_has_its_time_memory_alignment_and_quality() -> None:
    expected = ["5.00", "2.00 x", "10.00", "2.00 GB", "10 of 2,000 (0.5%)", "4 of 2,000 (0.2%)", "200 of 800 (25.0%)"]
    assert cells(render(results()), RUNS["trl_uld"].label) == [*expected, "2.500"]


def test_rows_of_this_package_have_its_own_alignment_and_no_ratio() -> None:
    row = cells(render(results()), "this package: ULD")
    assert row == [
        "2.50",
        "",
        "5.00",
        "2.00 GB",
        "5 of 2,000 (0.2%)",
        "0 of 2,000 (0.0%)",
        "0 of 800 (0.0%)",
        "2.000",
    ]


def test_a_peer_without_its_counterpart_has_no_ratio() -> None:
    found = results()
    del found["runs"]["uld"]
    assert cells(render(found), RUNS["trl_uld"].label)[1] == ""


def test_scripts_show_this_package_once() -> None:
    page = render(results())
    assert page.count("| this package |") == 1
    assert cells(page, "this package") == ["5 of 2,000 (0.2%)", "0 of 2,000 (0.0%)", "0 of 800 (0.0%)"]


def test_every_package_that_is_not_run_has_a_reason() -> None:
    page = render(results())
    assert all(cells(page, name) == [reason] for name, reason in LEFT_OUT.items())


def test_store_writes_the_tables_between_their_marks_and_nothing_else(tmp_path: Path) -> None:
    page, path = tmp_path / "README.md", tmp_path / "results.json"
    page.write_text(f"before\n\n{BEGIN}old\n{END}\nafter\n")
    store(results(), path, page)
    assert page.read_text() == f"before\n\n{BEGIN}{render(results())}{END}\nafter\n"
    assert render(json.loads(path.read_text())) == render(results())


def test_stored_table_is_that_of_the_stored_results() -> None:
    shown = README.read_text().split(BEGIN)[1].split(END)[0]
    assert shown == (render(json.loads(RESULTS.read_text())) if RESULTS.exists() else "Not stored yet.\n")


def recorded(tokens: list[int], **more: Any) -> dict[str, Any]:
    return {"num_tokens": tokens, "threads": 2, "packages": {"torch": "1"}} | more


def test_collected_results_have_the_tokens_of_a_step_and_one_alignment_of_this_package() -> None:
    options = {"steps": 2, "rounds": 1, "timed_steps": 1, "warm_up": 1}
    runs = {"trl_uld": recorded([500, 400], own_alignment=OWN), "uld": recorded([500, 400])}
    found = collect(runs, {}, options)
    assert (found["settings"]["tokens_per_step"], found["settings"]["threads"]) == (450, 2)
    assert found["own_alignment"] == OWN
    assert found["runs"] == {"trl_uld": {}, "uld": {}}


def test_runs_that_read_other_tokens_are_not_compared() -> None:
    runs = {"trl_uld": recorded([500, 400]), "uld": recorded([500, 401])}
    with pytest.raises(RuntimeError, match="uld read other numbers of tokens in a step than trl_uld"):
        collect(runs, {}, {})


def test_runs_with_other_numbers_of_threads_are_not_compared() -> None:
    runs = {"trl_uld": recorded([500]), "uld": recorded([500], threads=4)}
    with pytest.raises(RuntimeError, match=r"different numbers of threads: .'trl_uld': 2, 'uld': 4"):
        collect(runs, {}, {})
