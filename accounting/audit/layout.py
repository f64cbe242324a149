"""What a report says, in order, as blocks: the Markdown and the HTML page only draw them.

One place for the words keeps the two alike. This module knows no markup.
"""

from __future__ import annotations

from dataclasses import dataclass

from accounting.audit.lints import Finding
from accounting.audit.report import DECLARATION, AuditReport
from accounting.audit.wording import bound_text, epsilon_text, percent, plain, up

__all__ = ["Block", "Card", "Picture", "Section", "Table", "Text", "sections"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str
    soft: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; ``numeric`` columns are set right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One finding."""

    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A plot of the page; Markdown leaves it out."""

    name: str


Block = Text | Table | Card | Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


def sections(report: AuditReport) -> tuple[Section, ...]:
    """The report behind its verdict, in reading order; empty sections are left out."""
    found = (
        _claim(report),
        _findings(report),
        _numbers(report),
        _meaning(report),
        _ledger(report),
        _timeline(report),
        _sensitivity(report),
        _assumed(report),
        _reproduce(report),
    )
    return tuple(section for section in found if section.blocks)


def _claim(report: AuditReport) -> Section:
    return Section(
        title="What is promised",
        blocks=(Text(text=report.claim), Text(text=DECLARATION, soft=True)),
    )


def _findings(report: AuditReport) -> Section:
    if not report.findings:
        return Section(
            title="Findings",
            blocks=(Text(text="None of the lints A01 to A22 has anything to say."),),
        )
    order = {"E": 0, "W": 1, "I": 2}
    cards = sorted(report.findings, key=lambda one: (order[one.severity.value], one.code))
    return Section(
        title="Findings",
        blocks=(
            Text(
                text="E: the claim is not supported as stated. W: the number may change. I: to be "
                "said together with the number.",
                soft=True,
            ),
            *(Card(finding=one) for one in cards),
        ),
    )


def _numbers(report: AuditReport) -> Section:
    values = report.numbers
    if values is None:
        return Section(title="Epsilon, by method and point of view", blocks=())
    guarantee = report.deployment.guarantee
    rows = tuple(
        (
            row.title,
            epsilon_text(row.bound),
            "" if row.bound is None else row.bound.kind.value,
            _how(row.note, row.bound is not None and bound_text(row.bound)),
        )
        for row in values.rows
    )
    return Section(
        title="Epsilon, by method and point of view",
        blocks=(
            Text(
                text=f"At delta {guarantee.delta:g}; {plain(guarantee.epsilon)} is promised. Upper "
                "bounds are rounded up, lower bounds down. An estimate decides nothing."
            ),
            Table(head=("what", "epsilon", "kind", "remark"), rows=rows, numeric=(1,)),
            Picture(name="orders"),
        ),
    )


def _how(note: str, bound: str | bool) -> str:
    at = ""
    if isinstance(bound, str) and " at order " in bound:
        at = f"order {bound.rpartition(' at order ')[2].rstrip(')')}"
    return "; ".join(part for part in (at, note) if part)


def _meaning(report: AuditReport) -> Section:
    found = report.attacker
    blocks: tuple[Block, ...] = ()
    if found is not None:
        blocks = (
            Text(
                text="Somebody wants to know whether one particular unit took part, and knows "
                "everything else. If the proved bound holds, then at most "
                f"{percent_up(found.true_positives)} of those who did are found at a false alarm "
                f"rate of {percent(found.false_positives)}; and however the threshold is chosen, "
                "the rate of hits exceeds the rate of false alarms by at most "
                f"{percent_up(found.advantage)}."
            ),
            Text(
                text="Without any release, guessing finds "
                f"{percent(found.false_positives)} at that false alarm rate.",
                soft=True,
            ),
        )
    return Section(title="What an attacker can achieve at most", blocks=blocks)


def percent_up(value: float) -> str:
    """A fraction as a percentage, rounded up, and at most all."""
    return f"{up(100 * min(1.0, value))} %"


def _ledger(report: AuditReport) -> Section:
    view = report.ledger
    if view is None:
        return Section(title="The ledger", blocks=())
    guarantee = report.deployment.guarantee
    rows = [
        ("epsilon spent, recomputed from the events", epsilon_text(view.spent)),
        ("at delta", f"{view.spent.delta:g}"),
        ("epsilon of the ledger's budget", plain(view.header.epsilon)),
        ("epsilon promised by the file", plain(guarantee.epsilon)),
        ("settled / aborted / still open", f"{view.settled} / {view.aborted} / {view.open}"),
        ("population", view.header.population),
        ("head", str(view.head)),
    ]
    if view.exhausted_at is not None:
        rows.append(("releases like the mean one that the budget allows", plain(view.exhausted_at)))
    remarks = tuple(Text(text=f"Note: {remark}.") for remark in view.remarks)
    return Section(
        title="The ledger",
        blocks=(
            Text(
                text="Every entry's hash, order and price were checked again; no cost was believed."
            ),
            Table(head=("", ""), rows=tuple(rows)),
            *remarks,
            Picture(name="ledger"),
        ),
    )


def _timeline(report: AuditReport) -> Section:
    found = report.timeline
    if found is None:
        return Section(title="The course of the budget", blocks=())
    planned = sum(phase.rounds for phase in report.deployment.phase)
    target = plain(report.deployment.guarantee.epsilon)
    if found.exhausted_at is None:
        when = (
            f"Not even one round fits epsilon {target}."
            if found.beyond == 1
            else f"Epsilon {target} is not used up within {found.beyond:,} rounds."
        )
    else:
        when = (
            f"Continued like this, epsilon {target} lasts until about round "
            f"{found.exhausted_at:,}; {planned:,} are planned."
        )
    return Section(
        title="The course of the budget",
        blocks=(
            Text(text=when),
            Table(
                head=("after round", "epsilon"),
                rows=tuple((f"{rounds:,}", up(value)) for rounds, value in found.points),
                numeric=(0, 1),
            ),
            Picture(name="spend"),
        ),
    )


def _sensitivity(report: AuditReport) -> Section:
    if not report.changes:
        return Section(title="What would change it", blocks=())
    rows = tuple(
        (one.name, "–" if one.epsilon is None else up(one.epsilon), one.note)
        for one in report.changes
    )
    return Section(
        title="What would change it",
        blocks=(
            Text(
                text="By the method of the claim on a coarser grid; an interval is replaced by "
                "Rényi accounting.",
                soft=True,
            ),
            Table(head=("if", "epsilon", ""), rows=rows, numeric=(1,)),
            Picture(name="dropout"),
        ),
    )


def _assumed(report: AuditReport) -> Section:
    if not report.assumed:
        return Section(title="Assumed defaults", blocks=())
    return Section(
        title="Assumed defaults",
        blocks=(
            Text(text="The file does not say these; the audit assumed:", soft=True),
            Table(
                head=("key", "assumed"),
                rows=tuple((key, _toml(value)) for key, value in report.assumed),
            ),
        ),
    )


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _reproduce(report: AuditReport) -> Section:
    rows = report.facts
    if report.command:
        rows = (*rows, ("command", report.command))
    return Section(title="To reproduce this report", blocks=(Table(head=("", ""), rows=rows),))
