"""Lints about what is promised to whom: A02, A12, A14, A20."""

from __future__ import annotations

import math
from collections.abc import Iterator

from accounting.audit.bounds import best_upper
from accounting.audit.events import WORST, share_count, total_event
from accounting.audit.lints.base import Finding, Severity, changed, cost, lint
from accounting.audit.wording import epsilon_text, plain, up
from accounting.deployment import Deployment, Phase
from accounting.events import Group

__all__: list[str] = []


@lint("A02", "The adjacency is missing, or does not fit the sensitivity")
def adjacency(deployment: Deployment) -> Iterator[Finding]:
    """An epsilon without its neighbour relation is no claim."""
    declared = deployment.guarantee.adjacency
    if declared is None:
        yield Finding(
            code="A02",
            severity=Severity.E,
            where="guarantee.adjacency",
            sentence="The file does not say which data sets are neighbours; no default is safe.",
            evidence=_by_adjacency(deployment, ("add-remove", "zero-out", "replace-one")),
            fix=(
                'Add adjacency = "add-remove", "zero-out" (required for noise in shares) or '
                '"replace-one".'
            ),
        )
        return
    for phase in deployment.phase:
        told = phase.accounting.sensitivity
        norms = 2 if declared == "replace-one" else 1
        if told is not None and told < norms:
            change = {"replace-one": "Replacing", "zero-out": "Zeroing", "add-remove": "Removing"}
            yield Finding(
                code="A02",
                severity=Severity.E,
                where=phase.name,
                sentence=(
                    f"{change[declared]} one unit moves the sum by up to {norms} clipping "
                    f"norm{'s' * (norms > 1)}; the accountant assumes {plain(told)}."
                ),
                evidence=_by_adjacency(deployment, ("zero-out", "replace-one")),
                fix="Account with twice the norm, or claim zero-out or add-remove."
                if norms > 1
                else "Account with the clipping norm: accounting.sensitivity = 1.",
            )
        if declared == "add-remove" and _takes_noise_away(deployment, phase):
            yield Finding(
                code="A02",
                severity=Severity.E,
                where=phase.name,
                sentence=(
                    "Under add-remove an absent client takes its noise away, so the "
                    "two sums differ in more than one contribution."
                ),
                evidence=_by_adjacency(deployment, ("add-remove", "zero-out")),
                fix='Claim adjacency = "zero-out".',
            )


def _takes_noise_away(deployment: Deployment, phase: Phase) -> bool:
    """Whether a unit that is absent altogether does not bring its noise either."""
    where = phase.noise.where
    return where == "client-shares" or (
        where == "client" and deployment.population.unit != "record"
    )


