"""What a deployment costs, by method and by point of view: the table of the report.

A number is an upper bound, a lower bound or an estimate, and says so; estimates never decide a
verdict. Where no cost is proved there is no number but the reason. This module knows no target.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from accounting.accountant import Bound, BoundKind, Method, RDPAccountant, epsilon
from accounting.audit.events import (
    AS_PLANNED,
    WORST,
    Amplification,
    Scenario,
    adjacency_of,
    is_bracketed,
    lower_event,
    total_event,
)
from accounting.deployment import Deployment
from accounting.errors import (
    AdjacencyMismatch,
    InvalidParameter,
    MissingExtra,
    OrderAtEdgeWarning,
    UnsupportedEvent,
)
from accounting.events import Event
from accounting.intervals import Interval, interval
from accounting.pld import pld_available, pld_epsilon

__all__ = [
    "Numbers",
    "Row",
    "accountant_of",
    "best_upper",
    "claim_bound",
    "lower_bound",
    "numbers",
    "quick_upper",
    "release_epsilon",
    "release_interval",
]

_QUICK_WIDTH = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table of numbers.

    Attributes:
        name: short and stable, for programs.
        title: what it is, for people.
        bound: the number; None where none is proved.
        note: why there is none, or what to know about it; may be empty.
    """

    name: str
    title: str
    bound: Bound | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The numbers of one deployment at its delta.

    Attributes:
        rows: the table.
        claim: the upper bound that decides, under the fewest survivors and the assumed collusion;
            None where no upper bound is proved.
        lower: the best proved lower bound under the same assumptions; None where none is known.
        bracketed: whether some part of the release is known by an interval only.
    """

    rows: tuple[Row, ...]
    claim: Bound | None
    lower: Bound | None
    bracketed: bool


def numbers(deployment: Deployment) -> Numbers:
    """Every number of the report for a deployment whose values are possible."""
    worst = total_event(deployment, WORST)
    rdp = _row(deployment, "rdp", "Rényi accounting, worst dropout and collusion", worst, "rdp")
    pld = _row(deployment, "pld", "Privacy-loss distribution, same assumptions", worst, "pld")
    exact = _row(deployment, "exact", "Exact value, same assumptions", worst, "exact")
    upper = _interval_row(deployment, worst)
    bracketed = any(is_bracketed(deployment, phase) for phase in deployment.phase)
    if bracketed:  # exact for the release without amplification, which is not the real one
        rdp, pld, upper = (_only_upper(row) for row in (rdp, pld, upper))
        exact = replace(_only_upper(exact), title="Exact without amplification, same assumptions")
    if deployment.guarantee.plan == "adaptive":
        fixed = "holds for a plan that was fixed beforehand only"
        pld, exact, upper = (replace(row, note=fixed) for row in (pld, exact, upper))
    claim = claim_bound(deployment, {row.name: row.bound for row in (rdp, pld, exact, upper)})
    lower = lower_bound(deployment)
    rows = [rdp, pld]
    rows += [row for row in (exact, upper) if row.bound is not None]
    if pld.bound is None:
        rows.append(_estimate(deployment))
    rows.append(
        Row(
            name="lower",
            title="Lower reference: no proof can be better",
            bound=lower,
            note="" if lower else "no lower bound is known for this mechanism",
        )
    )
    if any(phase.noise.where == "client-shares" for phase in deployment.phase):
        rows.append(_view(deployment, "planned", "Nobody vanishes, nobody colludes", AS_PLANNED))
    rows += [
        _view(
            deployment,
            "unamplified",
            "No amplification by sampling",
            replace(WORST, amplification=Amplification.NONE),
        ),
        _server_view(deployment),
    ]
    return Numbers(
        rows=tuple(rows),
        claim=claim,
        lower=lower,
        bracketed=bracketed,
    )


def _only_upper(row: Row) -> Row:
    """The row as an upper bound where it was the exact value of a dearer release."""
    if row.bound is None or row.bound.kind is not BoundKind.EXACT:
        return row
    return replace(row, bound=replace(row.bound, kind=BoundKind.UPPER))


def claim_bound(deployment: Deployment, bounds: dict[str, Bound | None]) -> Bound | None:
    """The bound that decides: that of ``claim_by``, or the smallest valid one.

    A plan that adapts to outputs is bounded by RDP at an order declared beforehand; privacy-loss
    distributions and a best order chosen afterwards prove nothing for it.
    """
    wanted = deployment.guarantee.claim_by
    if deployment.guarantee.plan == "adaptive":
        return bounds["rdp"]
    if wanted != "auto":
        return bounds[wanted]
    found = [bound for bound in bounds.values() if bound is not None]
    return min(found, key=lambda bound: bound.value, default=None)


def lower_bound(deployment: Deployment) -> Bound | None:
    """The largest lower bound of any one phase: leaving the rest out cannot raise epsilon."""
    if deployment.guarantee.adjacency is None:
        return None  # no claim could be contradicted
    found: list[Bound] = []
    for phase in deployment.phase:
        event = lower_event(deployment, phase)
        bound = None if event is None else _lower(event, deployment)
        if bound is not None:
            found.append(bound)
    return max(found, key=lambda bound: bound.value, default=None)


def _lower(event: Event, deployment: Deployment) -> Bound | None:
    found = release_interval(event, deployment.guarantee.delta, adjacency_of(deployment).value)
    return None if found is None else found.lower


@lru_cache(maxsize=64)
def release_interval(event: Event, delta: float, adjacency: str) -> Interval | None:
    """:func:`accounting.interval`, or None where none is known."""
    try:
        return interval(event, delta, adjacency=adjacency)
    except (UnsupportedEvent, AdjacencyMismatch, InvalidParameter):
        return None


# --- single numbers -----------------------------------------------------------------------------


@lru_cache(maxsize=512)
def release_epsilon(event: Event, delta: float, adjacency: str, method: str) -> Bound:
    """:func:`accounting.epsilon` without its warnings; lint A17 speaks about edges of the grid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OrderAtEdgeWarning)
        return epsilon(event, delta, adjacency=adjacency, method=method)


