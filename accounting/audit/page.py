"""The report as one HTML page: no network, no script, on a phone or a screen, light or dark.

Everything that comes from the file is escaped on the way in, and a content security policy allows
neither scripts nor anything loaded from elsewhere. The words are those of ``layout``.
"""

from __future__ import annotations

from html import escape

from accounting.audit.layout import Block, Card, Picture, Section, Table, Text, sections
from accounting.audit.plots import Line, line_plot
from accounting.audit.report import AuditReport
from accounting.audit.wording import plain

__all__ = ["render"]

_STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --card: #f6f7f9; --line: #d4d8de;
        --good: #0b5d2e; --good-paper: #e2f5e8; --warn: #7a3e00; --warn-paper: #fff4e0;
        --bad: #8f1111; --bad-paper: #ffe9e7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaee; --soft: #a3abb5; --paper: #14171b; --card: #1d2127; --line: #3a414b;
          --good: #9fe3b4; --good-paper: #10301c; --warn: #ffcf8a; --warn-paper: #33260f;
          --bad: #ffb0a8; --bad-paper: #3b1613; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 52rem; padding: 1.25rem 1rem 4rem; color: var(--ink);
       background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
.verdict { border-radius: .5rem; padding: .9rem 1rem; margin: 0 0 1rem; font-size: 1.1rem; }
.verdict strong { display: block; font-size: 1.6rem; line-height: 1.2; }
.PASS { background: var(--good-paper); color: var(--good); }
.FAIL { background: var(--bad-paper); color: var(--bad); }
.UNSUPPORTED { background: var(--warn-paper); color: var(--warn); }
.soft { color: var(--soft); font-size: .95rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
        overflow-wrap: break-word; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; }
.num { text-align: right; white-space: nowrap; overflow-wrap: normal; }
.long { word-break: break-all; }
thead th { color: var(--soft); font-weight: 600; font-size: .875rem; }
.card { background: var(--card); border-left: .3rem solid var(--line); border-radius: .4rem;
        padding: .75rem 1rem; margin: .75rem 0; }
.card.E { border-color: var(--bad); } .card.W { border-color: var(--warn); }
.card p { margin: .4rem 0; } .tag { font-weight: 700; }
.E .tag { color: var(--bad); } .W .tag { color: var(--warn); } .I .tag { color: var(--soft); }
svg { width: 100%; min-width: 28rem; height: auto; display: block; margin: 1rem 0;
      fill: var(--ink); }
svg text { font: 13px system-ui, sans-serif; } svg .t { font-weight: 600; font-size: 14px; }
svg .s { fill: var(--soft); } svg .grid { stroke: var(--line); }
svg .level { stroke: var(--bad); stroke-dasharray: 4 3; }
"""


def render(report: AuditReport) -> str:
    """The page as text."""
    title = escape(report.deployment.title or "Deployment")
    verdict = report.verdict.value
    body = "\n".join(_section(report, section) for section in sections(report))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>Privacy audit: {title}: {verdict}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Privacy audit: {title}</h1>
<p class="verdict {verdict}"><strong>{verdict}</strong> {escape(report.judgement.reason)}.</p>
{body}
</main>
</body>
</html>
"""


def _section(report: AuditReport, section: Section) -> str:
    blocks = "\n".join(_block(report, block) for block in section.blocks)
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>"


def _block(report: AuditReport, block: Block) -> str:
    match block:
        case Text():
            kind = ' class="soft"' if block.soft else ""
            return f"<p{kind}>{escape(block.text)}</p>"
        case Table():
            return _table(block)
        case Card():
            return _card(block)
        case Picture():
            picture = _picture(report, block.name)
            return f'<div class="wide">{picture}</div>' if picture else ""


def _table(table: Table) -> str:
    head = ""
    if any(table.head):
        cells = "".join(_cell("th", text, i in table.numeric) for i, text in enumerate(table.head))
        head = f"<thead><tr>{cells}</tr></thead>"
    rows = "\n".join(
        f"<tr>{''.join(_cell('td', text, i in table.numeric) for i, text in enumerate(row))}</tr>"
        for row in table.rows
    )
    return f'<div class="wide"><table>{head}<tbody>\n{rows}\n</tbody></table></div>'


def _cell(tag: str, text: str, numeric: bool) -> str:
    longest = max((len(word) for word in text.split()), default=0)
    kind = ' class="num"' if numeric else ' class="long"' if longest > 40 else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _card(card: Card) -> str:
    one = card.finding
    evidence = _table(Table(head=("", ""), rows=one.evidence, numeric=(1,))) if one.evidence else ""
    return (
        f'<div class="card {one.severity.value}"><h3><span class="tag">{one.code} '
        f"({one.severity.value})</span> {escape(one.where)}</h3>"
        f"<p>{escape(one.sentence)}</p>{evidence}"
        f"<p><strong>Fix:</strong> {escape(one.fix)}</p></div>"
    )


def _picture(report: AuditReport, name: str) -> str:
    promise = (
        f"promised: {plain(report.deployment.guarantee.epsilon)}",
        report.deployment.guarantee.epsilon,
    )
    if name == "spend" and report.timeline is not None:
        return line_plot(
            "Epsilon by round",
            (Line(label="epsilon", points=report.timeline.points),),
            x_label="round",
            y_label="epsilon",
            level=promise,
        )
    if name == "dropout":
        return line_plot(
            "Epsilon by dropout",
            tuple(
                Line(label=f"{line.rounds:,} rounds", points=line.points) for line in report.dropout
            ),
            x_label="planned clients that vanish in every round",
            y_label="epsilon",
            level=promise,
            x_percent=True,
        )
    if name == "orders":
        return line_plot(
            "Epsilon by Rényi order (the smallest one counts)",
            (Line(label="epsilon", points=report.curve),),
            x_label="order",
            y_label="epsilon",
            level=promise,
            log_x=True,
        )
    if name == "ledger" and report.ledger is not None:
        return line_plot(
            "Epsilon charged in the ledger, at its declared order",
            (
                Line(
                    label="epsilon",
                    points=tuple(
                        (float(index), point.epsilon)
                        for index, point in enumerate(report.ledger.points, start=1)
                    ),
                ),
            ),
            x_label="charge",
            y_label="epsilon",
            level=promise,
        )
    return ""
