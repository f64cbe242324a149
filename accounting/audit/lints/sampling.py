"""Lints about who takes part: A01, A03, A06, A07, A08, A19."""

from __future__ import annotations

import math
from collections.abc import Iterator

from accounting.audit.events import (
    WORST,
    base_event,
    charged_releases,
    client_count,
    eligible,
    lower_event,
    phase_event,
    releases_per_round,
    sample_rate,
)
from accounting.audit.lints.base import Finding, Severity, bracket, cost, lint
from accounting.audit.wording import down, percent, plain, up
from accounting.deployment import Deployment, Phase
from accounting.events import Event, Poisson, Repeat

__all__: list[str] = []

_TINY_COHORT = 10
_RARE = 1e-6
_AMPLIFIED = {
    "poisson": "tossed a coin",
    "fixed": "were drawn into a random cohort",
    "product": "tossed a coin",
}


def _as_poisson(deployment: Deployment, phase: Phase) -> Event:
    """What an accountant that believes in a coin per unit would compute."""
    base = base_event(deployment, phase, WORST)
    rate = (phase.sampling.cohort or 1) / client_count(deployment, phase)
    sampled = Poisson(sample_rate=rate, event=base)
    return Repeat(event=sampled, count=phase.rounds)


def _compared(deployment: Deployment, phase: Phase) -> tuple[tuple[str, str], ...]:
    """What Poisson sampling would cost, and between what the truth lies."""
    rows = []
    believed = cost(deployment, _as_poisson(deployment, phase))
    if believed is not None:
        rows.append(("epsilon if it were Poisson sampling", up(believed)))
    event = lower_event(deployment, phase)
    lower = None if event is None else bracket(deployment, event)
    if lower is not None:
        rows.append(("epsilon is at least", down(lower.lower.value)))
    upper = cost(deployment, phase_event(deployment, phase, WORST))
    if upper is not None:
        rows.append(("epsilon is at most", up(upper)))
    return tuple(rows)


@lint("A01", "Shuffled or cyclic batches accounted as Poisson sampling")
def shuffled_as_poisson(deployment: Deployment) -> Iterator[Finding]:
    """Every unit is in exactly one batch of an epoch: there is no coin to hide behind."""
    for phase in deployment.phase:
        sampling = phase.sampling
        unhidden = sampling.kind in {"shuffle", "cyclic", "all"}
        assumed = sampling.account_as
        if assumed in {None, sampling.kind} and sampling.kind != "all":
            # An accountant that is given a rate amplifies by it, whatever it is called.
            told = phase.accounting.rate
            assumed = "poisson" if told is not None and told < 1 and phase.local is None else None
        if unhidden and assumed in _AMPLIFIED:
            yield Finding(
                code="A01",
                severity=Severity.E,
                where=phase.name,
                sentence=(
                    f"Sampling is of kind {sampling.kind}, but accounted as if every unit "
                    f"{_AMPLIFIED[assumed]} in every round."
                ),
                evidence=_compared(deployment, phase),
                fix=(
                    "Draw each round by independent secret coins, or account without "
                    f'amplification: account_as = "{sampling.kind}".'
                ),
            )


@lint("A03", "A fixed cohort accounted as Poisson sampling")
def fixed_as_poisson(deployment: Deployment) -> Iterator[Finding]:
    """Drawing exactly n units is not tossing a coin for each."""
    for phase in deployment.phase:
        coin = phase.sampling.account_as == "poisson"
        coin = coin or (phase.local is None and phase.sampling.account_as == "product")
        if phase.sampling.kind == "fixed" and coin:
            yield Finding(
                code="A03",
                severity=Severity.E,
                where=phase.name,
                sentence=(
                    f"Every round takes exactly {phase.sampling.cohort} units, but is accounted as "
                    "if each tossed a coin of its own."
                ),
                evidence=_compared(deployment, phase),
                fix='Sample by independent coins, or account for it: account_as = "fixed".',
            )


