"""Planning from a deployment file: the noise, the cohort or the rounds that meet its promise.

Everything else stays as the file says, above all dropout and collusion: the answer holds for the
fewest survivors and the most colluders. The search is :func:`accounting.calibrate`, so an answer is
on the safe side of the promise and fits a ledger declared with the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from accounting.audit.events import WORST, adjacency_of, eligible, total_event
from accounting.audit.lints.base import changed, with_phase
from accounting.calibration import Over, calibrate
from accounting.deployment import Deployment, Phase, impossible_values
from accounting.errors import (
    AdjacencyMismatch,
    CalibrationError,
    InvalidEvent,
    InvalidParameter,
    UnsupportedEvent,
)
from accounting.events import Event

__all__ = ["Answer", "plan", "with_cohort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of a plan.

    Attributes:
        over: ``noise_multiplier``, ``cohort`` or ``steps`` (rounds).
        key: the key of the file that it is for.
        now: what the file has.
        value: the least noise, the largest cohort or the most rounds; None if there is none.
        epsilon: what it achieves, at most the promise; None without a value.
        order: the Rényi order to declare in a ledger of this plan; None without a value.
        why: why there is none; empty otherwise.
    """

    over: Over
    key: str
    now: float | None
    value: float | None
    epsilon: float | None
    order: float | None
    why: str = ""


def plan(deployment: Deployment, name: str | None = None) -> tuple[Answer, ...]:
    """The least noise, the largest cohort and the most rounds of one phase, each by itself.

    Args:
        deployment: a file whose values are possible.
        name: the phase; None for the only one.

    Raises:
        InvalidParameter: if values are impossible, the adjacency is missing, or the phase is not
            told.
    """
    if impossible_values(deployment) or deployment.guarantee.adjacency is None:
        raise InvalidParameter(
            "nothing can be planned from a file with impossible values or without an adjacency: "
            "audit it first"
        )
    phase = _chosen(deployment, name)
    answers = []
    if phase.noise.multiplier is not None:
        answers.append(_noise(deployment, phase))
    if phase.sampling.cohort is not None:
        answers.append(_cohort(deployment, phase))
    answers.append(_rounds(deployment, phase))
    return tuple(answers)


def _chosen(deployment: Deployment, name: str | None) -> Phase:
    names = [phase.name for phase in deployment.phase]
    if name is None and len(names) == 1:
        return deployment.phase[0]
    if name not in names:
        raise InvalidParameter(f"phase must be one of {', '.join(names) or 'none'}, found {name!r}")
    return deployment.phase[names.index(name)]


def _noise(deployment: Deployment, phase: Phase) -> Answer:
    def make(z: float) -> Event:
        return _total(deployment, phase, changed(phase, "noise.multiplier", z))

    return _answer(deployment, phase, Over.NOISE_MULTIPLIER, "noise.multiplier", make)


def _cohort(deployment: Deployment, phase: Phase) -> Answer:
    most = eligible(deployment, phase)
    # The noise in the sum stays: shares, threshold and colluders are those of the file.
    kept = changed(phase, "aggregation.planned", phase.planned)

    def make(cohort: int) -> Event:
        if cohort > most:
            raise InvalidEvent(f"a cohort may have the {most} eligible units, found {cohort}")
        return _total(deployment, phase, changed(kept, "sampling.cohort", cohort))

    return _answer(deployment, phase, Over.COHORT, "sampling.cohort", make)


def _rounds(deployment: Deployment, phase: Phase) -> Answer:
    def make(rounds: int) -> Event:
        return _total(deployment, phase, changed(phase, "rounds", rounds))

    return _answer(deployment, phase, Over.STEPS, "rounds", make)


def _total(deployment: Deployment, old: Phase, new: Phase) -> Event:
    return total_event(with_phase(deployment, old, new), WORST)


def _answer(
    deployment: Deployment, phase: Phase, over: Over, key: str, make: Callable[[int], Event]
) -> Answer:
    guarantee = deployment.guarantee
    now = {
        Over.NOISE_MULTIPLIER: phase.noise.multiplier,
        Over.COHORT: phase.sampling.cohort,
        Over.STEPS: phase.rounds,
    }[over]
    where = f"phase[{phase.name}].{key}"
    try:
        found = calibrate(
            make,
            guarantee.epsilon,
            guarantee.delta,
            adjacency=adjacency_of(deployment),
            over=over,
        )
    except (CalibrationError, UnsupportedEvent, AdjacencyMismatch, InvalidEvent) as error:
        return Answer(
            over=over, key=where, now=now, value=None, epsilon=None, order=None, why=str(error)
        )
    return Answer(
        over=over,
        key=where,
        now=now,
        value=found.value,
        epsilon=found.achieved.value,
        order=found.achieved.order,
    )


def with_cohort(phase: Phase, cohort: int) -> Phase:
    """The phase with another cohort; planned shares and threshold keep their part of it."""
    factor = cohort / (phase.sampling.cohort or cohort)

    def scaled(value: int | None) -> int | None:
        return None if value is None else max(1, math.ceil(value * factor - 1e-9))

    return phase.model_copy(
        update={
            "sampling": phase.sampling.model_copy(update={"cohort": cohort}),
            "aggregation": phase.aggregation.model_copy(
                update={
                    "planned": scaled(phase.aggregation.planned),
                    "threshold": scaled(phase.aggregation.threshold),
                }
            ),
            "noise": phase.noise.model_copy(update={"sized_for": scaled(phase.noise.sized_for)}),
        }
    )
