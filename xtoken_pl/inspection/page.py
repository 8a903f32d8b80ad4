"""Renders an inspection as one HTML file, without scripts or external resources."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from xtoken_pl.inspection.counterparts import Counterpart, Counterparts
from xtoken_pl.inspection.inspection import Cell, Inspection, PredictedSpan, TeacherView
from xtoken_pl.inspection.predictions import Candidate
from xtoken_pl.inspection.tokens import Token

# Details of the hovered token appear at the bottom of the window, where they cover no other token.
_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1c2430;--dim:#667180;--line:#dfe4ea;--card:#f7f9fb;
--a:#cfe3f8;--b:#fde8b3;--gap:#f8c9c4;--masked:#eceff2;--edge:#00000022;--teacher:#c2410c;--student:#1b6ca8}
@media(prefers-color-scheme:dark){:root{--page:#12161c;--ink:#e4e9ef;--dim:#93a0b0;--line:#2b333d;--card:#1a2028;
--a:#1d4468;--b:#5c4812;--gap:#6b2b26;--masked:#232a32;--edge:#ffffff2a;--teacher:#fb923c;--student:#5fb0ee}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:24px 28px 64px;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:22px;margin:0 0 2px}h2{font-size:18px;margin:34px 0 2px}h3{font-size:15px;margin:26px 0 8px}
p{margin:2px 0}.dim{color:var(--dim)}
.token,.mono,td:first-child{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;font-size:13px;
white-space:pre}
.text{display:flex;flex-wrap:wrap;gap:6px 2px;margin:10px 0;padding:14px;border:1px solid var(--line);border-radius:8px}
.line{flex-basis:100%;height:0;margin-top:-6px}
.cell{display:inline-flex;flex-direction:column;border-radius:4px;overflow:hidden}
.side{display:flex;min-height:22px;line-height:22px}
.side+.side{border-top:1px solid var(--edge)}
.token{padding:0 3px}.token+.token{border-left:1px solid var(--edge)}
.token:hover{outline:2px solid var(--ink);outline-offset:-2px}
.token:hover::after{content:attr(data-about);position:fixed;left:0;right:0;bottom:0;padding:8px 28px;z-index:1;
background:var(--ink);color:var(--page);white-space:pre-wrap}
.special{font-style:italic}
.even{background:var(--a)}.odd{background:var(--b)}.masked{background:var(--masked);color:var(--dim)}
.gap{background:repeating-linear-gradient(135deg,var(--gap) 0 5px,transparent 5px 8px),var(--card)}
.key{display:inline-block;border-radius:4px;padding:0 6px;margin-right:4px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(460px,1fr));gap:12px}
.card{border:1px solid var(--line);border-radius:8px;padding:10px 12px;background:var(--card);break-inside:avoid}
.card header{display:flex;justify-content:space-between;gap:12px;margin-bottom:6px}
.before{overflow:hidden;direction:rtl;unicode-bidi:plaintext;text-overflow:ellipsis}
.columns{display:grid;grid-template-columns:1fr 1fr;gap:14px}
.candidate{display:grid;grid-template-columns:minmax(0,1fr) 52px 72px;gap:6px;align-items:center;line-height:20px}
.candidate .mono{overflow:hidden;text-overflow:ellipsis}.observed .mono{font-weight:700;text-decoration:underline}
.share{text-align:right;font-variant-numeric:tabular-nums}
.bar{height:9px;border-radius:2px}.teacher .bar{background:var(--teacher)}.student .bar{background:var(--student)}
table{border-collapse:collapse}td{padding:1px 14px 1px 0;vertical-align:top}
summary{cursor:pointer;color:var(--dim);margin:4px 0}
"""