@lint("A06", "Client rate and record rate multiplied into one")
def product_rate(deployment: Deployment) -> Iterator[Finding]:
    """A client that stays out takes all of its records out together."""
    for phase in deployment.phase:
        local, rate = phase.local, sample_rate(deployment, phase)
        if local is None or rate >= 1:
            continue
        told = phase.accounting.rate
        multiplied = told is not None and told <= rate * local.rate * (1 + 1e-6)
        if phase.sampling.account_as != "product" and not multiplied:
            continue
        product = Repeat(
            event=Poisson(
                sample_rate=rate * local.rate, event=base_event(deployment, phase, WORST)
            ),
            count=phase.rounds * local.steps,
        )
        rows = []
        believed = cost(deployment, product)
        if believed is not None:
            rows.append(("epsilon at the product of the rates", up(believed)))
        found = bracket(deployment, phase_event(deployment, phase, WORST))
        if found is not None:
            rows.append(("epsilon is at least, if each step is seen", down(found.lower.value)))
            rows.append(("epsilon is at most", up(found.upper.value)))
        yield Finding(
            code="A06",
            severity=Severity.E,
            where=phase.name,
            sentence=(
                f"Clients take part with probability {plain(rate)} and their records with "
                f"{plain(local.rate)}, but the accountant is given the product."
            ),
            evidence=tuple(rows),
            fix=(
                "Account for clients and records as two levels, or for the records alone, as if "
                "their client took part in every round."
            ),
        )


@lint("A07", "Epochs, rounds, updates or accumulation confused")
def wrong_steps(deployment: Deployment) -> Iterator[Finding]:
    """Every noisy release is a step; nothing else is."""
    for phase in deployment.phase:
        told, true = phase.accounting.steps, charged_releases(deployment, phase)
        if told is None or told >= true or (told == 1 and true > 1):
            continue  # one step for many rounds is a claim without composition: A09
        sampled = phase.sampling.kind == "poisson" and phase.local is None
        one = base_event(deployment, phase, WORST)
        rate = sample_rate(deployment, phase)
        per: Event = Poisson(sample_rate=rate, event=one) if sampled and rate < 1 else one
        if phase.local is not None and phase.local.rate < 1:
            per = Poisson(sample_rate=phase.local.rate, event=one)
        rows = [("releases that happen", plain(true)), ("releases accounted for", plain(told))]
        for label, count in (("epsilon as accounted", told), ("epsilon of what happens", true)):
            found = cost(deployment, Repeat(event=per, count=count))
            if found is not None:
                rows.append((label, up(found)))
        if rate < 1:
            rows.append(("epochs (rate times releases)", plain(rate * true)))
        yield Finding(
            code="A07",
            severity=Severity.E,
            where=phase.name,
            sentence=(
                f"The accountant is told of {told} releases where {true} count for one unit "
                f"({phase.rounds} rounds of {releases_per_round(phase)})."
            ),
            evidence=tuple(rows),
            fix="Count one step for every noisy sum: rounds, times local steps if there are any.",
        )


@lint("A08", "The sampling rate is computed from the wrong population")
def wrong_population(deployment: Deployment) -> Iterator[Finding]:
    """The rate is largest in the round in which the fewest were eligible."""
    for phase in deployment.phase:
        told = _told_rate(phase)
        if phase.local is not None and phase.sampling.kind == "all":
            true = phase.local.rate
        elif phase.local is None:
            true = sample_rate(deployment, phase)
        else:
            continue  # two rates: A06
        if told is None or told >= true * (1 - 1e-9):
            continue
        base = base_event(deployment, phase, WORST)
        count = phase.rounds * releases_per_round(phase)
        rows = [("rate accounted for", plain(told)), ("rate that holds", plain(true))]
        if phase.sampling.cohort is not None:
            rows.append(
                (
                    "accounted rate times those eligible, against the cohort",
                    f"{plain(told * eligible(deployment, phase))} against {phase.sampling.cohort}",
                )
            )
        for label, rate in (("epsilon as accounted", told), ("epsilon at the real rate", true)):
            found = cost(
                deployment, Repeat(event=Poisson(sample_rate=rate, event=base), count=count)
            )
            if found is not None:
                rows.append((label, up(found)))
        yield Finding(
            code="A08",
            severity=Severity.E,
            where=phase.name,
            sentence=(
                f"The accountant is given a sampling rate of {plain(told)}; one unit takes part "
                f"with a probability of up to {plain(true)}, {true / told:.3g} times as often."
            ),
            evidence=tuple(rows),
            fix=(
                "Divide the cohort by the smallest population that was ever eligible in a round, "
                "counted in the unit of protection."
            ),
        )


