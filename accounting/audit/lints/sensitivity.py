"""Lints about how far one unit can move the sum: A15, A22."""

from __future__ import annotations

import math
from collections.abc import Iterator

from accounting.audit.bounds import best_upper
from accounting.audit.events import WORST
from accounting.audit.lints.base import Finding, Severity, changed, lint, with_phase
from accounting.audit.wording import epsilon_text, plain
from accounting.deployment import Deployment, Phase

__all__: list[str] = []


def _before_and_after(
    deployment: Deployment, phase: Phase, safe: Phase
) -> tuple[tuple[str, str], ...]:
    """The cost if the contribution were bounded as assumed, and as it is."""
    assumed, _ = best_upper(with_phase(deployment, phase, safe), WORST)
    real, _ = best_upper(deployment, WORST)
    return (
        ("epsilon if one contribution were bounded by the norm", epsilon_text(assumed)),
        ("epsilon of what is summed", "no proved bound" if real is None else epsilon_text(real)),
    )


@lint("A15", "The clip does not bound what is summed")
def unbounded(deployment: Deployment) -> Iterator[Finding]:
    """Weights, denominators and rounding come after the clip."""
    for phase in deployment.phase:
        clip = phase.clip
        if clip.enforced == "none":
            yield _finding(
                phase,
                "Nobody makes sure that a contribution keeps the clipping norm.",
                (("epsilon of a sum of unbounded contributions", "infinite"),),
                'Clip right before the sum: clip.enforced = "client" or "server".',
            )
            continue
        if clip.weights == "examples" and clip.weighted == "after-clip":
            safe = changed(phase, "clip.weights", "uniform")
            yield _finding(
                phase,
                f"Contributions are multiplied by example counts of up to "
                f"{plain(clip.max_weight)} after they were clipped.",
                _before_and_after(deployment, phase, safe),
                "Weight first and clip then, or weigh everybody alike.",
            )
        if clip.denominator == "realised" and _count_is_secret(deployment, phase):
            yield _realised(phase)
        if clip.rounding == "stochastic" and phase.noise.kind in {"skellam", "discrete-gaussian"}:
            safe = changed(phase, "clip.rounding", "conditional")
            grown = math.sqrt(phase.dimension or 1) / (clip.norm * (phase.noise.scale or 1.0))
            yield _finding(
                phase,
                "Rounding to the grid can make a clipped contribution longer, and is not repeated "
                "until the norm holds.",
                (
                    ("growth of the norm by rounding, at most", f"{100 * grown:.3g} %"),
                    *_before_and_after(deployment, phase, safe),
                ),
                'Round again until the norm holds: clip.rounding = "conditional".',
            )


def _count_is_secret(deployment: Deployment, phase: Phase) -> bool:
    """Whether who came is part of what sampling or adjacency is said to hide."""
    return phase.sampling.kind == "poisson" or deployment.guarantee.adjacency == "add-remove"


def _realised(phase: Phase) -> Finding:
    cohort = phase.planned or 1
    return _finding(
        phase,
        "The sum is divided by the number of contributions that came, which tells that number, "
        "and one unit's absence scales all others.",
        (
            (
                "change of every other contribution when one of the cohort is absent",
                f"1/{max(1, cohort - 1)} of its size, together up to one clipping norm more",
            ),
        ),
        'Divide by a number fixed beforehand: clip.denominator = "fixed".',
    )


def _finding(
    phase: Phase, sentence: str, evidence: tuple[tuple[str, str], ...], fix: str
) -> Finding:
    return Finding(
        code="A15",
        severity=Severity.E,
        where=phase.name,
        sentence=sentence,
        evidence=evidence,
        fix=fix,
    )


@lint("A22", "Microbatches whose sensitivity is not declared")
def microbatches(deployment: Deployment) -> Iterator[Finding]:
    """One record changes the average of a microbatch, and both averages may have norm C."""
    for phase in deployment.phase:
        size, told = phase.clip.microbatch, phase.accounting.sensitivity
        if size <= 1 or (told is not None and told >= 2):
            continue
        safe = changed(phase, "clip.microbatch", 1)
        yield Finding(
            code="A22",
            severity=Severity.E,
            where=phase.name,
            sentence=(
                f"{size} records are averaged and clipped together: one of them can turn the "
                "clipped average around, a change of 2 norms where one is accounted for."
            ),
            evidence=_before_and_after(deployment, phase, safe),
            fix="Clip every record by itself, or declare accounting.sensitivity = 2.",
        )
