"""The commands ``audit``, ``plan`` and ``diff`` of ``python -m accounting``.

Exit codes of ``audit``: 0 PASS, 1 FAIL (or PASS with warnings, with ``--fail-on W``), 3
UNSUPPORTED, 2 a file that cannot be read or wrong usage, 4 a ledger that is broken or was rolled
back. ``plan`` and ``diff``: 0, or 2.

This module computes nothing: it reads, asks the package, and prints.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from accounting.entries import Head
from accounting.errors import AccountingError, BrokenChain, LedgerRolledBack

if TYPE_CHECKING:
    from accounting.audit.difference import Difference
    from accounting.audit.planning import Answer
    from accounting.audit.report import AuditReport

__all__ = ["EXIT_LEDGER", "EXIT_UNREADABLE", "audit", "diff", "plan", "register"]

EXIT_UNREADABLE, EXIT_LEDGER = 2, 4

console = Console(stderr=True)

File = Annotated[Path, typer.Argument(help="A deployment file (TOML).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to an application."""
    app.command()(audit)
    app.command()(plan)
    app.command()(diff)


@contextmanager
def _errors() -> Iterator[None]:
    """One message and a code instead of a traceback."""
    try:
        yield
    except (BrokenChain, LedgerRolledBack) as error:
        _print_error(error)
        raise typer.Exit(EXIT_LEDGER) from None
    except (AccountingError, OSError) as error:
        _print_error(error)
        raise typer.Exit(EXIT_UNREADABLE) from None


def _print_error(error: Exception) -> None:
    console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


# --- audit --------------------------------------------------------------------------------------


def audit(
    file: File,
    ledger: Annotated[
        Path | None, typer.Option(help="A ledger of the running system, to compare with.")
    ] = None,
    expect_head: Annotated[
        str | None,
        typer.Option(metavar="SEQ:HASH", help="An entry that the ledger must contain."),
    ] = None,
    fail_on: Annotated[
        str, typer.Option(metavar="E|W", help="W: a PASS with warnings exits 1.")
    ] = "E",
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the report as Markdown.")] = None,
) -> None:
    """Judge a deployment file: lints, bounds, and a verdict with its reason."""
    from accounting.audit.lints import Severity  # noqa: PLC0415  # pydantic: load late
    from accounting.audit.report import audit as audited  # noqa: PLC0415  # as above
    from accounting.audit.report import exit_code  # noqa: PLC0415  # as above
    from accounting.deployment import Deployment  # noqa: PLC0415  # as above

    with _errors():
        severity = Severity.of(fail_on)
        head = None if expect_head is None else Head.parse(expect_head)
        if head is not None and ledger is None:
            raise typer.BadParameter("--expect-head is about a ledger: give --ledger")
        report = audited(
            Deployment.load(file),
            ledger=ledger,
            expect_head=head,
            command=_command(file, ledger, expect_head),
        )
        if html is not None:
            html.write_text(report.to_html(), encoding="utf-8")
        if markdown is not None:
            markdown.write_text(report.to_markdown(), encoding="utf-8")
    if as_json:
        typer.echo(report.to_json())
    else:
        _print_report(report)
    raise typer.Exit(exit_code(report, fail_on=severity))


def _command(file: Path, ledger: Path | None, head: str | None) -> str:
    words = ["python", "-m", "accounting", "audit", str(file)]
    if ledger is not None:
        words += ["--ledger", str(ledger)]
    if head is not None:
        words += ["--expect-head", head]
    return shlex.join(words)


def _print_report(report: AuditReport) -> None:
    """The short form: everything else is in the Markdown and the HTML."""
    from accounting.audit.wording import epsilon_text, up  # noqa: PLC0415  # as above

    colour = {"PASS": "green", "FAIL": "red", "UNSUPPORTED": "yellow"}[report.verdict.value]
    out = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    out.print(report.verdict.value, style=f"bold {colour}", end=": ")
    out.print(f"{report.judgement.reason}.", markup=False)
    out.print()
    out.print(report.claim, markup=False)
    if report.numbers is not None:
        out.print()
        for row in report.numbers.rows:
            out.print(f"  {epsilon_text(row.bound):>12}  {row.title}", markup=False)
    if report.ledger is not None:
        spent = epsilon_text(report.ledger.spent)
        out.print(f"  {spent:>12}  Spent according to the ledger", markup=False)
        for remark in report.ledger.remarks:
            out.print(f"  note: {remark}", markup=False)
    if report.timeline is not None and report.timeline.exhausted_at is not None:
        out.print(f"  {report.timeline.exhausted_at:>12,}  Rounds until the budget is used up")
    if report.attacker is not None:
        share = f"{up(100 * report.attacker.true_positives)} %"
        out.print(f"  {share:>12}  Hits that an attacker can have at 0.1 % false alarms")
    for finding in report.findings:
        out.print()
        out.print(
            f"{finding.code} ({finding.severity.value}) {finding.where}: {finding.sentence}",
            markup=False,
        )
        for what, value in finding.evidence:
            out.print(f"    {what}: {value}", markup=False)
        out.print(f"    fix: {finding.fix}", markup=False)
    out.print()
    out.print("The file is a declaration: see --html or --markdown for what was assumed.")


