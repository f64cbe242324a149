"""Lints about what adds up: A09, A10, A11, A17, A21."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

from accounting.accountant import RDPAccountant, gaussian_epsilon
from accounting.audit.bounds import release_epsilon
from accounting.audit.events import (
    WORST,
    adjacency_of,
    charged_releases,
    phase_event,
    release_event,
    total_event,
)
from accounting.audit.lints.base import Finding, Severity, cost, lint
from accounting.audit.wording import plain, up
from accounting.curves import DEFAULT_ORDERS
from accounting.deployment import Deployment, Phase
from accounting.errors import AdjacencyMismatch, OrderAtEdgeWarning, UnsupportedEvent
from accounting.events import Adjacency, Compose, Event, Repeat, Select

__all__: list[str] = []


@lint("A09", "The classic formula beyond epsilon 1, or rounds that are not composed")
def classic(deployment: Deployment) -> Iterator[Finding]:
    """sqrt(2 ln(1.25/delta))/epsilon is proved for one release and epsilon up to 1."""
    for phase in deployment.phase:
        if phase.accounting.method == "classic" and deployment.guarantee.epsilon > 1:
            yield _beyond_one(deployment, phase)
        true = charged_releases(deployment, phase)
        if phase.accounting.steps == 1 and true > 1:
            yield _one_of_many(deployment, phase, true)


def _beyond_one(deployment: Deployment, phase: Phase) -> Finding:
    target, delta = deployment.guarantee.epsilon, deployment.guarantee.delta
    noise = math.sqrt(2 * math.log(1.25 / delta)) / target
    doubled = 2.0 if adjacency_of(deployment) is Adjacency.REPLACE_ONE else 1.0
    return Finding(
        code="A09",
        severity=Severity.E,
        where=phase.name,
        sentence=(
            f"The noise is computed by the classic formula, which is proved for epsilon up to 1 "
            f"only, for an epsilon of {plain(target)}."
        ),
        evidence=(
            ("noise multiplier that the formula gives for one release", plain(noise)),
            ("epsilon that one release with it has", up(gaussian_epsilon(doubled / noise, delta))),
            ("epsilon that it is said to have", plain(target)),
        ),
        fix="Calibrate: python -m accounting plan FILE, or accounting.calibrate.",
    )


def _one_of_many(deployment: Deployment, phase: Phase, true: int) -> Finding:
    event = phase_event(deployment, phase, WORST)
    one = event.event if isinstance(event, Repeat) else None
    rows: list[tuple[str, str]] = []
    for label, part in (("epsilon of one release", one), (f"epsilon of all {true}", event)):
        found = None if part is None else cost(deployment, part)
        if found is not None:
            rows.append((label, up(found)))
    return Finding(
        code="A09",
        severity=Severity.E,
        where=phase.name,
        sentence=f"The stated cost is that of one release; {true} of them are made.",
        evidence=tuple(rows),
        fix="Compose all rounds, and give the sum as the epsilon.",
    )


@lint("A10", "Other releases from the same data are not composed")
def left_out(deployment: Deployment) -> Iterator[Finding]:
    """Evaluations, histograms and the adaptive norm are releases like the model."""
    covers = deployment.guarantee.covers
    names = [part.name for part in deployment.phase]
    names += [part.name for part in deployment.release]
    missing = [name for name in names if name not in covers]
    if covers and missing:
        yield _left_out(deployment, missing)
    for phase in deployment.phase:
        if phase.clip.adaptive and phase.clip.count_noise is None:
            yield _free_quantile(phase)


def _left_out(deployment: Deployment, missing: list[str]) -> Finding:
    kept: list[Event] = [
        phase_event(deployment, phase, WORST)
        for phase in deployment.phase
        if phase.name not in missing
    ]
    kept += [
        release_event(one.mechanism, one.times, deployment)
        for one in deployment.release
        if one.name not in missing
    ]
    rows = []
    some = cost(deployment, Compose(events=tuple(kept))) if kept else 0.0
    if some is not None:
        rows.append(("epsilon of what is covered", up(some)))
    everything = cost(deployment, total_event(deployment, WORST))
    if everything is not None:
        rows.append(("epsilon of all releases", up(everything)))
    return Finding(
        code="A10",
        severity=Severity.E,
        where="guarantee.covers",
        sentence=(
            f"The promise leaves out {', '.join(missing)}, released from the same population's "
            "data."
        ),
        evidence=tuple(rows),
        fix="Compose every release on the population into one promise.",
    )


def _free_quantile(phase: Phase) -> Finding:
    z, cohort = phase.noise.multiplier or 0.0, phase.planned or 1
    deviation = cohort / 20
    rows = [("epsilon of an exact count of clients below the norm", "infinite")]
    inside = z**-2 - (2 * deviation) ** -2 if z > 0 else 0.0
    if inside > 0:
        rows.append(
            (
                f"noise multiplier of the sum that makes room for a count with noise "
                f"{plain(deviation)}",
                f"{inside**-0.5:.4g} instead of {plain(z)}",
            )
        )
    return Finding(
        code="A10",
        severity=Severity.E,
        where=phase.name,
        sentence=(
            "The clipping norm follows a quantile of the clients' norms, and no noise on that "
            "count is stated: it is a release of its own in every round."
        ),
        evidence=tuple(rows),
        fix="Add noise to the count and state clip.count_noise; it is then composed.",
    )


@lint("A11", "Settings tuned on private data for free")
def free_tuning(deployment: Deployment) -> Iterator[Finding]:
    """The best of several runs says more than any one of them."""
    tuning = deployment.tuning
    stated = tuning.poisson_mean is not None or tuning.eta is not None
    if tuning.data != "private" or tuning.runs <= 1 or stated:
        return
    one = total_event(deployment, WORST)
    rows = []
    for label, event in (
        ("epsilon of one run", one),
        (f"epsilon of all {tuning.runs} runs", Repeat(event=one, count=tuning.runs)),
        (
            f"epsilon of the best of a Poisson number of runs, {tuning.runs} on average",
            Select(event=one, poisson_mean=float(tuning.runs)),
        ),
    ):
        found = cost(deployment, event)
        if found is not None:
            rows.append((label, up(found)))
    yield Finding(
        code="A11",
        severity=Severity.W,
        where="tuning",
        sentence=(
            f"{tuning.runs} runs on private data chose the settings, and only the last one is "
            "accounted for."
        ),
        evidence=tuple(rows),
        fix=(
            "Tune on public data; or draw the number of runs from a stated law (poisson_mean, or "
            "eta and gamma) and release the best only; or compose all runs."
        ),
    )


@lint("A17", "The best order stands at the edge of the accountant's orders")
def edge_of_orders(deployment: Deployment) -> Iterator[Finding]:
    """A bound from the edge is valid, but a wider grid would be better, or something is wrong."""
    orders = deployment.guarantee.orders
    accountant = RDPAccountant(
        adjacency=adjacency_of(deployment), orders=list(orders) or list(DEFAULT_ORDERS)
    )
    event = total_event(deployment, WORST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrderAtEdgeWarning)
            accountant.compose(event)
            found = accountant.epsilon(deployment.guarantee.delta)
        better = release_epsilon(
            event, deployment.guarantee.delta, adjacency_of(deployment).value, "rdp"
        )
    except (UnsupportedEvent, AdjacencyMismatch):
        return
    tried = list(orders) or list(DEFAULT_ORDERS)
    if found.order not in (tried[0], tried[-1]) or not 0 < found.value < math.inf:
        return
    rows = [
        (f"epsilon at the edge, order {found.order:g}", up(found.value)),
        ("orders tried", f"{tried[0]:g} to {tried[-1]:g}"),
    ]
    if better.order is not None:
        rows.append((f"epsilon at the best order, {better.order:.4g}", up(better.value)))
    yield Finding(
        code="A17",
        severity=Severity.W,
        where="guarantee.orders" if orders else "the default orders",
        sentence=(
            f"The best Rényi order is {found.order:g}, the "
            f"{'smallest' if found.order == tried[0] else 'largest'} one tried: the epsilon is "
            "valid and may be loose."
        ),
        evidence=tuple(rows),
        fix="Let the accountant try more orders, or ask whether noise and rate are what was meant.",
    )


@lint("A21", "Parameters or the budget change mid-run under a fixed-plan accountant")
def adaptive_plan(deployment: Deployment) -> Iterator[Finding]:
    """The best order may only be chosen afterwards if nothing else is."""
    guarantee = deployment.guarantee
    if guarantee.plan != "adaptive" or guarantee.accountant == "filter":
        return
    event = total_event(deployment, WORST)
    rows = []
    fixed = cost(deployment, event)
    if fixed is not None:
        rows.append(("epsilon if the plan were fixed beforehand", up(fixed)))
    try:
        declared = release_epsilon(event, guarantee.delta, adjacency_of(deployment).value, "rdp")
    except (UnsupportedEvent, AdjacencyMismatch):
        declared = None
    if declared is not None and declared.order is not None:
        rows.append(
            (f"epsilon by a filter that declared order {declared.order:.4g}", up(declared.value))
        )
        accountant = RDPAccountant(adjacency=adjacency_of(deployment))
        accountant.compose(event)
        off = accountant.epsilon_at(max(1.05, declared.order / 4), guarantee.delta)
        rows.append(("epsilon by one that declared a quarter of it", up(off.value)))
    yield Finding(
        code="A21",
        severity=Severity.E,
        where="guarantee.plan",
        sentence=(
            "Noise, cohort or the decision to stop may depend on earlier outputs, but the "
            "accountant's number holds for a plan that was fixed beforehand."
        ),
        evidence=tuple(rows),
        fix=(
            "Declare one order before the data are touched and let a filter admit each round "
            '(accountant = "filter", as the ledger of this package does), or fix the plan.'
        ),
    )
