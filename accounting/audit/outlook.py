"""What follows from the numbers: the course of the spend, what changes it, what an attacker gets.

Tables and plots need many values of one kind, so they are computed by the method of the claim on a
coarse grid. They are valid upper bounds where the claim is one. This module knows no verdict.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from accounting.accountant import Bound, Method
from accounting.audit.bounds import accountant_of, quick_upper
from accounting.audit.events import WORST, Scenario, fewest_survivors
from accounting.audit.planning import with_cohort
from accounting.deployment import Deployment, Phase, impossible_values
from accounting.errors import OrderAtEdgeWarning

__all__ = [
    "Attacker",
    "Change",
    "DropoutLine",
    "Timeline",
    "attacker",
    "changes",
    "dropout_lines",
    "timeline",
]

_POINTS = 8
_FARTHEST = 64  # times the planned rounds
_FALSE_POSITIVES = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Epsilon after so many of the planned rounds, worst dropout and collusion.

    Attributes:
        points: (rounds, epsilon).
        exhausted_at: the last round that still fits the promise, to within a fiftieth; None if
            ``beyond`` many still fit, or not even one does.
        beyond: rounds up to which the projection looked.
    """

    points: tuple[tuple[int, float], ...]
    exhausted_at: int | None
    beyond: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line of the sensitivity table.

    Attributes:
        name: what is changed.
        epsilon: what the claim's method then says; None where no number is proved.
        note: why there is none, or the protocol refuses such rounds.
    """

    name: str
    epsilon: float | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacker:
    """What the guarantee leaves to somebody who guesses whether a unit took part.

    Attributes:
        advantage: most that true minus false positive rate can be.
        true_positives: largest true positive rate at ``false_positives``.
        false_positives: 1e-3.
    """

    advantage: float
    true_positives: float
    false_positives: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DropoutLine:
    """Epsilon by dropout rate for one number of rounds."""

    rounds: int
    points: tuple[tuple[float, float], ...]


# --- the course of the spend --------------------------------------------------------------------


def timeline(deployment: Deployment, method: Method) -> Timeline | None:
    """The plan's course: phases one after the other, other releases before them.

    None for a file without phases.
    """
    if not deployment.phase:
        return None
    planned = sum(phase.rounds for phase in deployment.phase)
    points: list[tuple[int, float]] = []
    for index in range(1, _POINTS + 1):
        rounds = max(1, planned * index // _POINTS)
        value = _after(deployment, rounds, method)
        if value is not None and (not points or points[-1][0] < rounds):
            points.append((rounds, value))
    last, beyond = _last_round(deployment, planned, method)
    return Timeline(points=tuple(points), exhausted_at=last, beyond=beyond)


def _after(deployment: Deployment, rounds: int, method: Method) -> float | None:
    """Epsilon after that many rounds; beyond the plan the last phase goes on."""
    left, kept = rounds, []
    for phase in deployment.phase:
        if left <= 0:
            break
        kept.append(_with_rounds(phase, min(left, phase.rounds)))
        left -= phase.rounds
    if left > 0:
        kept[-1] = _with_rounds(kept[-1], kept[-1].rounds + left)
    bound = quick_upper(deployment.model_copy(update={"phase": tuple(kept)}), WORST, method)
    return None if bound is None else bound.value


def _with_rounds(phase: Phase, rounds: int) -> Phase:
    """The phase cut or continued; participations that no longer fit are cut as well."""
    update: dict[str, object] = {"rounds": rounds}
    correlated = phase.correlated
    if correlated is not None:
        steps = min(correlated.restart or rounds, rounds)
        apart = (correlated.bands if correlated.kind == "banded" else None) or correlated.min_sep
        most = (steps - 1) // apart + 1
        if rounds > phase.rounds and correlated.restart is None:  # the same pace goes on
            pace = correlated.participations * rounds / phase.rounds
            wanted = min(most, math.ceil(pace))
        else:
            wanted = min(most, correlated.participations)
        update["correlated"] = correlated.model_copy(update={"participations": wanted})
    return phase.model_copy(update=update)


def _last_round(deployment: Deployment, planned: int, method: Method) -> tuple[int | None, int]:
    target = deployment.guarantee.epsilon

    def fits(rounds: int) -> bool:
        value = _after(deployment, rounds, method)
        return value is not None and value <= target

    if not fits(1):
        return None, 1
    low, high = 1, planned
    if fits(planned):
        low, high = planned, 2 * planned
        while fits(high):
            low, high = high, 2 * high
            if low >= _FARTHEST * planned:
                return None, low
    step = 50 if method is Method.PLD else 1000  # a distribution for every guess takes a while
    while high - low > max(1, low // step):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, high


# --- what changes it ----------------------------------------------------------------------------


def changes(deployment: Deployment, method: Method) -> tuple[Change, ...]:
    """The sensitivity table: dropout, cohort x 2, rounds x 2, delta x 10."""
    found = [_change("as declared, worst dropout and collusion", deployment, WORST, method)]
    if any(phase.noise.where == "client-shares" for phase in deployment.phase):
        found += [_dropped(deployment, lost, method) for lost in (0.0, 0.1, 0.3, 0.5)]
    twice = _scaled_cohorts(deployment)
    if twice is not None:
        found.append(_change("cohort x 2, the same noise in the sum", twice, WORST, method))
    doubled = tuple(_with_rounds(phase, 2 * phase.rounds) for phase in deployment.phase)
    if doubled:
        longer = deployment.model_copy(update={"phase": doubled})
        found.append(_change("rounds x 2", longer, WORST, method))
    if deployment.guarantee.delta * 10 < 1:
        guarantee = deployment.guarantee.model_copy(
            update={"delta": deployment.guarantee.delta * 10}
        )
        loose = deployment.model_copy(update={"guarantee": guarantee})
        found.append(_change("delta x 10", loose, WORST, method))
    return tuple(found)


def _change(name: str, deployment: Deployment, scenario: Scenario, method: Method) -> Change:
    if impossible_values(deployment):
        return Change(name=name, epsilon=None, note="not possible here")
    bound = quick_upper(deployment, scenario, method)
    return Change(
        name=name,
        epsilon=None if bound is None else bound.value,
        note="" if bound is not None else "no proved bound",
    )


def _dropped(deployment: Deployment, lost: float, method: Method) -> Change:
    found = _change(
        f"{lost:.0%} of the planned clients vanish", deployment, Scenario(dropout=lost), method
    )
    refused = any(
        phase.aggregation.threshold is not None
        and (phase.planned or 1) * (1 - lost) < fewest_survivors(phase) - 1e-6
        for phase in deployment.phase
        if phase.noise.where == "client-shares"
    )
    return replace(found, note="the protocol refuses such a round") if refused else found


def _scaled_cohorts(deployment: Deployment) -> Deployment | None:
    """Twice the cohort, planned shares and threshold; None where nobody is sampled."""
    if not any(phase.sampling.cohort for phase in deployment.phase):
        return None

    # The noise stays that of the sum: shares sized for n survivors are now sized for 2 n.
    phases = tuple(
        phase if phase.sampling.cohort is None else with_cohort(phase, 2 * phase.sampling.cohort)
        for phase in deployment.phase
    )
    return deployment.model_copy(update={"phase": phases})


def dropout_lines(deployment: Deployment, method: Method) -> tuple[DropoutLine, ...]:
    """Epsilon by dropout rate, for half, all and twice the planned rounds; none without shares."""
    shared = [phase for phase in deployment.phase if phase.noise.where == "client-shares"]
    return tuple(_lines(deployment, method)) if shared else ()


def _lines(deployment: Deployment, method: Method) -> Iterator[DropoutLine]:
    planned = sum(phase.rounds for phase in deployment.phase)
    for factor in (0.5, 1.0, 2.0):
        phases = tuple(
            _with_rounds(phase, max(1, int(phase.rounds * factor))) for phase in deployment.phase
        )
        scaled = deployment.model_copy(update={"phase": phases})
        points = []
        for lost in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
            bound = quick_upper(scaled, Scenario(dropout=lost), method)
            if bound is not None and math.isfinite(bound.value):
                points.append((lost, bound.value))
        if points:
            yield DropoutLine(rounds=max(1, int(planned * factor)), points=tuple(points))


# --- what an attacker gets ----------------------------------------------------------------------


def attacker(deployment: Deployment, claim: Bound) -> Attacker:
    """Limits on guessing, from every (epsilon, delta) that the release is proved to have.

    For (eps, delta)-DP: TPR <= min(e^eps FPR + delta, 1 - e^-eps (1 - delta - FPR)) (Kairouz, Oh,
    Viswanath 2015, arXiv 1311.0776), and TPR - FPR <= (e^eps - 1 + 2 delta) / (e^eps + 1).
    """
    pairs = [(claim.value, claim.delta)]
    accountant = accountant_of(deployment, WORST)
    if accountant is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrderAtEdgeWarning)
            deltas = [10.0**-power for power in range(1, 13)]
            if deployment.guarantee.plan == "adaptive" and claim.order is not None:
                # Only the order that was declared beforehand proves anything.
                pairs += [(accountant.epsilon_at(claim.order, at).value, at) for at in deltas]
            else:
                pairs += [(accountant.epsilon(at).value, at) for at in deltas]
    false = _FALSE_POSITIVES
    true = min(_true_positives(eps, delta, false) for eps, delta in pairs)
    advantage = min(_advantage(eps, delta) for eps, delta in pairs)
    return Attacker(advantage=advantage, true_positives=true, false_positives=false)


def _true_positives(eps: float, delta: float, false: float) -> float:
    first = math.exp(min(eps, 700.0)) * false + delta
    second = 1 - math.exp(-eps) * (1 - delta - false)
    return min(1.0, first, second)


def _advantage(eps: float, delta: float) -> float:
    return min(1.0, math.tanh(eps / 2) + 2 * delta / (math.exp(min(eps, 700.0)) + 1))
