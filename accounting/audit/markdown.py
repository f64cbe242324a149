"""The report as Markdown. Values from the file are escaped; see :mod:`accounting.audit.layout`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from accounting.audit.layout import Block, Card, Table, Text, sections
from accounting.audit.report import AuditReport

__all__ = ["render"]


def render(report: AuditReport) -> str:
    """The report as Markdown text that ends in a newline."""
    return "\n".join([*_lines(report), ""])


def _lines(report: AuditReport) -> Iterator[str]:
    title = report.deployment.title or "Deployment"
    yield f"# {_escaped(title)}: {report.verdict.value}"
    yield ""
    yield f"**{report.verdict.value}**: {_escaped(report.judgement.reason)}."
    for section in sections(report):
        yield ""
        yield f"## {section.title}"
        for block in section.blocks:
            yield from _block(block)


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield ""
        yield _escaped(block.text)
    elif isinstance(block, Table):
        yield ""
        yield _row(block.head)
        yield _row(tuple("---:" if i in block.numeric else "---" for i, _ in enumerate(block.head)))
        for row in block.rows:
            yield _row(tuple(_escaped(cell) for cell in row))
    elif isinstance(block, Card):
        one = block.finding
        yield ""
        yield f"### {one.code} ({one.severity.value}), {_escaped(one.where)}"
        yield ""
        yield _escaped(one.sentence)
        yield ""
        for what, value in one.evidence:
            yield f"- {_escaped(what)}: {_escaped(value)}"
        yield f"- **Fix**: {_escaped(one.fix)}"


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """The text without line breaks and with Markdown's and HTML's signs made harmless."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
