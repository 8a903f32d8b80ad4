"""The report shows what the results say: tables, figures, placeholders, the README's evidence."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from experiment_results import METRIC, SCORES, TABLE, line, suite_of, write_results
from matplotlib import image

from experiments.claims import load_claims
from experiments.finished import Finished, FinishedRun, read_finished
from experiments.plots import comparison, curves, numerals, png
from experiments.report import TEMPLATE, write_report
from experiments.suites import EVIDENCE, Suite
from experiments.tables import main_table, suite_table


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    lines = [line("addition", run, seed, score) for run, all_ in SCORES.items() for seed, score in enumerate(all_)]
    return read_finished(write_results(tmp_path, lines))


# Tables and figures


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
    assert header[4] == "difference to title high or title low"
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


# The report

ALL_RUNS = {"ce": "", **{f"{t}_{loss}": t.upper() for t in "dp" for loss in ("uld", "gold", "hkl", "pkl", "bp")}}
PLACEHOLDERS = """# Title

Cross-entropy alone has <!-- value: addition ce held_out/exact_match -->, over <!-- runs -->.

<!-- claims -->

<!-- table: addition -->

<!-- figure: comparison addition -->

<!-- figure: curves addition val/bits_per_byte ce,d_gold,d_bp -->

<!-- figure: numerals addition d_gold,d_pkl -->
"""


class Written:
    """A report in a folder of its own."""

    def __init__(self, root: Path, template: str = PLACEHOLDERS, readme: str | None = None) -> None:
        self.folder = root / "results"
        self.folder.mkdir()
        scores = [(run, seed, score) for run, all_ in SCORES.items() for seed, score in enumerate(all_)]
        write_results(self.folder, [line("addition", *score) for score in scores])
        self.template, self.claims = root / "template.md", root / "claims.yaml"
        self.template.write_text(template)
        shared = {"source": "X-Token: 2 v 1", "metric": METRIC}
        entries = [
            {"claim": "P-KL above CE", "comparisons": [["addition/d_pkl", "addition/ce"]], **shared},
            {"claim": "GOLD above CE", "comparisons": [["addition/d_gold", "addition/ce"]], **shared},
            {"claim": "not yet", "comparisons": [["addition/p_gold", "addition/ce"]], **shared},
        ]
        self.claims.write_text(yaml.safe_dump(entries))
        self.target = root / "experiments" / "README.md"
        self.readme = None
        if readme is not None:
            self.readme = root / "README.md"
            self.readme.write_text(readme)

    def write(self) -> str:
        suites = {"addition": suite_of(ALL_RUNS)}
        finished = read_finished(self.folder)
        write_report(finished, self.target, self.readme, suites, template=self.template, claims=self.claims)
        return self.target.read_text()


def test_report_has_verdicts_figures_and_hand_computed_values(tmp_path: Path) -> None:
    written = Written(tmp_path, readme="Above.\n\n<!-- evidence -->\nold\n<!-- /evidence -->\n\nBelow.\n")
    text = written.write()
    assert "Cross-entropy alone has 0.300, over 11 runs, 5.5 hours of one core, all made by the same code." in text
    shown = "`addition/d_pkl` - `ce`: +0.300 (+0.250 to +0.350), n = 3"
    assert f"| P-KL above CE | X-Token: 2 v 1 | **reproduced** | {shown} |" in text
    assert "| GOLD above CE | X-Token: 2 v 1 | **not reproduced** |" in text
    assert (
        "| not yet | X-Token: 2 v 1 | **not run** | `addition/p_gold` - `ce`: +0.100 (-2.441 to +2.641), n = 2 |"
        in text
    )
    assert "Not run: title d_bp." in text
    figures = re.findall(r"\]\((figures/\S+\.png)\)", text)
    assert len(figures) == 3
    assert all((written.target.parent / figure).read_bytes().startswith(b"\x89PNG") for figure in figures)
    assert "<!-- " not in text.split("\n", 1)[1]  # the first line says where it comes from
    assert written.readme is not None
    readme = written.readme.read_text()
    header = "| exact match, mean (95% interval) | teacher splits digits | teacher packs numbers |"
    assert readme.startswith(f"Above.\n\n<!-- evidence -->\n\n{header}")
    assert readme.endswith("<!-- /evidence -->\n\nBelow.\n")
    assert "| title ce, no teacher | 0.300 (0.052 to 0.548) | 0.300 (0.052 to 0.548) |" in readme
    assert "| GOLD | 0.100 (-0.148 to 0.348) | 0.350 (-2.827 to 3.527) |" in readme
    assert "| ULD | not run | not run |" in readme
    assert "old" not in readme
    (shown,) = re.findall(r"\]\((\S+\.png)\)", readme)
    assert (tmp_path / shown).is_file()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    written.write()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("placeholder", "message"),
    [
        ("tabel: addition", "unknown placeholder"),
        ("figure: curves addition", "unknown placeholder"),
        ("table: subtraction", "no suite 'subtraction'"),
        ("value: addition nothing held_out/exact_match", "no run 'nothing'"),
        ("value: addition ce held_out/f1", "addition/ce must have logged 'held_out/f1'"),
        ("figure: curves addition val/bits_per_byte ce,nothing", "no run 'nothing'"),
        ("figure: curves addition val/bits ce", "addition/ce must have logged 'val/bits'"),
        ("figure: numerals addition d_bp,nothing", "no run 'nothing'"),
    ],
)
def test_a_placeholder_that_stands_for_nothing_is_named_and_nothing_is_written(
    tmp_path: Path, placeholder: str, message: str
) -> None:
    written = Written(tmp_path, f"First.\n\n<!-- {placeholder} -->\n")
    with pytest.raises(ValueError, match=f"line 3, <!-- {placeholder} -->: .*{message}"):
        written.write()
    assert not written.target.parent.exists()


def test_figures_and_values_of_runs_that_are_not_finished_say_so(tmp_path: Path) -> None:
    template = "<!-- value: addition d_bp val/ce --> <!-- figure: curves addition val/bits_per_byte d_bp,p_bp -->\n"
    text = Written(tmp_path, template).write()
    assert text.endswith("\nnot run Figure: not run.\n")


def test_runs_of_the_same_settings_are_counted_once_and_versions_of_the_code_named(tmp_path: Path) -> None:
    written = Written(tmp_path, "<!-- runs -->\n")
    lines = [line("addition", "ce", seed, 0.1, code=str(seed)) for seed in range(3)]
    lines.append(line("addition", "d_gold", 0, 0.1, settings=lines[0]["settings"], code="0"))
    write_results(written.folder, lines)
    assert written.write().endswith("\n3 runs, 1.5 hours of one core, made by 3 versions of the code\n")


def test_figures_of_an_earlier_report_that_this_one_does_not_show_are_removed(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.write()
    figures = written.target.parent / "figures"
    assert len([*figures.iterdir()]) == 3
    written.template.write_text("<!-- figure: comparison addition -->\n")
    written.write()
    assert [path.name for path in figures.iterdir()] == ["comparison_addition.png"]


def test_without_a_finished_run_the_report_that_is_there_stays(tmp_path: Path) -> None:
    written = Written(tmp_path)
    before = written.write()
    write_results(written.folder, [])
    with pytest.raises(ValueError, match="needs finished runs, got none; run `python -m experiments run` first"):
        written.write()
    assert written.target.read_text() == before


def test_a_claim_about_a_run_that_no_suite_has_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.claims.write_text(written.claims.read_text().replace("addition/d_pkl", "addition/d_pkk"))
    with pytest.raises(ValueError, match=r"names addition/d_pkk, which no suite has; mend the name"):
        written.write()
    assert not written.target.parent.exists()


@pytest.mark.parametrize(
    "readme",
    [
        "none",
        "<!-- evidence -->",
        "<!-- /evidence --> <!-- evidence -->",
        "<!-- evidence -->" * 2 + "<!-- /evidence -->",
    ],
)
def test_a_readme_without_markers_is_refused_before_anything_is_written(tmp_path: Path, readme: str) -> None:
    written = Written(tmp_path, readme=readme)
    with pytest.raises(ValueError, match="readme=None"):
        written.write()
    assert not written.target.parent.exists()


def test_shipped_template_fits_the_shipped_suites_and_claims_where_one_run_is_finished(tmp_path: Path) -> None:
    write_results(tmp_path, [line("addition", "ce", 0, 0.1)])
    target = tmp_path / "report" / "README.md"
    write_report(read_finished(tmp_path), target, readme=None)
    text = target.read_text()
    assert text.count("**not run**") == len(load_claims())
    assert "| none | cross-entropy alone | 0.100 | 1.900 |" in text
    tables = re.findall(r"<!-- table: (\w+) -->", TEMPLATE.read_text())
    assert {*tables} == {*EVIDENCE}
    assert read_finished(target.parent) == read_finished(tmp_path)  # what the report stands on lies beside it
