"""Renders the audit as a table for the terminal and as a figure."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from xtoken_pl.audit.coverage import CategoryCoverage, CoverageAudit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABELS = {
    "numerals_1": "numerals, 1 digit",
    "numerals_2": "numerals, 2 digits",
    "numerals_3": "numerals, 3 digits",
    "numerals_4_or_more": "numerals, 4 or more",
    "letters": "letters",
    "punctuation": "punctuation",
    "whitespace": "whitespace",
    "non_ascii": "non-ASCII",
    "mixed": "mixed ASCII",
    "byte_pieces": "byte pieces",
    "special": "special",
}


def table(audit: CoverageAudit) -> str:
    """Renders the audit as lines of text."""
    common = len(audit.strict)
    lines = [
        f"student {audit.student}: {audit.num_student:,} tokens",
        f"teacher {audit.teacher}: {audit.num_teacher:,} tokens",
        f"overlap: {common:,} tokens, {common / audit.num_student:.1%} of the student's, "
        f"{common / audit.num_teacher:.1%} of the teacher's",
        f"partition, strict (GOLD):   {audit.strict}",
        f"partition, enlarged (H-KL): {audit.enlarged}",
        "",
        f"{'student tokens':<20}{'count':>9}{'strict C':>10}{'enlarged C':>12}{'covered by W':>14}{'unmapped':>10}",
    ]
    lines += [_row(_LABELS[category], row) for category, row in audit.categories.items() if row.count]
    lines += [_row("all", audit.total), ""]
    if audit.spans is not None:
        spans = audit.spans
        lines.append(
            f"spans of the text: {spans.num_spans:,} ({spans.num_student_tokens:,} student tokens, "
            f"{spans.num_teacher_tokens:,} teacher tokens)"
        )
        for kind, count in spans.kinds.items():
            lines.append(f"  {kind:<14}{count:>9,}{count / max(1, spans.num_spans):>8.1%}")
        lines += [f"  {'gaps':<14}{spans.student_gaps:>9,} student tokens, {spans.teacher_gaps:,} teacher tokens", ""]
    if audit.positions is not None:
        described = {
            "single": "the mass of the observed token itself is known",
            "grouped": "only the mass of a group of tokens is known",
            "inside": "inside a teacher token",
            "skipped": "in no span, or not written by the teacher",
        }
        counts = asdict(audit.positions)
        lines.append("positions of the text under the byte-prefix KL:")
        lines += [
            f"  {kind:<14}{counts[kind]:>9,}{counts[kind] / max(1, sum(counts.values())):>8.1%}  {what}"
            for kind, what in described.items()
        ]
        lines.append("")
    lines.append(f"recommended: {audit.recommendation.loss}, because {audit.recommendation.reason}")
    if audit.paper_recommendation != audit.recommendation:
        paper = audit.paper_recommendation
        lines.append(f"recommended by the paper (loss: auto_paper): {paper.loss}, because {paper.reason}")
    return "\n".join(lines)


def _row(label: str, row: CategoryCoverage) -> str:
    shares = [f"{part / row.count:.2%}" for part in (row.strict, row.enlarged, row.covered)]
    return f"{label:<20}{row.count:>9,}{shares[0]:>10}{shares[1]:>12}{shares[2]:>14}{row.unmapped:>10,}"


def draw(audit: CoverageAudit, path: Path) -> None:
    """Writes the figure of :func:`figure_of` as a PNG file."""
    figure_of(audit).savefig(path, format="png", dpi=150)


def figure_of(audit: CoverageAudit) -> Figure:
    """Draws, for every category, the shares in the strict C, added to it by W, covered by W alone, and unmapped."""
    from matplotlib.figure import Figure  # imported only for figures

    rows = {_LABELS[category]: row for category, row in audit.categories.items() if row.count}
    labels = [f"{label} ({row.count:,})" for label, row in rows.items()]
    parts = {
        "strict C (equal text)": ([row.strict for row in rows.values()], "#1b6ca8"),
        "added to C by W": ([row.enlarged - row.strict for row in rows.values()], "#7fb2d9"),
        "covered by W alone": ([row.covered - row.enlarged for row in rows.values()], "#f2c14e"),
        "unmapped": ([row.unmapped for row in rows.values()], "#c8c8c8"),
    }
    figure = Figure(figsize=(9, 0.45 * len(rows) + 1.8), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(rows)
    for label, (counts, color) in parts.items():
        shares = [count / row.count for count, row in zip(counts, rows.values(), strict=True)]
        axes.barh(labels, shares, left=left, color=color, label=label)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("share of the student's tokens")
    axes.set_title(f"{_short(audit.student)} learns from {_short(audit.teacher)}: {audit.recommendation.loss}")
    figure.legend(loc="outside lower center", ncols=len(parts), frameon=False)
    return figure


def _short(name: str) -> str:
    return Path(name).name or name
