"""What a lint is: a pure function from a deployment to findings, registered under its code.

A finding has a sentence about *this* deployment and evidence computed for it. Severity E: the claim
is not supported as stated. W: the number may change. I: say it together with the number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from accounting.accountant import Bound
from accounting.audit.bounds import release_epsilon, release_interval
from accounting.audit.events import adjacency_of
from accounting.choice import Choice
from accounting.deployment import Deployment, Phase
from accounting.errors import AdjacencyMismatch, UnsupportedEvent
from accounting.events import Event
from accounting.intervals import Interval
from accounting.pld import pld_available, pld_epsilon

__all__ = [
    "LINTS",
    "Finding",
    "Lint",
    "Severity",
    "bracket",
    "changed",
    "cost",
    "lint",
    "with_phase",
]


class Severity(Choice):
    """How much a finding matters."""

    E = "E"
    W = "W"
    I = "I"  # noqa: E741  # the page's letter for information


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a lint has to say about a deployment.

    Attributes:
        code: of the lint, ``A01`` to ``A22``.
        severity: how much it matters here.
        where: the phase, release or section it is about.
        sentence: what is wrong.
        evidence: (what, value) pairs, computed for this deployment.
        fix: what to do.
    """

    code: str
    severity: Severity
    where: str
    sentence: str
    evidence: tuple[tuple[str, str], ...]
    fix: str


Check = Callable[[Deployment], Iterator[Finding]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lint:
    """A check with its code and a title; ``docs/lints/`` has a page for each."""

    code: str
    title: str
    check: Check


LINTS: dict[str, Lint] = {}


def lint(code: str, title: str) -> Callable[[Check], Check]:
    """Registers a check."""

    def add(check: Check) -> Check:
        LINTS[code] = Lint(code=code, title=title, check=check)
        return check

    return add


# --- evidence -----------------------------------------------------------------------------------


def cost(deployment: Deployment, event: Event) -> float | None:
    """The smallest upper bound of an event under the deployment's adjacency; None for none.

    A privacy-loss distribution on a grid of 1e-3 where it is right, else RDP: evidence has to be
    valid, not tight.
    """
    delta, adjacency = deployment.guarantee.delta, adjacency_of(deployment)
    attempts: list[Callable[[], Bound]] = [
        lambda: release_epsilon(event, delta, adjacency.value, "exact"),
        lambda: release_epsilon(event, delta, adjacency.value, "rdp"),
    ]
    if pld_available():
        attempts.append(lambda: pld_epsilon(event, delta, adjacency=adjacency, width=1e-3))
    found: list[Bound] = []
    for attempt in attempts:
        with contextlib.suppress(UnsupportedEvent, AdjacencyMismatch):
            found.append(attempt())
    return min((bound.value for bound in found), default=None)


def bracket(deployment: Deployment, event: Event) -> Interval | None:
    """The interval of an event under the deployment's adjacency; None for none."""
    return release_interval(event, deployment.guarantee.delta, adjacency_of(deployment).value)


def changed(model: Any, path: str, value: object) -> Any:
    """A copy of a section with the key at a dotted path replaced."""
    name, _, rest = path.partition(".")
    inner = changed(getattr(model, name), rest, value) if rest else value
    return model.model_copy(update={name: inner})


def with_phase(deployment: Deployment, old: Phase, new: Phase) -> Deployment:
    """A copy of a deployment with one phase replaced."""
    phases = tuple(new if phase is old else phase for phase in deployment.phase)
    return deployment.model_copy(update={"phase": phases})


def at_severity(finding: Finding, severity: Severity) -> Finding:
    """The same finding, more or less serious."""
    return replace(finding, severity=severity)
