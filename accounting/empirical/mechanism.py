"""The mechanism auditor: runs a mechanism as a black box, with a canary and without, and counts.

The claim is about everything that one run releases. Runs of all worlds are made in random order.
Half of them choose, per canary, a score and a threshold (:mod:`accounting.empirical.scores`); the
errors on the other half become bounds (:mod:`accounting.empirical.bounds`) that hold for all k
canaries together except with probability alpha. A claim below the largest bound is refuted.

A bound has a *ceiling*: what it would be without a single error. A claim above the ceiling cannot
be refuted by so few runs whatever the mechanism does, so that the answer is ``INCONCLUSIVE``.

The audit's coins and the generator handed to mechanisms that take one are NumPy's, seeded from the
operating system. They decide which runs are compared, not anybody's privacy: a deployed mechanism
draws its noise from its own source, and is audited with it. A fixed ``seed`` is for tests; the
result says so. This module knows no event and no accountant's number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from accounting.accountant import checked_epsilon, gaussian_epsilon
from accounting.choice import Choice
from accounting.empirical.bounds import (
    ErrorCounts,
    checked_alpha,
    checked_count,
    checked_failure,
    clopper_pearson,
    epsilon_from_rates,
    gaussian_mu,
    mu_from_rates,
    shown_down,
    upper_limit,
)
from accounting.empirical.canaries import Canary, default_canaries
from accounting.empirical.scores import NoiseShape, best_attack
from accounting.errors import InvalidParameter
from accounting.events import Adjacency

__all__ = [
    "CanaryResult",
    "Claim",
    "Mechanism",
    "MechanismAudit",
    "Noise",
    "Verdict",
    "audit",
    "from_aggregator",
]

Floats = NDArray[np.float64]
Mechanism = Callable[[Floats, np.random.Generator], ArrayLike]
"""``mechanism(updates: float64[T, n, d], rng) -> released[T, d]``."""

Aggregator = Callable[[list[Floats]], ArrayLike]
"""``aggregator(updates: n arrays float64[d]) -> released[d]``."""

_LEAST_TRIALS = 40
_MOST_BYTES = 1 << 30  # of all releases together


class Noise(Choice):
    """Whose claim it is: what a refutation may assume."""

    GAUSSIAN = "gaussian"
    """Gaussian, discrete Gaussian or Skellam noise on a sum, unsampled: the claim is the epsilon
    of some mu, and the release is refuted if it is not mu-Gaussian private."""

    ANY = "any"
    """Nothing assumed: only a violation of (epsilon, delta) itself refutes."""


class Verdict(StrEnum):
    """An audit's answer. There is none that says "private"."""

    REFUTED = "REFUTED"
    NOT_REFUTED = "NOT_REFUTED"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """(epsilon, delta)-differential privacy of all rounds of a run together.

    Attributes:
        epsilon: finite, >= 0.
        delta: in [0, 1); 0 only with ``noise="any"``, as Gaussian noise has no epsilon there.
        adjacency: zero-out: the canary's client sends zero instead; add-remove: it is missing;
            replace-one: it sends the canary's negative.
        noise: what kind of mechanism claims this.

    Raises:
        InvalidParameter: for values out of range.
    """

    epsilon: float
    delta: float
    adjacency: Adjacency
    noise: Noise = Noise.GAUSSIAN

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", checked_epsilon(self.epsilon))
        object.__setattr__(self, "adjacency", Adjacency.of(self.adjacency))
        object.__setattr__(self, "noise", Noise.of(self.noise))
        object.__setattr__(self, "delta", checked_failure(self.delta))
        if self.delta == 0 and self.noise is Noise.GAUSSIAN:
            raise InvalidParameter(
                'Gaussian noise has no epsilon at delta 0: state a delta, or noise="any" for a '
                "pure claim"
            )

    def bounds(self, counts: ErrorCounts, *, alpha: float, canaries: int) -> dict[Noise, float]:
        """Lower bounds on epsilon: of any mechanism, and of Gaussian noise where delta > 0."""
        found = {Noise.ANY: clopper_pearson(counts, self.delta, alpha=alpha, canaries=canaries)}
        if self.delta > 0:
            mu = gaussian_mu(counts, alpha=alpha, canaries=canaries)
            # gaussian_epsilon rounds up by 1e-13; a lower bound is rounded down.
            found[Noise.GAUSSIAN] = gaussian_epsilon(mu, self.delta) * (1 - 1e-12)
        return found

    def refuting(self, bounds: dict[Noise, float]) -> float:
        """The bound that may refute this claim: the larger of those it allows."""
        if self.noise is Noise.ANY:
            return bounds[Noise.ANY]
        return max(bounds.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryResult:
    """What one canary showed.

    Attributes:
        canary: its name.
        score: the score that the first half of the runs chose.
        counts: errors on the other half.
        clopper_pearson: lower bound on epsilon for any mechanism.
        gaussian: lower bound on epsilon if the mechanism is Gaussian; None at delta 0.
        bound: the larger of those that the claim allows.
    """

    canary: str
    score: str
    counts: ErrorCounts
    clopper_pearson: float
    gaussian: float | None
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MechanismAudit:
    """The answer with its evidence; ``str()`` is one sentence.

    Attributes:
        verdict: REFUTED, NOT_REFUTED or INCONCLUSIVE.
        claim: what was tested.
        bound: the largest lower bound over all canaries.
        ceiling: the largest that these runs could have given.
        canaries: per canary, in the order they were given.
        trials: runs per canary, half of them with it.
        runs: runs of the mechanism in all; canaries share the runs without any.
        alpha: probability of refuting a true claim is at most this.
        seed: of the coins, None for secret ones; a seeded audit shows nothing to anybody who could
            choose the seed.
    """

    verdict: Verdict
    claim: Claim
    bound: float
    ceiling: float
    canaries: tuple[CanaryResult, ...]
    trials: int
    runs: int
    alpha: float
    seed: int | None

    @property
    def strongest(self) -> CanaryResult:
        """The canary with the largest bound."""
        return max(self.canaries, key=lambda one: one.bound)

    def __str__(self) -> str:
        claim = (
            f"epsilon {self.claim.epsilon:g} at delta {self.claim.delta:g} ({self.claim.adjacency})"
        )
        how = "of Gaussian noise, " if self.claim.noise is Noise.GAUSSIAN else ""
        top, bound = self.strongest, shown_down(self.bound)
        shown = f"{how}{1 - self.alpha:.3g} confidence, {self.runs} runs"
        if self.verdict is Verdict.REFUTED:
            return (
                f"REFUTED: the claim {claim} is false; epsilon is at least {bound} "
                f"({shown}; canary {top.canary}, score {top.score})"
            )
        if self.verdict is Verdict.NOT_REFUTED:
            return (
                f"NOT_REFUTED: nothing against {claim} was found; epsilon is at least "
                f"{bound} ({shown}). An audit can only refute"
            )
        return (
            f"INCONCLUSIVE: the claim {claim} is not below {shown_down(self.ceiling)}, the most "
            f"that these runs could show ({shown}): use more trials or audit fewer rounds"
        )


def from_aggregator(aggregator: Aggregator) -> Mechanism:
    """The mechanism that calls ``aggregator(list of updates) -> noisy sum`` once per round."""

    def mechanism(updates: Floats, _rng: np.random.Generator) -> Floats:
        return np.stack([np.asarray(aggregator(list(round_)), np.float64) for round_ in updates])

    return mechanism


def audit(
    mechanism: Mechanism,
    claim: Claim,
    *,
    n_trials: int = 8000,
    canaries: str | Sequence[Canary] = "default",
    alpha: float = 0.05,
    rounds: int = 1,
    clients: int = 3,
    dimension: int = 40,
    clip: float = 1.0,
    excess: float = 10.0,
    seed: int | None = None,
) -> MechanismAudit:
    """Attacks a mechanism and says whether its claim survived.

    Args:
        mechanism: called ``mechanism(updates: float64[T, n, d], rng)``, returns finite numbers
            [T, d]; each call is one run with fresh noise. See :func:`from_aggregator` for a black
            box that takes one round. It may change its arguments.
        claim: about all T rounds together.
        n_trials: runs per canary, half of them with it; at least 40.
        canaries: "default" for the five of :func:`default_canaries`, or your own.
        alpha: largest probability of refuting a true claim, in (0, 1/2).
        rounds: T >= 1.
        clients: n >= 1; at least 2 under add-remove.
        dimension: d >= 1.
        clip: C, the norm that the mechanism clips one client's update of one round to.
        excess: norm of the default canaries over C. 1 for a mechanism that leaves clipping to its
            clients: what it does to larger updates is then not tested.
        seed: None for coins from the operating system; a number for tests that must repeat.

    Raises:
        InvalidParameter: for impossible arguments, or a release of another shape or not finite.
            What the mechanism raises comes through unchanged.
    """
    shape = (
        checked_count("rounds", rounds, 1),
        checked_count("clients", clients, 2 if claim.adjacency is Adjacency.ADD_REMOVE else 1),
        checked_count("dimension", dimension, 1),
    )
    trials = checked_count("n_trials", n_trials, _LEAST_TRIALS)
    checked_alpha(alpha)
    chosen = _canaries(canaries, shape, clip, excess)
    side = trials // 2
    plan = _Worlds(chosen, shape, claim.adjacency)
    runs = side * len(plan.inputs)
    if runs * shape[0] * shape[2] * 8 > _MOST_BYTES:
        raise InvalidParameter(
            f"{runs} releases of {shape[0]} x {shape[2]} numbers need more than 1 GiB: lower "
            "n_trials or the dimension"
        )
    entropy = int.from_bytes(os.urandom(32), "big") if seed is None else checked_count("seed", seed)
    order, noise = np.random.default_rng(entropy).spawn(2)
    released = _run(mechanism, plan.inputs, side, order, noise)

    noise_shape = NoiseShape([one[: side // 4] for one in released])
    judge = _Judge(claim, alpha, len(chosen))
    results = tuple(
        judge.result(canary, released[inside], released[outside], noise_shape)
        for canary, (inside, outside) in zip(chosen, plan.pairs, strict=True)
    )
    ceiling = judge.ceiling(side)
    bound = max(one.bound for one in results)
    return MechanismAudit(
        verdict=_verdict(claim.epsilon, bound, ceiling),
        claim=claim,
        bound=bound,
        ceiling=ceiling,
        canaries=results,
        trials=2 * side,
        runs=runs,
        alpha=float(alpha),
        seed=seed,
    )


def _verdict(claimed: float, bound: float, ceiling: float) -> Verdict:
    if bound > claimed:
        return Verdict.REFUTED
    return Verdict.INCONCLUSIVE if ceiling <= claimed else Verdict.NOT_REFUTED


class _Judge:
    """From the releases of one canary to its bounds, by one claim and one correction for k."""

    def __init__(self, claim: Claim, alpha: float, canaries: int) -> None:
        self._claim, self._alpha, self._canaries = claim, alpha, canaries

    def result(
        self, canary: Canary, inside: Floats, outside: Floats, noise: NoiseShape
    ) -> CanaryResult:
        """First quarter: fit. Second: tune. The rest is counted, and nothing before has seen it."""
        quarter = len(inside) // 4
        first, second, rest = slice(quarter), slice(quarter, 2 * quarter), slice(2 * quarter, None)
        attack = best_attack(
            canary.update,
            (inside[first], outside[first]),
            (inside[second], outside[second]),
            noise,
            self._objective,
        )
        missed, raised = ~attack.guesses(inside[rest]), attack.guesses(outside[rest])
        counts = ErrorCounts(
            false_negatives=int(np.count_nonzero(missed)),
            trials_in=len(missed),
            false_positives=int(np.count_nonzero(raised)),
            trials_out=len(raised),
        )
        bounds = self._bounds(counts)
        return CanaryResult(
            canary=canary.name,
            score=attack.name,
            counts=counts,
            clopper_pearson=bounds[Noise.ANY],
            gaussian=bounds.get(Noise.GAUSSIAN),
            bound=self._claim.refuting(bounds),
        )

    def ceiling(self, side: int) -> float:
        """The bound if no counted run of ``side`` in each world were guessed wrongly."""
        counted = side - 2 * (side // 4)
        flawless = ErrorCounts(
            false_negatives=0, trials_in=counted, false_positives=0, trials_out=counted
        )
        return self._claim.refuting(self._bounds(flawless))

    def _bounds(self, counts: ErrorCounts) -> dict[Noise, float]:
        return self._claim.bounds(counts, alpha=self._alpha, canaries=self._canaries)

    def _objective(
        self, missed: NDArray[np.int64], inside: int, raised: NDArray[np.int64], outside: int
    ) -> Floats:
        """The bound by the errors, not cut at 0, so that thresholds can be compared."""
        tail = self._alpha / (2 * self._canaries)
        fn, fp = upper_limit(missed, inside, tail), upper_limit(raised, outside, tail)
        if self._claim.noise is Noise.GAUSSIAN:
            return mu_from_rates(fn, fp)
        return epsilon_from_rates(fn, fp, self._claim.delta)


def _canaries(
    canaries: str | Sequence[Canary], shape: tuple[int, int, int], clip: float, excess: float
) -> tuple[Canary, ...]:
    """The canaries, checked against the shape of the updates."""
    rounds, clients, dimension = shape
    if isinstance(canaries, str):
        if canaries != "default":
            raise InvalidParameter(
                f'canaries must be "default" or a sequence of Canary, found {canaries!r}'
            )
        norm = clip * excess
        if not (clip > 0 and excess > 0 and np.isfinite(norm)):
            raise InvalidParameter(
                f"clip and excess must be finite and > 0, found {clip!r} and {excess!r}"
            )
        return default_canaries(rounds=rounds, clients=clients, dimension=dimension, norm=norm)
    if not canaries or len({one.name for one in canaries}) < len(canaries):
        raise InvalidParameter("an audit needs at least one canary, and each with its own name")
    for one in canaries:
        if one.update.shape != (rounds, dimension) or one.position >= clients:
            raise InvalidParameter(
                f"canary {one.name!r} is {one.update.shape} at client {one.position}, the audit "
                f"has {rounds} rounds, dimension {dimension} and {clients} clients"
            )
    return tuple(canaries)


class _Worlds:
    """The inputs [T, n, d] that are run, and for each canary which two of them are compared.

    Under zero-out and add-remove all canaries share one world without any.
    """

    def __init__(
        self, canaries: tuple[Canary, ...], shape: tuple[int, int, int], adjacency: Adjacency
    ) -> None:
        rounds, clients, dimension = shape
        self.inputs: list[Floats] = []
        self.pairs: list[tuple[int, int]] = []
        if adjacency is not Adjacency.REPLACE_ONE:
            absent = adjacency is Adjacency.ADD_REMOVE
            self.inputs.append(np.zeros((rounds, clients - absent, dimension)))
        for canary in canaries:
            inside = np.zeros(shape)
            inside[:, canary.position] = canary.update
            outside = 0
            if adjacency is Adjacency.REPLACE_ONE:
                outside = len(self.inputs)
                self.inputs.append(-inside)
            self.pairs.append((len(self.inputs), outside))
            self.inputs.append(inside)


def _run(
    mechanism: Mechanism,
    inputs: list[Floats],
    side: int,
    order: np.random.Generator,
    noise: np.random.Generator,
) -> list[Floats]:
    """``side`` releases of each input, float64[side, T, d], made in random order.

    The order matters for a mechanism that drifts: no world gets the early runs.
    """
    rounds, _, dimension = inputs[0].shape
    released = [np.empty((side, rounds, dimension)) for _ in inputs]
    done = [0] * len(inputs)
    for world in order.permutation(np.repeat(np.arange(len(inputs)), side)).tolist():
        found = np.asarray(mechanism(inputs[world].copy(), noise), dtype=np.float64)
        if found.shape != (rounds, dimension):
            raise InvalidParameter(
                f"the mechanism released an array of shape {found.shape}, expected "
                f"{(rounds, dimension)}: rounds, dimension"
            )
        released[world][done[world]] = found
        done[world] += 1
    if not all(np.isfinite(one).all() for one in released):
        raise InvalidParameter(
            "the mechanism released NaN or infinity: a release that is no number cannot be scored"
        )
    # By a power of two, hence exactly: squares of what follows neither overflow nor vanish.
    _, exponent = np.frexp(max(float(np.abs(one).max()) for one in released))
    return [np.ldexp(one, -exponent) for one in released]