# --- plan ---------------------------------------------------------------------------------------


def plan(
    file: File,
    phase: Annotated[
        str | None, typer.Option(help="Name of the phase, where there are several.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Another target than the file's guarantee.epsilon.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The least noise, the largest cohort and the most rounds that keep the promise.

    Each with everything else as in the file, at the fewest survivors and the most colluders.
    """
    from accounting.audit.planning import plan as planned  # noqa: PLC0415  # pydantic: load late
    from accounting.deployment import Deployment  # noqa: PLC0415  # as above

    with _errors():
        deployment = Deployment.load(file)
        if epsilon is not None:
            guarantee = deployment.guarantee.model_copy(update={"epsilon": epsilon})
            deployment = deployment.model_copy(update={"guarantee": guarantee})
        answers = planned(deployment, phase)
    if as_json:
        typer.echo(json.dumps([_answer(one) for one in answers], allow_nan=False))
        return
    for one in answers:
        typer.echo(_sentence(one))


def _answer(one: Answer) -> dict[str, Any]:
    return {
        "over": one.over.value,
        "key": one.key,
        "now": one.now,
        "value": one.value,
        "epsilon": one.epsilon,
        "order": one.order,
        "why": one.why,
    }


def _sentence(one: Answer) -> str:
    now = "" if one.now is None else f" (now {one.now:g})"
    if one.value is None or one.epsilon is None:
        return f"{one.key}{now}: {one.why}"
    word = {"noise_multiplier": "at least", "cohort": "at most", "steps": "at most"}[one.over.value]
    value = f"{one.value!r}" if isinstance(one.value, float) else f"{one.value}"
    return f"{one.key}{now}: {word} {value}, for epsilon {one.epsilon:.6g}"


# --- diff ---------------------------------------------------------------------------------------


def diff(
    first: Annotated[Path, typer.Argument(help="A deployment file (TOML).")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """What changed between two deployment files, and what each change costs by itself."""
    from accounting.audit.difference import difference  # noqa: PLC0415  # pydantic: load late
    from accounting.deployment import Deployment  # noqa: PLC0415  # as above

    with _errors():
        found = difference(Deployment.load(first), Deployment.load(second))
    if as_json:
        typer.echo(json.dumps(_difference(found), allow_nan=False, default=str))
        return
    _print_difference(found)


def _value(report: AuditReport) -> float | None:
    claim = None if report.numbers is None else report.numbers.claim
    return None if claim is None or not math.isfinite(claim.value) else claim.value


def _codes(report: AuditReport) -> list[str]:
    return sorted({finding.code for finding in report.findings})


def _difference(found: Difference) -> dict[str, Any]:
    return {
        "verdicts": [found.first.verdict.value, found.second.verdict.value],
        "epsilons": [_value(found.first), _value(found.second)],
        "findings": [_codes(found.first), _codes(found.second)],
        "changes": [
            {
                "key": one.key,
                "before": _finite(one.before),
                "after": _finite(one.after),
                "epsilon_alone": None if one.alone is None else _finite(one.alone.value),
                "note": one.note,
            }
            for one in found.changes
        ],
    }


def _finite(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _print_difference(found: Difference) -> None:
    from accounting.audit.difference import shown  # noqa: PLC0415  # as above
    from accounting.audit.wording import epsilon_text  # noqa: PLC0415  # as above

    pairs = zip(("first", "second"), (found.first, found.second), strict=True)
    for name, report in pairs:
        claim = None if report.numbers is None else report.numbers.claim
        codes = ", ".join(_codes(report)) or "none"
        typer.echo(
            f"{name}: {report.verdict.value}, epsilon {epsilon_text(claim)}, findings {codes}"
        )
    if not found.changes:
        typer.echo("no key differs")
    for one in found.changes:
        alone = epsilon_text(one.alone)
        note = f" ({one.note})" if one.note else ""
        typer.echo(f"{one.key}: {shown(one.before)} -> {shown(one.after)}")
        typer.echo(f"    by itself: epsilon {alone}{note}")
