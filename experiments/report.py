"""Fills the template of the report, and the README's evidence, with what the finished runs say."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.claims import CLAIMS, Claim, load_claims, unknown_runs
from experiments.finished import RESULTS, Finished
from experiments.plots import comparison, curves, numerals, panels, png
from experiments.side_by_side import FLAGSHIP, VARIANT, columns, losses, place_text, side_by_side_table
from experiments.statistics import estimate
from experiments.suites import Suite, load_suites
from experiments.tables import NOT_RUN, claims_table, format_number, main_table, suite_table
from xtoken_pl.utilities.files import atomic_path

TEMPLATE = Path(__file__).with_name("README.template.md")
TARGET = Path(__file__).with_name("README.md")
README = Path(__file__).parents[1] / "README.md"

_PLACEHOLDER = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
_START, _END = "<!-- evidence -->", "<!-- /evidence -->"
_POINTS = "Ticks are seeds, points their mean, bars its 95% interval; the dashed line is the mean of the baseline."
_PANELS = (
    "Points are means over seeds, bars their 95% interval; the dashed line is the mean of cross-entropy alone. Losses "
    "that are the first of their column, or level with it, are filled."
)
_BANDS = "Lines are means over seeds, bands go from the lowest seed to the highest."


def write_report(
    finished: Finished,
    target: Path = TARGET,
    readme: Path | None = README,
    suites: Mapping[str, Suite] | None = None,
    *,
    template: Path = TEMPLATE,
    claims: Path = CLAIMS,
) -> None:
    """Writes the report, beside it its figures and the results that it stands on, and the README's evidence.

    All is made before anything is written.

    Args:
        finished: The runs that count.
        target: The report; beside it go ``figures/`` and ``results.jsonl``, the runs that count.
        readme: The README whose part between the evidence markers is replaced; None leaves it.
        suites: What was to be run; by default all suites.
        template: The report with placeholders: ``<!-- table: SUITE -->``, ``<!-- claims -->``, ``<!-- runs -->``,
            ``<!-- figure: comparison SUITE -->``, ``<!-- figure: curves SUITE TAG RUN,RUN -->``,
            ``<!-- figure: numerals SUITE RUN,RUN -->``, ``<!-- value: SUITE RUN TAG -->``,
            ``<!-- side-by-side -->``, ``<!-- figure: side-by-side -->``, ``<!-- flagship -->``, ``<!-- variant -->``.
        claims: The claims.

    Raises:
        ValueError: If no run is finished, a placeholder is unknown or names what is not there, a claim names a run
            that no suite has, or the README has no evidence markers.
    """
    around = None if readme is None else _around_evidence(readme)  # first: figures take seconds
    suites, claimed = load_suites() if suites is None else suites, load_claims(claims)
    if unknown := unknown_runs(claimed, suites):
        raise ValueError(f"{claims} names {', '.join(unknown)}, which no suite has; mend the name, or add the run")
    if not finished.runs:
        raise ValueError("a report needs finished runs, got none; run `python -m experiments run` first")
    report = _Report(suites, finished, claimed)
    texts = {target: f"<!-- Written by experiments/report.py: edit {template.name}. -->\n\n"}
    texts[target] += report.fill(template)
    if readme is not None and around is not None:
        evidence = report.evidence(os.path.relpath(target.parent, readme.parent))
        texts[readme] = f"{around[0]}\n\n{evidence}\n\n{around[1]}"
    texts[target.with_name(RESULTS)] = report.finished.as_lines()
    figures = target.parent / "figures"
    for name, data in report.figures.items():
        with atomic_path(figures / name, kind="file", overwrite=True) as path:
            path.write_bytes(data)
    for old in figures.glob("*.png"):
        if old.name not in report.figures:
            old.unlink()
    for file, text in texts.items():
        with atomic_path(file, kind="file", overwrite=True) as path:
            path.write_text(text)


class _Report:
    """What placeholders stand for; ``figures`` gathers the pictures that they asked for, by file name."""

    def __init__(self, suites: Mapping[str, Suite], finished: Finished, claims: list[Claim]) -> None:
        self.suites = suites
        self.finished = finished
        self.claims = claims
        self.columns = columns(suites, finished)
        self.figures: dict[str, bytes] = {}
        self._kinds: dict[tuple[str, int], Callable[..., str]] = {  # by name and number of words after it
            ("table:", 1): lambda suite: suite_table(self._suite(suite), finished),
            ("claims", 0): lambda: claims_table(claims, finished),
            ("runs", 0): self._runs,
            ("value:", 3): self._value,
            ("figure: comparison", 1): self._comparison,
            ("figure: curves", 3): self._curves,
            ("figure: numerals", 2): self._numerals,
            ("side-by-side", 0): lambda: side_by_side_table(self.columns),
            ("flagship", 0): lambda: place_text(self.columns),
            ("variant", 0): lambda: place_text(self.columns, VARIANT),
            ("figure: side-by-side", 0): self._side_by_side,
        }

    def fill(self, template: Path) -> str:
        """The template with every placeholder replaced."""
        text = template.read_text()

        def replaced(match: re.Match[str]) -> str:
            line = text.count("\n", 0, match.start()) + 1
            try:
                return self._replace(match[1])
            except ValueError as error:
                raise ValueError(f"{template.name}, line {line}, {match[0]}: {error}") from error

        return _PLACEHOLDER.sub(replaced, text)

    def evidence(self, folder: str) -> str:
        """The README's main table and figure; ``folder`` leads from the README to the report's folder."""
        table = main_table(self.suites, self.finished)
        prefix = "" if folder == "." else f"{Path(folder).as_posix()}/"
        return f"{table}\n\n{self._comparison('addition', prefix)}"

    def _replace(self, text: str) -> str:
        words = text.split()
        num_names = 2 if words[:1] == ["figure:"] else 1
        name, rest = " ".join(words[:num_names]), words[num_names:]
        if (name, len(rest)) not in self._kinds:
            known = ", ".join(f"{kind} ({count} words)" for kind, count in self._kinds)
            raise ValueError(f"unknown placeholder; there are {known}")
        return self._kinds[name, len(rest)](*rest)

    def _suite(self, name: str) -> Suite:
        if name not in self.suites:
            raise ValueError(f"there is no suite {name!r}; name one of {list(self.suites)}")
        return self.suites[name]

    def _runs(self) -> str:
        done = {run.settings: run for run in self.finished.runs.values()}.values()
        codes = len({run.code for run in done})
        of_code = "all made by the same code" if codes == 1 else f"made by {codes} versions of the code"
        hours = sum(run.seconds for run in done) / 3600
        return f"{len(done)} runs, {hours:.1f} hours of one core, {of_code}"

    def _value(self, suite: str, run: str, tag: str) -> str:
        if run not in self._suite(suite).runs:
            raise ValueError(f"suite {suite!r} has no run {run!r}; name one of {list(self.suites[suite].runs)}")
        if not self.finished.of(suite, run):
            return NOT_RUN
        values = self.finished.metric(suite, run, tag)
        if not values:
            raise ValueError(f"{suite}/{run} must have logged {tag!r}; mend the tag, or add the callback that logs it")
        return format_number(estimate([*values.values()]).mean)

    def _comparison(self, name: str, folder: str = "") -> str:
        suite = self._suite(name)
        if not any(self.finished.metric(name, run, next(iter(suite.metrics))) for run in suite.runs):
            return f"Figure: {NOT_RUN}."
        data = png(comparison(suite, self.finished))
        return self._figure(f"comparison_{name}", data, f"{suite.title}: all runs. {_POINTS}", folder)

    def _curves(self, name: str, tag: str, runs: str) -> str:
        suite, names = self._suite(name), runs.split(",")
        if not self._any_finished(suite, names):
            return f"Figure: {NOT_RUN}."
        data = png(curves(suite, self.finished, tag, names))
        title = f"{suite.title}: {suite.metrics.get(tag, tag)} over steps. {_BANDS}{self._left_out(suite, names)}"
        return self._figure("_".join(["curves", name, *tag.split("/"), *names]), data, title)

    def _numerals(self, name: str, runs: str) -> str:
        suite, names = self._suite(name), runs.split(",")
        if not self._any_finished(suite, names):
            return f"Figure: {NOT_RUN}."
        data = png(numerals(suite, self.finished, names))
        title = f"{suite.title}: multi-digit numerals over steps. {_BANDS}{self._left_out(suite, names)}"
        return self._figure("_".join(["numerals", name, *names]), data, title)

    def _side_by_side(self) -> str:
        if not any(column.ranks for column in self.columns):
            return f"Figure: {NOT_RUN}."
        ranked = [column for column in self.columns if column.ranks]
        data = png(panels(ranked, losses(ranked), FLAGSHIP))
        return self._figure("side_by_side", data, f"The losses side by side. {_PANELS}")

    def _any_finished(self, suite: Suite, runs: list[str]) -> bool:
        """Whether a figure can be drawn; unknown names go on to the plot, which refuses them."""
        return any(self.finished.of(suite.name, run) or run not in suite.runs for run in runs)

    def _left_out(self, suite: Suite, runs: list[str]) -> str:
        missing = [suite.runs[run].title for run in runs if not self.finished.of(suite.name, run)]
        return f" {NOT_RUN.capitalize()}: {', '.join(missing)}." if missing else ""

    def _figure(self, name: str, data: bytes, text: str, folder: str = "") -> str:
        self.figures[f"{name}.png"] = data
        return f"![{text}]({folder}figures/{name}.png)\n\n*{text}*"


def _around_evidence(readme: Path) -> tuple[str, str]:
    """The README up to its first marker, and from its second on."""
    text = readme.read_text()
    start, end = text.find(_START), text.find(_END)
    if text.count(_START) != 1 or text.count(_END) != 1 or end < start:
        raise ValueError(
            f"{readme} must have one line {_START} and, after it, one line {_END}, between which the evidence goes; "
            "add them, or pass readme=None"
        )
    return text[: start + len(_START)], text[end:]