def _by_adjacency(deployment: Deployment, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    rows = []
    for name in names:
        bound, _ = best_upper(changed(deployment, "guarantee.adjacency", name), WORST)
        shown = "no proved bound" if bound is None else epsilon_text(bound)
        rows.append((f"epsilon under {name}", shown))
    return tuple(rows)


@lint("A12", "Delta is too large for the population")
def large_delta(deployment: Deployment) -> Iterator[Finding]:
    """A mechanism that publishes one unit in full satisfies any epsilon at delta 1/N."""
    delta, size = deployment.guarantee.delta, deployment.population.size
    usual = size**-1.1
    if delta <= usual * (1 + 1e-9):  # written in decimals it may be an ulp above
        return
    rows = [("delta times the population", f"{delta * size:.3g}"), ("N^-1.1", f"{usual:.3g}")]
    for label, at in (("epsilon at this delta", delta), ("epsilon at N^-1.1", usual)):
        bound, _ = best_upper(deployment, WORST, delta=at)
        if bound is not None and 0 < at < 1:
            rows.append((label, epsilon_text(bound)))
    serious = delta >= 1 / size
    yield Finding(
        code="A12",
        severity=Severity.E if serious else Severity.W,
        where="guarantee.delta",
        sentence=(
            f"Delta {delta:.3g} is {'at least 1/N' if serious else 'above N^-1.1'} for N = {size}: "
            + (
                "publishing one unit at random in full would satisfy it."
                if serious
                else "a failure for some unit is not negligible."
            )
        ),
        evidence=tuple(rows),
        fix=f"Choose delta at most {usual:.1g}.",
    )


@lint("A14", "Trust models or units are confused, or one unit has several devices")
def confused(deployment: Deployment) -> Iterator[Finding]:
    """Against whom, and for what: the mechanism must give what the file promises."""
    for phase in deployment.phase:
        yield from _against_whom(deployment, phase)
        yield from _for_what(deployment, phase)
    devices = deployment.population.max_devices_per_unit
    if devices > 1:
        single = changed(deployment, "population.max_devices_per_unit", 1)
        event = total_event(single, WORST)
        rows = []
        for label, part in (
            ("epsilon for one device", event),
            (f"epsilon for a unit with {devices} devices", Group(k=devices, event=event)),
        ):
            found = cost(deployment, part)
            rows.append((label, "no proved bound" if found is None else up(found)))
        yield Finding(
            code="A14",
            severity=Severity.W,
            where="population.max_devices_per_unit",
            sentence=(
                f"One {deployment.population.unit} can take part with {devices} devices, each "
                "clipped by itself: the promise has to cover them together."
            ),
            evidence=tuple(rows),
            fix="Bound what a unit's devices contribute together, or claim the group's epsilon.",
        )


def _against_whom(deployment: Deployment, phase: Phase) -> Iterator[Finding]:
    model, where, protocol = (
        deployment.trust.model,
        phase.noise.where,
        phase.aggregation.protocol,
    )
    wrong, severity = "", Severity.E
    if model == "local" and where != "client":
        wrong = f"a local claim, but no client adds all of the noise (noise.where = {where})"
    elif model == "distributed" and where == "server":
        wrong = "a distributed claim, but the server adds the noise and sees the sum without it"
    elif model == "distributed" and where == "client-shares" and protocol == "none":
        wrong = "a distributed claim, but without secure aggregation the server sees each share"
    elif model == "central" and where == "client-shares":
        wrong, severity = "a central claim for noise that comes in clients' shares", Severity.W
    elif (
        model == "distributed"
        and deployment.trust.server == "malicious"
        and phase.aggregation.adversary == "semi-honest"
    ):
        wrong = "a malicious server, but a protocol that withstands an honest-but-curious one"
    if not wrong:
        return
    sees = "an exact contribution" if where == "server" else "one contribution with its own share"
    rows = [("what the server can see", sees if severity is Severity.E else "the noisy sum")]
    if where == "client-shares":
        shares = max(1, share_count(deployment, phase))
        z = (phase.noise.multiplier or 0.0) / math.sqrt(shares)
        rows.append(("noise multiplier of one client's share", f"{z:.3g}"))
    yield Finding(
        code="A14",
        severity=severity,
        where=phase.name,
        sentence=f"The file makes {wrong}.",
        evidence=tuple(rows),
        fix="Claim the trust model that the mechanism has, or change where the noise is added.",
    )


def _for_what(deployment: Deployment, phase: Phase) -> Iterator[Finding]:
    unit = deployment.population.unit
    if unit == "record" or phase.clip.per == "unit":
        return
    yield Finding(
        code="A14",
        severity=Severity.E,
        where=phase.name,
        sentence=(
            f"The promise is for one {unit}, but the norm bounds one record's contribution: a "
            f"{unit} with n records moves the sum by n norms."
        ),
        evidence=_of_many_records(deployment),
        fix=f'Clip a whole {unit}\'s contribution, or claim unit = "record".',
    )


def _of_many_records(deployment: Deployment) -> tuple[tuple[str, str], ...]:
    event = total_event(deployment, WORST)
    rows = []
    for records in (1, 10, 100):
        found = cost(deployment, Group(k=records, event=event) if records > 1 else event)
        if found is not None:
            rows.append((f"epsilon for {records} record{'s' * (records > 1)}", up(found)))
    return tuple(rows)


@lint("A20", "To be said together with the number")
def together(deployment: Deployment) -> Iterator[Finding]:
    """Nothing is wrong; a reader who is not told would read too much into the number."""
    for phase in deployment.phase:
        for sentence, evidence in _remarks(deployment, phase):
            yield _remark(phase.name, sentence, evidence)
    if deployment.population.disjoint_from:
        names = ", ".join(deployment.population.disjoint_from)
        yield _remark(
            "population",
            f"The promise assumes that nobody is in this population and in {names} as well; a "
            "unit that is in several loses the sum.",
            (("populations assumed disjoint", names),),
        )
    if deployment.population.public_data:
        yield _remark(
            "population",
            "Some of the data used is public; the promise says nothing about those.",
            (("data without a promise", "the public part"),),
        )


def _remarks(
    deployment: Deployment, phase: Phase
) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    if phase.released != "every round":
        yield (
            f"Only {phase.released} are released, but the number holds against somebody who sees "
            "every round; a smaller one for the rest is not claimed."
            if phase.released == "checkpoints"
            else "Only the final model is released, but the number holds against somebody who "
            "sees every round; no smaller one is claimed.",
            (("rounds that the number covers", plain(phase.rounds)),),
        )
    correlated = phase.correlated
    if correlated is not None and correlated.enforced == "none":
        yield (
            f"The number holds for units that take part at most {correlated.participations} times, "
            f"at least {correlated.bands or correlated.min_sep} rounds apart; the file does not "
            "say who makes sure of it.",
            (("participations assumed", plain(correlated.participations)),),
        )
    if phase.noise.where == "client-shares" and phase.noise.multiplier is not None:
        shares = max(1, share_count(deployment, phase))
        z = phase.noise.multiplier / math.sqrt(shares)
        yield (
            f"The noise is the sum of at least {shares} honest shares; a client that adds none is "
            "not noticed.",
            (
                ("shares that make up the noise", plain(shares)),
                ("noise multiplier of one share", f"{z:.3g}"),
            ),
        )


def _remark(where: str, sentence: str, evidence: tuple[tuple[str, str], ...]) -> Finding:
    return Finding(
        code="A20",
        severity=Severity.I,
        where=where,
        sentence=sentence,
        evidence=evidence,
        fix="Nothing to fix: state it wherever the number is stated.",
    )
