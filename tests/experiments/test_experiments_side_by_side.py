"""Losses side by side have the ranks, and the places behind the first, that were computed by hand."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from experiment_results import METRIC, line, write_results
from matplotlib import image

from experiments.finished import read_finished
from experiments.plots import panels, png
from experiments.side_by_side import (
    FLAGSHIP,
    Column,
    columns,
    losses,
    place_text,
    side_by_side_table,
)
from experiments.suites import Run, Suite

ALONE = "cross-entropy alone"
# Less than the flagship by 0.1 for every seed, and by 0.1, -0.1, 0.03: mean 0.01, half 0.249.
SCORES = {
    ("losses", "ce"): [0.1, 0.1, 0.1],
    ("losses", "d_bp"): [0.4, 0.5, 0.6],
    ("losses", "d_bpm"): [0.3, 0.4, 0.5],
    ("losses", "d_alm"): [0.3, 0.6, 0.57],
    ("losses_real", "fresh_ce"): [1.3, 1.4, 1.5],
    ("losses_real", "fresh_bp"): [1.2, 1.3, 1.4],
    ("losses_real", "fresh_bpm"): [1.1, 1.2, 1.31],
    ("losses_real", "fresh_alm"): [1.0, 1.1],
}
TITLES = {"ce": ALONE, "bp": FLAGSHIP, "bpm": "BPM", "alm": "ALM"}


def suite_of(name: str, metric: str, teacher: str) -> Suite:
    names = [run for suite, run in SCORES if suite == name]
    baseline = next(run for run in names if run.endswith("ce"))
    runs = {
        run: Run(name, run, TITLES[run.split("_")[-1]], "" if run == "ce" else teacher, (0, 1, 2), {}, (), baseline, {})
        for run in names
    }
    teaching = replace(runs[baseline], name="teacher_d", title="the teacher itself", teacher=teacher, baseline="")
    return Suite(name, name, {metric: metric}, {**runs, "teacher_d": teaching})


@pytest.fixture
def shown(tmp_path: Path) -> list[Column]:
    sums, real = suite_of("losses", METRIC, "D"), suite_of("losses_real", "val/bits_per_byte", "SmolLM2")
    sums.runs["d_bpm"] = replace(sums.runs["d_bpm"], also=("ESCD",))
    lines = [
        line(suite, run, seed, 0.0, metrics={METRIC: score, "val/bits_per_byte": score})
        for (suite, run), scores in SCORES.items()
        for seed, score in enumerate(scores)
    ]
    return columns({"losses_real": real, "losses": sums}, read_finished(write_results(tmp_path, lines)))


def test_table_has_means_ranks_and_who_is_level_with_the_first(shown: list[Column]) -> None:
    header, _, *rows = [row.strip("| ").split(" | ") for row in side_by_side_table(shown).splitlines()]
    assert header == ["loss", "sums, D", "real text, SmolLM2", "mean rank"]
    assert rows == [
        # Four runs and a loss that is one of them; a tie of the third and fourth.
        [ALONE, "0.100 (0.100 to 0.100), 5", "1.400 (1.152 to 1.648), 3", "4.0"],
        [FLAGSHIP, "**0.500 (0.252 to 0.748), 1**", "1.300 (1.052 to 1.548), 2", "1.5"],
        ["BPM", "0.400 (0.152 to 0.648), 3.5", "**1.203 (0.942 to 1.464), 1**", "2.2"],
        ["ALM", "**0.490 (0.080 to 0.900), 2**", "1.050 (0.415 to 1.685), 2 seeds"],
        ["ESCD", "0.400 (0.152 to 0.648), 3.5, as BPM"],
    ]


def test_the_place_of_our_loss_is_told_with_the_one_that_is_ahead(shown: list[Column]) -> None:
    assert place_text(shown[:1]) == "first, or level with the first, in all 1 columns"
    ahead = "*real text, SmolLM2* (BPM is first, +0.097 (+0.082 to +0.111))"
    assert place_text(shown) == f"first, or level with the first, in 1 of 2 columns; it is behind in {ahead}"
    unfinished = replace(shown[1], incomplete=frozenset({FLAGSHIP}))
    assert place_text([shown[0], unfinished]).endswith("in all 1 columns; not run: real text, SmolLM2")
    assert place_text([unfinished]) == "not run"
    assert place_text(shown[:1], "BPM").startswith("first, or level with the first, in 0 of 1 columns; it is behind in")


def test_figure_has_a_panel_for_every_column(shown: list[Column]) -> None:
    figure = panels(shown, losses(shown), FLAGSHIP)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert titles == [column.title for column in shown]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [FLAGSHIP, "BPM", "ALM", "ESCD"]
    assert image.imread(io.BytesIO(png(figure))).shape[1] > 1000
