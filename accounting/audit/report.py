"""The verdict on a deployment and the report that carries it.

The order of the rules matters and is that of :func:`judge`: what is contradicted comes before what
is unproved, and what is unproved before what holds. PASS means: as declared, and as far as this
package can prove. It never means that the deployment does what the file says.
"""

from __future__ import annotations

import importlib.util
import json
import math
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeGuard

from accounting.accountant import Bound
from accounting.audit import outlook
from accounting.audit.bounds import Numbers, numbers
from accounting.audit.claim import claim_sentence, relevant_defaults
from accounting.audit.events import WORST, adjacency_of, total_event
from accounting.audit.ledgers import LedgerView, read_ledger
from accounting.audit.lints import Finding, Severity, findings
from accounting.audit.wording import down, epsilon_text, plain, up
from accounting.choice import Choice
from accounting.deployment import Deployment, impossible_values
from accounting.entries import Head
from accounting.events import digest

__all__ = ["DECLARATION", "AuditReport", "Judgement", "Verdict", "audit", "exit_code", "judge"]

SCHEMA = "securefl-audit/1"
DECLARATION = (
    "This audit judges a declaration. It computes what the described deployment would cost; it "
    "does not observe that clipping happened, that noise was added, or that nobody else was told."
)


class Verdict(Choice):
    """What the audit says about the claim."""

    PASS = "PASS"  # noqa: S105  # a verdict, no password
    FAIL = "FAIL"
    UNSUPPORTED = "UNSUPPORTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict and why.

    Attributes:
        verdict: PASS, FAIL or UNSUPPORTED.
        reason: one sentence.
    """

    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """Everything an audit found. ``to_markdown``, ``to_json`` and ``to_html`` write it down.

    Attributes:
        deployment: what was audited.
        claim: the claim in one sentence.
        judgement: the verdict and its reason.
        numbers: bounds by method; None where values are impossible.
        findings: of the lints, by code.
        ledger: what a ledger says; None if none was given.
        timeline: course of the planned spend; None where there is no number.
        changes: the sensitivity table.
        dropout: epsilon by dropout and rounds, for noise in shares.
        attacker: what the guarantee leaves to an attacker; None where there is no number.
        curve: (order, epsilon at that order), for the plot; empty where there is no curve.
        assumed: defaults that the file left to the audit.
        facts: versions, digests and heads, to reproduce the report.
        command: the command that gives this report again.
    """

    deployment: Deployment
    claim: str
    judgement: Judgement
    numbers: Numbers | None
    findings: tuple[Finding, ...]
    ledger: LedgerView | None
    timeline: outlook.Timeline | None
    changes: tuple[outlook.Change, ...]
    dropout: tuple[outlook.DropoutLine, ...]
    attacker: outlook.Attacker | None
    curve: tuple[tuple[float, float], ...]
    assumed: tuple[tuple[str, object], ...]
    facts: tuple[tuple[str, str], ...]
    command: str

    @property
    def verdict(self) -> Verdict:
        """PASS, FAIL or UNSUPPORTED."""
        return self.judgement.verdict

    def to_markdown(self) -> str:
        """The report as Markdown."""
        from accounting.audit.markdown import render  # noqa: PLC0415  # it stands on this module

        return render(self)

    def to_html(self) -> str:
        """The report as one page that opens without a network."""
        from accounting.audit.page import render  # noqa: PLC0415  # it stands on this module

        return render(self)

    def to_json(self) -> str:
        """The report as one JSON object, schema ``securefl-audit/1``; infinities are null."""
        return json.dumps(_body(self), allow_nan=False, ensure_ascii=False)


# --- the verdict --------------------------------------------------------------------------------


def judge(
    deployment: Deployment,
    found: tuple[Finding, ...],
    values: Numbers | None,
    ledger: LedgerView | None,
) -> Judgement:
    """The first rule that applies.

    FAIL: a lower bound above the promise; an overspent ledger; a measured lower bound above it; or,
    with no open finding of severity E and no interval, the best upper bound above it. UNSUPPORTED:
    an open finding of severity E; an interval that contains the promise; no proved upper bound.
    Else PASS.
    """
    target = deployment.guarantee.epsilon
    refuted = _contradiction(deployment, values, ledger)
    if refuted:
        return Judgement(verdict=Verdict.FAIL, reason=refuted)
    errors = sorted({finding.code for finding in found if finding.severity is Severity.E})
    if values is None:
        return _unsupported("the file contains values that no deployment can have (A18)")
    claim = values.claim
    if not errors and not values.bracketed and claim is not None and claim.value > target:
        return Judgement(
            verdict=Verdict.FAIL,
            reason=f"the best proved bound is epsilon {epsilon_text(claim)}, "
            f"{plain(target)} is promised",
        )
    if errors:
        return _unsupported(f"open findings of severity E: {', '.join(errors)}")
    if claim is None:
        return _unsupported(
            f"no upper bound is proved for this mechanism by method {deployment.guarantee.claim_by}"
        )
    if claim.value > target:
        at_least = "0" if values.lower is None else down(values.lower.value)
        return _unsupported(
            f"the true epsilon lies between {at_least} and {up(claim.value)}, and "
            f"{plain(target)} is promised: nothing is proved either way"
        )
    return Judgement(
        verdict=Verdict.PASS,
        reason=f"epsilon is at most {up(claim.value)}, {plain(target)} is promised",
    )


def _unsupported(reason: str) -> Judgement:
    return Judgement(verdict=Verdict.UNSUPPORTED, reason=reason)


def _contradiction(
    deployment: Deployment, values: Numbers | None, ledger: LedgerView | None
) -> str:
    """Why the claim is false whatever else is said; empty if nothing contradicts it."""
    target, delta = deployment.guarantee.epsilon, deployment.guarantee.delta
    lower = None if values is None else values.lower
    if lower is not None and lower.value > target:
        return f"the true epsilon is at least {down(lower.value)}, {plain(target)} is promised"
    if ledger is not None and ledger.overspent:
        return f"the ledger is overspent: {ledger.overspent}"
    for one in deployment.empirical:
        # A guarantee at delta holds at any larger one, so only those bounds can contradict it.
        if one.delta >= delta and one.lower > target:
            return (
                f"{one.name!r} measured epsilon of at least {down(one.lower)} at delta "
                f"{one.delta:g} with confidence {plain(one.confidence)}, {plain(target)} is "
                "promised"
            )
    return ""


def exit_code(report: AuditReport, *, fail_on: Severity = Severity.E) -> int:
    """0 PASS, 1 FAIL, 3 UNSUPPORTED; with ``fail_on`` W a PASS with warnings is 1 as well."""
    if report.verdict is Verdict.PASS:
        warned = any(finding.severity is Severity.W for finding in report.findings)
        return 1 if fail_on is Severity.W and warned else 0
    return 1 if report.verdict is Verdict.FAIL else 3


# --- the audit ----------------------------------------------------------------------------------


def audit(
    deployment: Deployment,
    *,
    ledger: str | Path | None = None,
    expect_head: Head | None = None,
    command: str = "",
) -> AuditReport:
    """Judges a deployment.

    Args:
        deployment: the declaration.
        ledger: a ledger of the running system; it is verified completely.
        expect_head: an entry of that ledger that somebody has seen.
        command: what to write as the command that gives this report again.

    Raises:
        LedgerUnavailable: if the ledger is none or cannot be opened.
        BrokenChain: if it contradicts itself.
        LedgerRolledBack: if ``expect_head`` is not in it.
    """
    possible = not impossible_values(deployment)
    view = None
    if ledger is not None:
        view = read_ledger(ledger, deployment, expect_head=expect_head)
    values = numbers(deployment) if possible else None
    found = findings(deployment) + _of_ledger(view)
    claim = None if values is None else values.claim
    return AuditReport(
        deployment=deployment,
        claim=claim_sentence(deployment) if possible else _unclear(deployment),
        judgement=judge(deployment, found, values, view),
        numbers=values,
        findings=tuple(sorted(found, key=lambda finding: finding.code)),
        ledger=view,
        timeline=outlook.timeline(deployment, claim.method) if _finite(claim) else None,
        changes=outlook.changes(deployment, claim.method) if _finite(claim) else (),
        dropout=outlook.dropout_lines(deployment, claim.method) if _finite(claim) else (),
        attacker=outlook.attacker(deployment, claim) if _finite(claim) else None,
        curve=_curve(deployment) if possible else (),
        assumed=relevant_defaults(deployment),
        facts=_facts(deployment, view, possible=possible),
        command=command,
    )


def _finite(claim: Bound | None) -> TypeGuard[Bound]:
    return claim is not None and math.isfinite(claim.value)


def _unclear(deployment: Deployment) -> str:
    return (
        f"The file promises epsilon {deployment.guarantee.epsilon!r} at delta "
        f"{deployment.guarantee.delta!r} for each {deployment.population.unit}; it contains values "
        "that no deployment can have, so nothing was computed."
    )


def _of_ledger(view: LedgerView | None) -> tuple[Finding, ...]:
    """What a ledger adds to the findings."""
    if view is None:
        return ()
    found = []
    if view.injected:
        found.append(
            Finding(
                code="A13",
                severity=Severity.E,
                where="ledger",
                sentence=(
                    "The ledger says that its noise came from an injected generator: the run was a "
                    "test or a simulation."
                ),
                evidence=(("epsilon against who knows the generator", "infinite"),),
                fix="Run with the system's generator; a simulation supports no claim.",
            )
        )
    for code, text in (("A02", view.other_adjacency), ("A14", view.other_unit)):
        if text:
            found.append(_of_another_promise(code, text))
    if view.weak_noise:
        found.append(
            Finding(
                code="A04",
                severity=Severity.E,
                where="ledger",
                sentence="Releases were settled with more honest noise than their evidence has.",
                evidence=tuple(("settlement", text) for text in view.weak_noise[:5]),
                fix="Settle every round at the survivors and colluders of its evidence.",
            )
        )
    return tuple(found)


def _of_another_promise(code: str, text: str) -> Finding:
    return Finding(
        code=code,
        severity=Severity.E,
        where="ledger",
        sentence=f"The ledger keeps count of another promise than the file's: {text}.",
        evidence=(("what it says about the file's promise", "nothing"),),
        fix="Give the ledger that was declared for this promise, or promise what it counts.",
    )


def _curve(deployment: Deployment) -> tuple[tuple[float, float], ...]:
    """Epsilon by order, at finite places below ten times the best."""
    from accounting.audit.bounds import accountant_of  # noqa: PLC0415  # needed here only
    from accounting.curves import Orders  # noqa: PLC0415  # needed here only

    accountant = accountant_of(deployment, WORST)
    if accountant is None:
        return ()
    rdp = accountant.curve()
    left = deployment.guarantee.delta - rdp.delta
    if left <= 0:
        return ()
    values = Orders.of(rdp.orders).to_epsilon(_array(rdp.values), left).tolist()
    pairs = [(a, e) for a, e in zip(rdp.orders, values, strict=True) if math.isfinite(e) and e > 0]
    best = min((e for _, e in pairs), default=0.0)
    return tuple((a, e) for a, e in pairs if e <= 4 * best)


def _array(values: tuple[float, ...]) -> Any:
    import numpy as np  # noqa: PLC0415  # needed here only

    return np.array(values)


def _facts(
    deployment: Deployment, view: LedgerView | None, *, possible: bool
) -> tuple[tuple[str, str], ...]:
    rows = [
        ("securefl (of which accounting is a part)", _version("securefl")),
        ("dp-accounting", _version("dp-accounting")),
        ("numpy", _version("numpy")),
        ("scipy", _version("scipy")),
        ("python", platform.python_version()),
        ("deployment, SHA-256", deployment.digest()),
    ]
    if possible:
        rows.append(
            ("event under worst assumptions, SHA-256", digest(total_event(deployment, WORST)))
        )
        rows.append(("adjacency used", adjacency_of(deployment).value))
    if view is not None:
        rows.append(("ledger head", str(view.head)))
    return tuple(rows)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        there = importlib.util.find_spec(name.replace("-", "_")) is not None
        return "version not known" if there else "not installed"


# --- JSON ---------------------------------------------------------------------------------------


def _body(report: AuditReport) -> dict[str, Any]:
    guarantee = report.deployment.guarantee
    values = report.numbers
    return {
        "schema": SCHEMA,
        "title": report.deployment.title,
        "verdict": report.verdict.value,
        "reason": report.judgement.reason,
        "claim": report.claim,
        "target": {
            "epsilon": _number(guarantee.epsilon),
            "delta": _number(guarantee.delta),
            "adjacency": guarantee.adjacency,
        },
        "epsilon": None if values is None or values.claim is None else _bound(values.claim),
        "lower": None if values is None or values.lower is None else _bound(values.lower),
        "numbers": []
        if values is None
        else [
            {
                "name": row.name,
                "title": row.title,
                "bound": None if row.bound is None else _bound(row.bound),
                "note": row.note,
            }
            for row in values.rows
        ],
        "findings": [
            {
                "code": one.code,
                "severity": one.severity.value,
                "where": one.where,
                "sentence": one.sentence,
                "evidence": [{"what": what, "value": value} for what, value in one.evidence],
                "fix": one.fix,
            }
            for one in report.findings
        ],
        "ledger": None if report.ledger is None else _ledger(report.ledger),
        "timeline": None
        if report.timeline is None
        else {
            "points": [[rounds, _number(value)] for rounds, value in report.timeline.points],
            "exhausted_at": report.timeline.exhausted_at,
        },
        "sensitivity": [
            {
                "change": one.name,
                "epsilon": None if one.epsilon is None else _number(one.epsilon),
                "note": one.note,
            }
            for one in report.changes
        ],
        "attacker": None
        if report.attacker is None
        else {
            "max_advantage": report.attacker.advantage,
            "max_true_positive_rate": report.attacker.true_positives,
            "false_positive_rate": report.attacker.false_positives,
        },
        "assumed_defaults": dict(report.assumed),
        "facts": dict(report.facts),
        "command": report.command,
        "note": DECLARATION,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _bound(bound: Bound) -> dict[str, Any]:
    return {
        "epsilon": _number(bound.value),
        "kind": bound.kind.value,
        "method": bound.method.value,
        "order": bound.order,
        "delta": bound.delta,
        "discretisation": bound.discretisation,
        "discretisation_error": bound.discretisation_error,
    }


def _ledger(view: LedgerView) -> dict[str, Any]:
    return {
        "path": view.path,
        "head": str(view.head),
        "epsilon_spent": _number(view.spent.value),
        "delta": view.spent.delta,
        "settled": view.settled,
        "aborted": view.aborted,
        "open": view.open,
        "exhausted_at": view.exhausted_at,
        "overspent": view.overspent,
        "remarks": list(view.remarks),
        "points": [[point.round, point.epsilon] for point in view.points],
    }