def page(inspection: Inspection) -> str:
    """Returns the HTML of an inspection."""
    tokens = f"{len(inspection.tokens):,} tokens"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(inspection.title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(inspection.title)}</h1>",
        f'<p class="dim">student {escape(inspection.tokenizer)}: {tokens}</p>',
        *(_teacher(name, view) for name, view in inspection.teachers.items()),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _teacher(name: str, view: TeacherView) -> str:
    cells = "".join(_cell(cell, view) + ('<i class="line"></i>' if cell.ends_line else "") for cell in view.cells)
    return "\n".join(
        (
            f"<section><h2>{escape(name)}</h2>",
            f'<p class="dim">{escape(view.tokenizer)}: {len(view.tokens):,} tokens; {view.summary}</p>',
            '<p><span class="key even">span</span><span class="key odd">span</span><span class="key gap">in no span'
            '</span><span class="key masked">not learned</span> <span class="dim">top row: student; bottom row: '
            "teacher; · is a space, ↵ a line end; hover over a token for its id, bytes and counterparts</span></p>",
            f'<div class="text">{cells}</div>',
            _predictions(name, view),
            "" if view.counterparts is None else _counterparts(view.counterparts),
            "</section>",
        )
    )


def _cell(cell: Cell, view: TeacherView) -> str:
    rows = {} if view.counterparts is None else view.counterparts.by_id
    about = view.caption(cell)
    student = "".join(_token(token, about, rows.get(token.id)) for token in cell.student)
    teacher = "".join(_token(token, about) for token in cell.teacher)
    return (
        f'<span class="cell {cell.shade}"><span class="side">{student}</span><span class="side">{teacher}</span></span>'
    )


def _token(token: Token, about: str, row: Counterpart | None = None) -> str:
    lines = [f"{token.text}   id {token.id}   " + (f"bytes {token.raw.hex(' ')}" if token.raw else "no bytes"), about]
    if row is not None:
        lines.append(f"→ {row}")
    kind = "token special" if token.is_special else "token"
    return f'<span class="{kind}" data-about="{escape(chr(10).join(lines))}">{escape(token.text)}</span>'


def _predictions(name: str, view: TeacherView) -> str:
    cards = "".join(_card(span, view, name) for span in view.predicted_spans)
    return cards and f'<h3>Predictions at the start of a span</h3><div class="cards">{cards}</div>'


def _card(span: PredictedSpan, view: TeacherView, name: str) -> str:
    return (
        f'<div class="card"><header><span class="mono"><span class="dim">{escape(span.before[-32:])}</span>'
        f'<b class="key {span.cell.shade}">{escape(span.cell.text)}</b></span>'
        f'<span class="dim">{view.caption(span.cell)}</span></header><div class="columns">'
        f"{_column('teacher', name, span.teacher, span.teacher_token)}"
        f"{_column('student', view.student_title, span.student, span.student_token)}</div></div>"
    )


def _column(side: str, title: str, candidates: Sequence[Candidate], observed: Token) -> str:
    rows = "".join(_candidate(candidate, candidate.token == observed) for candidate in candidates)
    return f'<div class="{side}"><p class="dim">{escape(title)}</p>{rows}</div>'


def _candidate(candidate: Candidate, is_observed: bool) -> str:
    share = candidate.probability
    return (
        f'<div class="candidate{" observed" if is_observed else ""}"><span class="mono">'
        f'{escape(candidate.token.text)}</span><span class="share">{share:.1%}</span>'
        f'<span class="bar" style="width:{72 * share:.1f}px"></span></div>'
    )


def _counterparts(counterparts: Counterparts) -> str:
    plain = counterparts.plain
    return (
        f"<h3>{escape(counterparts.name)} for the tokens in the text</h3>{_table(counterparts.others)}"
        f"<details><summary>{len(plain):,} more with exactly one teacher token</summary>{_table(plain)}</details>"
    )


def _table(rows: Sequence[Counterpart]) -> str:
    cells = (f"<tr><td>{escape(row.token.text)}</td><td>{escape(str(row))}</td></tr>" for row in rows)
    return f"<table>{''.join(cells)}</table>"
