"""Tables and figures show what was computed by hand."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from experiment_results import METRIC, SCORES, TABLE, line, suite_of, write_results
from matplotlib import image

from experiments.finished import Finished, FinishedRun, read_finished
from experiments.plots import comparison, curves, numerals, png
from experiments.suites import Suite
from experiments.tables import main_table, suite_table


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    lines = [line("addition", run, seed, score) for run, all_ in SCORES.items() for seed, score in enumerate(all_)]
    return read_finished(write_results(tmp_path, lines))


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]


def test_suite_table_has_the_figures_computed_by_hand(finished: Finished) -> None:
    header, _, *rows = cells(suite_table(suite_of({**TABLE, "p_pkl": "P"}), finished))
    assert header == ["teacher", "run", "exact match", "bits per byte", "difference to title ce", "seeds"]
    assert rows == [
        ["none", "title ce", "0.300 (0.052 to 0.548)", "1.700", "", "3"],
        # Paired with ce, every seed is lower by 0.2.
        ["D", "title d_gold", "0.100 (-0.148 to 0.348)", "1.900", "-0.200 (-0.200 to -0.200)", "3"],
        # 0.3, 0.32, 0.28: mean 0.3, deviation 0.02, half 0.02 / sqrt(3) * 4.30265 = 0.0497.
        ["", "**title d_pkl**", "**0.600 (0.372 to 0.828)**", "**1.400**", "**+0.300 (+0.250 to +0.350)**", "3"],
        # -0.1, 0.3: mean 0.1, half 0.2828427 / sqrt(2) * 12.7062 = 2.5412.
        ["P", "title p_gold", "0.350 (-2.827 to 3.527)", "1.650", "+0.100 (-2.441 to +2.641)", "2 of 3"],
        ["", "title p_pkl", "not run", "", "", "0 of 3"],
    ]


def test_a_row_is_bold_where_lower_is_better_and_it_is_lower(tmp_path: Path) -> None:
    made = [line("real", run, seed, score) for run, all_ in SCORES.items() for seed, score in enumerate(all_)]
    finished = read_finished(write_results(tmp_path, made))
    suite = suite_of(TABLE, "real")
    lower = Suite(suite.name, "", {"val/bits_per_byte": "bits per byte"}, suite.runs)
    bold = [row[1] for row in cells(suite_table(lower, finished)) if row[1].startswith("**")]
    assert bold == ["**title d_pkl**"]


def test_every_run_is_paired_with_its_own_baseline(tmp_path: Path) -> None:
    scores = {"low": [0.1, 0.3], "high": [0.8, 0.7], "of_low": [0.2, 0.4], "of_high": [0.7, 0.6], "alone": [0.0, 0.0]}
    made = [line("conditions", run, seed, score) for run, all_ in scores.items() for seed, score in enumerate(all_)]
    finished = read_finished(write_results(tmp_path, made))
    suite = suite_of(dict.fromkeys(scores, ""), "conditions", num_seeds=2)
    baselines = {"low": "low", "high": "high", "of_low": "low", "of_high": "high", "alone": ""}
    compared = {name: replace(run, baseline=baselines[name]) for name, run in suite.runs.items()}
    suite = replace(suite, runs=compared)
    header, _, *rows = cells(suite_table(suite, finished))
    assert header[4] == "difference to its baseline"
    assert {row[1].strip("*"): row[4].strip("*") for row in rows} == {
        "title low": "",
        "title high": "",
        "title of_low": "+0.100 (+0.100 to +0.100)",  # by the other baseline both would be wide, and of other sign
        "title of_high": "-0.100 (-0.100 to -0.100)",
        "title alone": "",
    }
    (axes,) = comparison(suite, finished).axes
    assert not [row for row in axes.lines if row.get_linestyle() == "--"]  # one line for two baselines would mislead


def test_main_table_refuses_suites_without_its_runs(finished: Finished) -> None:
    with pytest.raises(ValueError, match="d_uld"):
        main_table({"addition": suite_of(TABLE)}, finished)


def big_suite() -> tuple[Suite, Finished]:
    """Thirty runs of five seeds under five teachers, with curves of 40 points."""
    teachers = ["", "splits digits", "packs numbers", "the student's tokenizer", "splits, packs"]
    suite = suite_of({f"run_{index}": teachers[index // 6] for index in range(30)}, num_seeds=5)
    generator, tags = np.random.default_rng(0), ("accuracy", "probability", "mass", "ce_gradient", "kd_gradient/digits")
    runs = []
    for name in suite.runs:
        for seed in range(5):
            curve = np.cumsum(generator.normal(size=40)).tolist()
            history = {f"numerals/{tag}": [(50 * i, value) for i, value in enumerate(curve)] for tag in tags}
            runs.append(FinishedRun("addition", name, seed, "", "", {METRIC: generator.random()}, history, 1.0))
    compared = {name: replace(run, baseline="run_0") for name, run in suite.runs.items()}
    return Suite("addition", "Addition", suite.metrics, compared), Finished({run.key: run for run in runs})


def test_figures_of_many_runs_are_small_readable_and_the_same_at_every_call() -> None:
    suite, results = big_suite()
    names = [f"run_{index}" for index in range(0, 30, 6)]
    for draw in (
        lambda: comparison(suite, results),
        lambda: numerals(suite, results, names),
        lambda: curves(suite, results, "numerals/mass", names),
    ):
        first = png(draw())
        assert len(first) < 120_000
        assert image.imread(io.BytesIO(first)).shape[1] == pytest.approx(1050, abs=1)
        assert png(draw()) == first


def test_comparison_shows_every_seed_mean_interval_and_the_baseline(finished: Finished) -> None:
    (axes,) = comparison(suite_of(TABLE), finished).axes
    seeds = [
        sorted(map(float, row.get_xdata()))
        for row in axes.lines
        if row.get_marker() == "|" and len(row.get_xdata()) > 1
    ]
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    assert ticks == [f"title {run}" for run in TABLE]
    assert sorted(map(tuple, seeds)) == sorted(map(tuple, SCORES.values()))
    dashed = [row for row in axes.lines if row.get_linestyle() == "--"]
    assert [float(row.get_xdata()[0]) for row in dashed] == [pytest.approx(0.3)]
    bars = [bar.lines[2][0].get_segments()[0] for bar in axes.containers]
    assert bars[0][:, 0] == pytest.approx([0.3 - 0.248414, 0.3 + 0.248414], abs=1e-6)


def test_curves_are_means_with_bands_over_the_steps_that_all_seeds_have() -> None:
    suite = suite_of({"ce": ""})
    curve = {0: [(10, 1.0), (20, 2.0), (30, 9.0)], 1: [(10, 3.0), (20, 6.0)]}
    runs = [FinishedRun("addition", "ce", seed, "", "", {}, {"t": points}, 1.0) for seed, points in curve.items()]
    (axes,) = curves(suite, Finished({run.key: run for run in runs}), "t", ["ce"]).axes
    assert axes.lines[0].get_xydata().tolist() == [[10, 2], [20, 4]]
    assert {*map(tuple, axes.collections[0].get_paths()[0].vertices.tolist())} == {(10, 1), (10, 3), (20, 2), (20, 6)}
