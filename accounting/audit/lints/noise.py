"""Lints about the noise and the sum: A04, A05, A13, A16, A18."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from accounting.audit.bounds import best_upper
from accounting.audit.events import (
    AS_PLANNED,
    WORST,
    Amplification,
    Scenario,
    base_event,
    bits_needed,
    colluders,
    fewest_survivors,
    phase_event,
    sample_rate,
    share_count,
)
from accounting.audit.lints.base import Finding, Severity, changed, cost, lint, with_phase
from accounting.audit.wording import epsilon_text, plain, up
from accounting.deployment import Deployment, Phase, impossible_values
from accounting.events import Poisson, Repeat

__all__: list[str] = []


@lint("A04", "Noise shares without a stated dropout and collusion, or that follow the cohort")
def unstated_shares(deployment: Deployment) -> Iterator[Finding]:
    """Only the noise of honest survivors counts, and only if it does not follow the coins."""
    for phase in deployment.phase:
        if phase.noise.where != "client-shares":
            continue
        missing = [
            key
            for key, value in (
                ("aggregation.max_dropout", phase.aggregation.max_dropout),
                ("trust.max_colluding", deployment.trust.max_colluding),
            )
            if value is None
        ]
        if missing:
            yield _unstated(deployment, phase, missing)
        sampled = phase.sampling.kind == "poisson" and sample_rate(deployment, phase) < 1
        if sampled and phase.noise.level == "cohort" and phase.local is None:
            yield _follows_cohort(deployment, phase)


def _unstated(deployment: Deployment, phase: Phase, missing: list[str]) -> Finding:
    rows = []
    for lost in (0.0, 0.1, 0.3, 0.5):
        scenario = Scenario(dropout=lost, collusion=False)
        event = phase_event(deployment, phase, scenario)
        found = cost(deployment, event)
        if found is not None:
            rows.append((f"epsilon if {lost:.0%} of the planned shares are missing", up(found)))
    return Finding(
        code="A04",
        severity=Severity.E,
        where=phase.name,
        sentence=(
            f"The noise is the sum of clients' shares, but {' and '.join(missing)} is not stated: "
            "nobody can say how much of it is there."
        ),
        evidence=tuple(rows),
        fix=f"State {' and '.join(missing)}, and let the protocol refuse rounds below a threshold.",
    )


def _follows_cohort(deployment: Deployment, phase: Phase) -> Finding:
    base, rate = base_event(deployment, phase, WORST), sample_rate(deployment, phase)
    believed = cost(
        deployment, Repeat(event=Poisson(sample_rate=rate, event=base), count=phase.rounds)
    )
    bound = cost(
        deployment,
        phase_event(deployment, phase, replace(WORST, amplification=Amplification.NONE)),
    )
    rows = []
    if believed is not None:
        rows.append(("epsilon if the noise did not follow the coins (estimate)", up(believed)))
    if bound is not None:
        rows.append(("epsilon that is proved, without amplification", up(bound)))
    return Finding(
        code="A04",
        severity=Severity.E,
        where=phase.name,
        sentence=(
            "Clients are drawn by coins and each of them brings a share of noise, so the noise "
            "itself tells how many were drawn: amplification by sampling is not proved."
        ),
        evidence=tuple(rows),
        fix=(
            "Let every client send a share in every round and a secret coin decide between data "
            'and zero, or cut the noise to a fixed level: noise.level = "fixed".'
        ),
    )


@lint("A05", "The protocol opens sums with less noise than assumed, or noise is added again")
def threshold_below_noise(deployment: Deployment) -> Iterator[Finding]:
    """What the protocol accepts decides how much noise there is, not what usually happens."""
    for phase in deployment.phase:
        if phase.noise.where != "client-shares":
            continue
        if phase.noise.missing == "re-added":
            yield _added_again(deployment, phase)
        if phase.noise.at == "minimum":
            yield from _low_threshold(deployment, phase)
        elif phase.aggregation.threshold is None and _cohort_varies(deployment, phase):
            yield _any_cohort(deployment, phase)


def _cohort_varies(deployment: Deployment, phase: Phase) -> bool:
    """Whether coins decide how many clients send a share."""
    sampling = phase.sampling
    drawn = sampling.kind == "poisson" and sampling.coins == "server"
    return drawn and sample_rate(deployment, phase) < 1


def _any_cohort(deployment: Deployment, phase: Phase) -> Finding:
    assumed, floor = fewest_survivors(phase), colluders(deployment, phase) + 1
    rows = [("survivors that the number assumes", str(assumed))]
    rows.append(("survivors that the protocol accepts", "any number"))
    for count in (assumed, floor):
        kept = changed(phase, "aggregation.threshold", count)
        bound, _ = best_upper(with_phase(deployment, phase, kept), WORST)
        rows.append((f"epsilon of sums of {count} survivors", epsilon_text(bound)))
    return Finding(
        code="A05",
        severity=Severity.E,
        where=phase.name,
        sentence=(
            "Coins decide how many clients come, each of them brings a share of the noise, and "
            "the protocol opens sums of any number."
        ),
        evidence=tuple(rows),
        fix=f"Set aggregation.threshold, such as to {assumed}: rounds below it are not opened.",
    )


def _added_again(deployment: Deployment, phase: Phase) -> Finding:
    all_there = cost(deployment, phase_event(deployment, phase, AS_PLANNED))
    survivors = cost(deployment, phase_event(deployment, phase, WORST))
    rows = []
    if all_there is not None:
        rows.append(("epsilon with all of the noise", up(all_there)))
    if survivors is not None:
        rows.append(
            ("epsilon with the survivors' noise, all that hides from the server", up(survivors))
        )
    return Finding(
        code="A05",
        severity=Severity.E,
        where=phase.name,
        sentence=(
            "The server adds the noise of clients that vanished, and so knows that part of the "
            "noise: against it, the noise is only that of the survivors."
        ),
        evidence=tuple(rows),
        fix="Size the shares for the fewest survivors that are accepted, and add nothing.",
    )


def _low_threshold(deployment: Deployment, phase: Phase) -> Iterator[Finding]:
    threshold, sized = phase.aggregation.threshold, phase.noise.sized_for
    if threshold is not None and (sized is None or threshold >= sized):
        return
    assumed = sized or fewest_survivors(phase)
    at_assumed = with_phase(deployment, phase, changed(phase, "aggregation.threshold", assumed))
    tight, _ = best_upper(at_assumed, WORST)
    rows = [("survivors that the noise is sized for", str(assumed))]
    rows.append(("survivors that the protocol accepts", str(threshold or "any number")))
    rows.append(("epsilon at what the noise is sized for", epsilon_text(tight)))
    floor = threshold or max(1, colluders(deployment, phase) + 1)
    accepted = changed(phase, "aggregation.threshold", floor)
    accepted = changed(accepted, "noise.sized_for", assumed)
    loose, _ = best_upper(with_phase(deployment, phase, accepted), WORST)
    rows.append((f"epsilon of a sum of {floor} survivors", epsilon_text(loose)))
    yield Finding(
        code="A05",
        severity=Severity.E,
        where=phase.name,
        sentence=(
            f"The noise reaches its size with {assumed} survivors, but the protocol opens sums of "
            f"{'any number' if threshold is None else threshold}."
        ),
        evidence=tuple(rows),
        fix=(
            f"Set aggregation.threshold to {assumed} or more, or size the shares for what is "
            "accepted."
        ),
    )


@lint("A13", "A seeded or weak generator, or noise in floating point")
def weak_noise(deployment: Deployment) -> Iterator[Finding]:
    """Noise that can be computed again, or seen in the last bits, hides nothing."""
    for phase in deployment.phase:
        noise = phase.noise
        if noise.kind == "none":
            continue
        if noise.rng != "csprng":
            yield Finding(
                code="A13",
                severity=Severity.E,
                where=phase.name,
                sentence=(
                    f"The noise comes from a {noise.rng} generator: who learns or guesses its "
                    "state computes the noise and takes it off."
                ),
                evidence=(
                    ("epsilon against who knows the state", "infinite: the exact sum"),
                    ("rounds whose noise one state gives away", plain(phase.rounds)),
                ),
                fix="Draw noise and coins from the operating system's generator, without a seed.",
            )
        if noise.sampler == "float":
            yield _float_noise(deployment, phase)


def _float_noise(deployment: Deployment, phase: Phase) -> Finding:
    """Mironov 2012: the last bits of x + noise tell x.

    For one coordinate in 32-bit floats, in units of the norm: |y| < 1/2 and y no multiple of
    2^-24 happens for x = 0 and never for x = 1.
    """
    base = base_event(deployment, phase, WORST)
    one = cost(deployment, base)
    z = phase.noise.multiplier or 0.0
    rows = []
    if one is not None:
        rows.append(("epsilon of one release if the noise were ideal", up(one)))
    rows.append(
        (
            "chance that the last bits of one coordinate rule out one of two neighbours "
            "(textbook sampler, 32-bit floats)",
            f"{_telling_bits(z):.3g}",
        )
    )
    return Finding(
        code="A13",
        severity=Severity.W,
        where=phase.name,
        sentence=(
            "The noise is drawn and added in floating point, whose last bits depend on the value "
            "they hide; the accounting is that of ideal noise."
        ),
        evidence=tuple(rows),
        fix='Sample in integers (Skellam or discrete Gaussian noise, sampler = "integer").',
    )


def _telling_bits(z: float) -> float:
    """P[|N(0, z)| < 1/2 and finer than 2^-24], floats in [2^-k-1, 2^-k) being spaced 2^-k-24."""

    def below(x: float) -> float:
        return math.erf(x / (z * math.sqrt(2))) / 2 if z > 0 else 0.5

    return sum(2 * (below(2.0**-k) - below(2.0 ** (-k - 1))) * (1 - 2.0**-k) for k in range(1, 60))


@lint("A16", "The modulus is too small: sums wrap around")
def small_modulus(deployment: Deployment) -> Iterator[Finding]:
    """A sum that wraps is another sum: useless, and no longer what was clipped."""
    for phase in deployment.phase:
        needed, there = bits_needed(deployment, phase), phase.aggregation.modulus_bits
        if needed is None or there is None or needed <= there:
            continue
        yield Finding(
            code="A16",
            severity=Severity.E,
            where=phase.name,
            sentence=(f"A coordinate of the sum can need {needed} bits, the modulus has {there}."),
            evidence=(
                ("planned clients", str(phase.planned)),
                (
                    "largest coordinate of one input, in grid points",
                    plain(phase.clip.norm * (phase.noise.scale or 1.0)),
                ),
                ("bits needed for the inputs and four deviations of noise", str(needed)),
                ("bits there are", str(there)),
            ),
            fix=f"Set aggregation.modulus_bits to {needed} or more, or a coarser noise.scale.",
        )


@lint("A18", "A value that no deployment can have")
def impossible(deployment: Deployment) -> Iterator[Finding]:
    """Accountants that take NaN, zero noise or a rate above 1 answer with a small epsilon."""
    for one in impossible_values(deployment):
        yield Finding(
            code="A18",
            severity=Severity.E,
            where=one.key,
            sentence=f"{one.key} is {_short(one.found)}; it must be {one.expected}.",
            evidence=(("found", _short(one.found)), ("possible", one.expected)),
            fix="Correct the value. Nothing else was computed from this file.",
        )
    if impossible_values(deployment):
        return
    for phase in deployment.phase:
        if phase.noise.where == "client-shares" and share_count(deployment, phase) < 1:
            yield Finding(
                code="A18",
                severity=Severity.E,
                where=phase.name,
                sentence=(
                    f"{colluders(deployment, phase)} of the fewest {fewest_survivors(phase)} "
                    "survivors may collude: no honest noise is left."
                ),
                evidence=(
                    ("assumed colluders", str(colluders(deployment, phase))),
                    ("fewest survivors", str(fewest_survivors(phase))),
                ),
                fix="Raise aggregation.threshold above the assumed colluders.",
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
