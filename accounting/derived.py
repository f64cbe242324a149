"""RDP curves made from the curve of an inner event: cohorts, clients, selection, groups, shares.

* M4, fixed cohorts: Wang, Balle, Kasiviswanathan 2019 (arXiv 1808.00087), Theorems 9 and 27.
* M11, client x record sampling: joint convexity (``docs/proofs/hierarchical.md``).
* M13, the best of a random number of runs: Papernot, Steinke 2021 (arXiv 2110.03620), Thm 2, 6.
* M14, groups: the release described with k times the sensitivity.
* Noise shares: the release described with the noise that honest survivors brought.

This module knows no budget and no file.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from accounting.curves import combined_gaussian, curve_of, inner_curve, not_falling, rdp
from accounting.errors import UnsupportedEvent
from accounting.events import (
    ZCDP,
    Adjacency,
    Compose,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    Event,
    FixedSize,
    Gaussian,
    Group,
    Hierarchical,
    Laplace,
    NoiseShares,
    Poisson,
    PureDP,
    Repeat,
    Select,
    Skellam,
    leaves,
)
from accounting.orders import DEFAULT_ORDERS, Floats, Orders, between_whole_orders
from accounting.poisson_gaussian import log_binomial_sum

__all__ = [
    "fixed_size_bound",
    "group_chances",
    "group_event",
    "log_even_moments",
    "mean_runs",
    "survivors_event",
]

_MOMENTS_UP_TO = 256  # orders of M4's first entry; above, its second one alone
_STEP = 0.05


# --- M4 -----------------------------------------------------------------------------------------


@curve_of(FixedSize)
def _fixed_size(event: FixedSize, orders: Orders, adjacency: Adjacency) -> Floats:
    return not_falling(fixed_size_bound, event, orders, adjacency)


def fixed_size_bound(event: FixedSize, orders: Orders, adjacency: Adjacency) -> Floats:
    """M4 as it is printed, never above the event without a cohort.

    Raises:
        UnsupportedEvent: under add-remove, or around anything but releases of noise.
    """
    if adjacency is Adjacency.ADD_REMOVE:
        raise UnsupportedEvent(
            "a cohort of fixed size has no cost under add-remove: the others would move up; use "
            "replace-one or zero-out",
            event=event,
        )
    for leaf, _ in leaves(event.event):
        if not isinstance(leaf, _RELEASES):
            raise UnsupportedEvent(
                f"a cohort of fixed size is accounted for around releases of noise, found {leaf} "
                "inside: put other sampling outside of FixedSize",
                event=event,
            )
    # Zeroing is one way of replacing, so the replace-one curve bounds both.
    base = Adjacency.REPLACE_ONE
    if event.cohort == event.population:
        return rdp(event.event, orders, base)
    fraction = event.cohort / event.population
    z = combined_gaussian(event.event, base)

    def fill(whole: Orders, log_a: Floats) -> None:
        highest = int(whole.values[-1])
        log_binomial_sum(fraction, _log_terms(event.event, z, highest), whole, log_a)

    return np.minimum(between_whole_orders(orders, fill), rdp(event.event, orders, base))


_RELEASES = (
    Gaussian,
    Laplace,
    PureDP,
    ZCDP,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    Skellam,
    NoiseShares,
)


def _log_terms(inner: Event, z: float | None, highest: int) -> Floats:
    """The logs of M4's minima for j = 2..highest."""
    eps = inner_curve(inner, highest, Adjacency.REPLACE_ONE)
    j = np.arange(2, highest + 1)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        terms = math.log(2) + (j - 1) * eps
        second = eps[0] + (math.log(-math.expm1(-eps[0])) if eps[0] > 0 else -math.inf)
        terms[0] = min(terms[0], math.log(4) + second)
        if z is not None:
            cut = min(highest, _MOMENTS_UP_TO)
            moments = log_even_moments(2.0 / z, cut + cut % 2)  # of orders 2, 4, ...
            j = j[1 : cut - 1]
            first = math.log(4) + (moments[j // 2 - 1] + moments[(j + 1) // 2 - 1]) / 2
            terms[1 : cut - 1] = np.fmin(terms[1 : cut - 1], first)
    return terms


@lru_cache(maxsize=256)
def log_even_moments(mu: float, highest: int) -> Floats:
    """Log E_Q[(P/Q - 1)^l] for l = 2, 4, .., highest; P, Q unit Gaussians a distance mu apart.

    By the trapezoid rule: the integrand is positive and entire, so a step of .05 leaves no error
    that doubles could show. Infinite where the grid would be too wide to be useful.
    """
    even = np.arange(2, highest + 1, 2)
    found = np.full(len(even), np.inf)
    for index, power in enumerate(even.tolist()):
        reach = math.sqrt(power) + 12
        if power * mu > 2e4:
            break
        w = np.arange(-reach, power * mu + reach, _STEP)
        loss = mu * w - mu * mu / 2
        with np.errstate(over="ignore", divide="ignore"):
            size = np.where(
                loss > 30,
                loss + np.log1p(-np.exp(-np.maximum(loss, 1.0))),
                np.log(np.abs(np.expm1(np.minimum(loss, 30.0)))),
            )
        exponent = power * size - w * w / 2
        top = exponent.max()
        found[index] = top + math.log(
            float(np.exp(exponent - top).sum()) * _STEP / math.sqrt(2 * math.pi)
        )
    found.flags.writeable = False
    return found


# --- M11 ----------------------------------------------------------------------------------------


@curve_of(Hierarchical)
def _hierarchical(event: Hierarchical, orders: Orders, adjacency: Adjacency) -> Floats:
    """M11, log(1 - p + p e^{(a-1) eps_s(a)}) / (a-1), eps_s the curve of all steps."""
    if adjacency is Adjacency.REPLACE_ONE:
        raise UnsupportedEvent(
            "Hierarchical is accounted for under add-remove and zero-out, found replace-one",
            event=event,
        )
    steps = rdp(Repeat(event=event.event, count=event.steps), orders, adjacency)
    if event.p_client == 1:
        return steps
    a, p = orders.values, event.p_client
    x = (a - 1) * steps
    with np.errstate(over="ignore"):
        log_a = np.where(
            x < 1,
            np.log1p(p * np.expm1(np.minimum(x, 1.0))),
            np.logaddexp(math.log1p(-p), math.log(p) + x),
        )
    return log_a * orders.inverse


# --- M13 ----------------------------------------------------------------------------------------

_GRID = Orders.of(DEFAULT_ORDERS)


@curve_of(Select)
def _select(event: Select, orders: Orders, adjacency: Adjacency) -> Floats:
    return not_falling(_select_bound, event, orders, adjacency)


def _select_bound(event: Select, orders: Orders, adjacency: Adjacency) -> Floats:
    base = rdp(event.event, orders, adjacency)
    if event.poisson_mean is not None:
        return _select_poisson(event.event, event.poisson_mean, base, orders, adjacency)
    assert event.eta is not None and event.gamma is not None  # noqa: S101  # checked when built
    eta, gamma = event.eta, event.gamma
    # Any order b gives a bound; those of the grid are used, whatever orders were asked for.
    b = _GRID.values
    again = float(np.min((1 - 1 / b) * rdp(event.event, _GRID, adjacency) - math.log(gamma) / b))
    return base + math.log(mean_runs(eta, gamma)) * orders.inverse + (1 + eta) * again


def mean_runs(eta: float, gamma: float) -> float:
    """The mean of the truncated negative binomial: eta (1-gamma) / (gamma (1 - gamma^eta)).

    Written with 1 - gamma^eta = -expm1(eta ln gamma); the limits are 1 at gamma = 1 and the
    logarithmic distribution's mean at eta = 0. Rounded up.
    """
    if gamma == 1:
        return 1.0
    log_gamma = math.log(gamma)
    exponent = eta * log_gamma
    per = -math.expm1(exponent) / eta if abs(exponent) > 1e-300 and eta else -log_gamma
    stop = gamma * per
    return (1 - gamma) / stop * (1 + 1e-14) if stop > 0 else math.inf  # stop may underflow


def _select_poisson(
    inner: Event, mean: float, base: Floats, orders: Orders, adjacency: Adjacency
) -> Floats:
    """Theorem 6, keeping the outcome "no run": log(e^-m + m e^{(a-1)(eps(a) + m dhat)}) / (a-1).

    dhat(a) is the inner event's delta at epsilon log(1 + 1/(a-1)).
    """
    grid = rdp(inner, _GRID, adjacency)
    with np.errstate(over="ignore"):
        log_delta = [
            min(0.0, float(np.min(_GRID.to_log_delta(grid, math.log1p(1 / (a - 1))))))
            for a in orders.values
        ]
        inside = (orders.values - 1) * (base + mean * np.exp(log_delta))
        return np.logaddexp(-mean, math.log(mean) + inside) * orders.inverse


# --- M14 and noise shares: another description of the same release ------------------------------


@curve_of(Group)
def _group(event: Group, orders: Orders, adjacency: Adjacency) -> Floats:
    return rdp(group_event(event), orders, adjacency)


def group_event(group: Group) -> Event:
    """The inner event described for all k units at once, whose sensitivities add up.

    Raises:
        UnsupportedEvent: for events to which that does not apply, above all samples: a group has
            several coins (a PLD knows Poisson-sampled Gaussians).
    """
    k = group.k

    def scaled(event: Event) -> Event:
        match event:
            case Gaussian():
                return replace(event, noise_multiplier=event.noise_multiplier / k)
            case Laplace():
                return replace(event, b=event.b / k)
            case PureDP():
                return replace(event, epsilon=event.epsilon * k)
            case ZCDP():
                return replace(event, rho=event.rho * k * k)
            case DiscreteGaussian():
                return replace(event, l2=event.l2 * k)
            case Skellam() | DistributedDiscreteGaussian():
                return replace(event, l2=event.l2 * k, l1=event.l1 * k)
            case NoiseShares():
                return replace(event, event=scaled(event.event))
            case Repeat():
                return replace(event, event=scaled(event.event))
            case Compose():
                return replace(event, events=tuple(scaled(part) for part in event.events))
            case Poisson(sample_rate=1.0):
                return scaled(event.event)
            case _:
                raise UnsupportedEvent(
                    f"no curve is known for groups of {k} under {event}: for a Poisson-sampled "
                    "Gaussian use method pld",
                    event=group,
                )

    return scaled(group.event)


def group_chances(k: int, rate: float) -> list[float]:
    """How many of k units a Poisson sample at this rate holds: the probabilities of 0, 1, .., k."""
    from scipy.stats import binom  # noqa: PLC0415  # slow to import, needed for sampled groups only

    found: list[float] = binom.pmf(range(k + 1), k, rate).tolist()
    return found


@curve_of(NoiseShares)
def _noise_shares(event: NoiseShares, orders: Orders, adjacency: Adjacency) -> Floats:
    return rdp(survivors_event(event, adjacency), orders, adjacency)


def survivors_event(shares: NoiseShares, adjacency: Adjacency) -> Event:
    """The inner event with the noise of survivors - colluding of the planned shares.

    Gaussian: z sqrt(k / planned); Skellam: mu k / planned; discrete Gaussians: k of them.

    Raises:
        UnsupportedEvent: under add-remove, or around events whose noise is not a sum of shares.
    """
    if adjacency is Adjacency.ADD_REMOVE:
        raise UnsupportedEvent(
            "noise shares have no cost under add-remove: a client that is absent takes its share "
            "of the noise away; use zero-out",
            event=shares,
        )
    honest = shares.survivors - shares.colluding

    def rescaled(event: Event) -> Event:
        match event:
            case Gaussian():
                z = event.noise_multiplier * math.sqrt(honest / shares.planned)
                return replace(event, noise_multiplier=z)
            case Skellam():
                return replace(event, mu=event.mu * (honest / shares.planned))
            case DistributedDiscreteGaussian(shares=shares.planned):
                return replace(event, shares=honest)
            case DistributedDiscreteGaussian():
                raise UnsupportedEvent(
                    f"NoiseShares.planned must equal the {event.shares} shares of the event "
                    f"inside, found {shares.planned}",
                    event=shares,
                )
            case Poisson() | FixedSize() | Repeat() | Hierarchical():
                return replace(event, event=rescaled(event.event))
            case Compose():
                return replace(event, events=tuple(rescaled(part) for part in event.events))
            case _:
                raise UnsupportedEvent(
                    f"the noise of {event} is not known to be a sum of shares", event=shares
                )

    return rescaled(shares.event)