def _row(deployment: Deployment, name: str, title: str, event: Event, method: str) -> Row:
    bound, note = _try(
        lambda: release_epsilon(
            event, deployment.guarantee.delta, adjacency_of(deployment).value, method
        )
    )
    if bound is None and method == "pld" and pld_available():
        note = "no privacy-loss distribution is known to be right for this release"
    if bound is not None and bound.discretisation_error is not None:
        note = (
            f"grid {bound.discretisation:.2g}; halving it moved the value by "
            f"{bound.discretisation_error:.1g}"
        )
    return Row(name=name, title=title, bound=bound, note=note)


def _interval_row(deployment: Deployment, event: Event) -> Row:
    """The upper end of an interval, where that is how the release is known."""
    found = None
    if any(is_bracketed(deployment, phase) for phase in deployment.phase):
        found = release_interval(event, deployment.guarantee.delta, adjacency_of(deployment).value)
    return Row(
        name="interval",
        title="Upper end of the proved interval",
        bound=None if found is None else found.upper,
    )


def _try(compute: Callable[[], Bound]) -> tuple[Bound | None, str]:
    try:
        return compute(), ""
    except (UnsupportedEvent, AdjacencyMismatch, MissingExtra) as error:
        text = str(error)
        return None, text if len(text) <= 240 else f"{text[:237]}..."


def best_upper(
    deployment: Deployment, scenario: Scenario, *, delta: float | None = None
) -> tuple[Bound | None, str]:
    """The smallest upper bound in a scenario by the methods that the claim may use, or why none."""
    event = total_event(deployment, scenario)
    at = deployment.guarantee.delta if delta is None else delta
    adjacency = adjacency_of(deployment).value
    if deployment.guarantee.plan == "adaptive":
        return _try(lambda: release_epsilon(event, at, adjacency, "rdp"))
    return _try(lambda: release_epsilon(event, at, adjacency, deployment.guarantee.claim_by))


def quick_upper(deployment: Deployment, scenario: Scenario, method: Method) -> Bound | None:
    """One upper bound by a given method, on a coarse grid: for tables and plots of many.

    An interval, and what the method does not know, is replaced by Rényi accounting.
    """
    event = total_event(deployment, scenario)
    adjacency, delta = adjacency_of(deployment), deployment.guarantee.delta
    found = None
    if method is Method.PLD:
        found = _try(lambda: pld_epsilon(event, delta, adjacency=adjacency, width=_QUICK_WIDTH))[0]
    elif method is Method.EXACT:
        found = _try(lambda: release_epsilon(event, delta, adjacency.value, "exact"))[0]
    return found or _try(lambda: release_epsilon(event, delta, adjacency.value, "rdp"))[0]


def _estimate(deployment: Deployment) -> Row:
    """The privacy-loss distribution of Gaussian noise of the same size: an estimate only."""
    title = "Privacy-loss distribution if the noise were Gaussian"
    event = total_event(deployment, replace(WORST, gaussian=True))
    bound, note = _try(
        lambda: release_epsilon(
            event, deployment.guarantee.delta, adjacency_of(deployment).value, "pld"
        )
    )
    if bound is not None:
        bound, note = replace(bound, kind=BoundKind.ESTIMATE), "an estimate: it decides nothing"
    return Row(name="gaussian-estimate", title=title, bound=bound, note=note)


def _view(deployment: Deployment, name: str, title: str, scenario: Scenario) -> Row:
    bound, note = best_upper(deployment, scenario)
    return _only_upper(Row(name=name, title=title, bound=bound, note=note))


def _server_view(deployment: Deployment) -> Row:
    """What the server learns, who knows the cohort and whatever nobody hides from it."""
    title = "The server's view"
    if any(_server_sees_contributions(deployment, index) for index in range(len(deployment.phase))):
        nothing = Bound(
            value=math.inf,
            kind=BoundKind.UPPER,
            method=Method.RDP,
            delta=deployment.guarantee.delta,
            adjacency=adjacency_of(deployment),
        )
        return Row(
            name="server",
            title=title,
            bound=nothing,
            note="the server sees single contributions with too little noise or none: no guarantee",
        )
    secret = all(phase.sampling.coins == "secret" for phase in deployment.phase)
    known = Amplification.ALL if secret else Amplification.CLIENTS_KNOWN
    row = _view(deployment, "server", title, replace(WORST, amplification=known))
    if row.bound is None:
        return row
    note = "it does not learn who takes part" if secret else "it knows who takes part"
    return replace(row, note=note)


def _server_sees_contributions(deployment: Deployment, index: int) -> bool:
    """Whether the noise is added after, or is too small before, the server saw a contribution."""
    phase = deployment.phase[index]
    if phase.noise.where == "client":
        return False
    return phase.noise.where == "server" or phase.aggregation.protocol == "none"


def accountant_of(deployment: Deployment, scenario: Scenario) -> RDPAccountant | None:
    """An RDP accountant with everything composed; None where there is no curve."""
    accountant = RDPAccountant(adjacency=adjacency_of(deployment))
    try:
        accountant.compose(total_event(deployment, scenario))
    except (UnsupportedEvent, AdjacencyMismatch):
        return None
    return accountant
