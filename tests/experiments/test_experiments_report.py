"""The report shows what the results say: placeholders, verdicts, the README's evidence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from experiment_results import METRIC, SCORES, line, suite_of, write_results

from experiments.claims import load_claims
from experiments.finished import read_finished
from experiments.report import TEMPLATE, write_report
from experiments.suites import EVIDENCE, RECORDED

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
    assert {*tables} == {*EVIDENCE, *RECORDED}
    assert read_finished(target.parent) == read_finished(tmp_path)  # what the report stands on lies beside it