def _told_rate(phase: Phase) -> float | None:
    told = phase.accounting
    if told.rate is not None:
        return told.rate
    if told.population is not None and phase.sampling.cohort is not None:
        return phase.sampling.cohort / told.population
    return None


@lint("A19", "Empty or tiny cohorts, or a realised rate above the plan")
def small_cohorts(deployment: Deployment) -> Iterator[Finding]:
    """Skipped rounds and rates that drift are releases that the plan does not describe."""
    for phase in deployment.phase:
        yield from _empty_rounds(deployment, phase)
        yield from _tiny(deployment, phase)
        yield from _above_plan(deployment, phase)


def _empty_rounds(deployment: Deployment, phase: Phase) -> Iterator[Finding]:
    sampling = phase.sampling
    if sampling.kind != "poisson" or sampling.empty != "skip":
        return
    rate, count = sample_rate(deployment, phase), eligible(deployment, phase)
    log_none = count * math.log1p(-rate) if rate < 1 else -math.inf
    some = -math.expm1(phase.rounds * math.log1p(-math.exp(log_none))) if log_none < 0 else 1.0
    if some <= _RARE:
        return
    yield Finding(
        code="A19",
        severity=Severity.W,
        where=phase.name,
        sentence=(
            "A round in which nobody is drawn is skipped: that nothing is released says that every "
            "coin fell on one side, which the accounted mechanism never says."
        ),
        evidence=(
            ("chance that one round is empty", f"{math.exp(log_none):.2g}"),
            (f"chance of at least one in {phase.rounds} rounds", f"{some:.2g}"),
        ),
        fix="Release the noise alone when nobody was drawn, and count it as a step.",
    )


def _tiny(deployment: Deployment, phase: Phase) -> Iterator[Finding]:
    planned = phase.planned
    if deployment.trust.model != "distributed" or planned is None or planned >= _TINY_COHORT:
        return
    yield Finding(
        code="A19",
        severity=Severity.W,
        where=phase.name,
        sentence=(
            f"A sum of {planned} contributions hides each among few: one more colluder or dropout "
            "than assumed changes the noise by a large part."
        ),
        evidence=(
            ("planned cohort", str(planned)),
            ("share of the noise that one client brings", percent(1 / planned)),
        ),
        fix=f"Plan {_TINY_COHORT} clients or more, or let every client add all of the noise.",
    )


def _above_plan(deployment: Deployment, phase: Phase) -> Iterator[Finding]:
    realised, planned = phase.sampling.realised_rate, sample_rate(deployment, phase)
    if realised is None or realised <= planned * (1 + 1e-9):
        return
    base = base_event(deployment, phase, WORST)
    rows = [("planned rate", plain(planned)), ("realised rate", plain(realised))]
    for label, rate in (("epsilon at the plan", planned), ("epsilon at what happened", realised)):
        found = cost(
            deployment, Repeat(event=Poisson(sample_rate=rate, event=base), count=phase.rounds)
        )
        if found is not None:
            rows.append((label, up(found)))
    yield Finding(
        code="A19",
        severity=Severity.W,
        where=phase.name,
        sentence=(
            f"In some round units took part with probability {plain(realised)}, more often than "
            f"the plan's {plain(planned)}."
        ),
        evidence=tuple(rows),
        fix="Plan with the smallest eligible population, or charge each round at its own rate.",
    )
