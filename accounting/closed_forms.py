"""RDP curves with a closed form: Laplace, known guarantees, integer noise, trees, banded matrices.

* M5, Laplace: Mironov 2017 (arXiv 1702.07476), Prop. 6.
* M6, pure and approximate DP: randomised response is the worst case (Mironov 2017, Prop. 5 with
  Kairouz, Oh, Viswanath 2015); zCDP: Bun, Steinke 2016 (arXiv 1605.02065), Def. 1.1.
* M7, the discrete Gaussian: Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), Theorem 14.
* M8, sums of discrete Gaussians: Kairouz, Liu, Steinke 2021 (arXiv 2102.06387), Prop. 14.
* M9, symmetric Skellam noise: Agarwal, Kairouz, Liu 2021 (arXiv 2110.04995).
* M10, trees: Kairouz et al. 2021 (arXiv 2103.00039), with V from :mod:`accounting.trees`; banded
  matrix factorisation: Choquette-Choo et al. 2023 (arXiv 2306.08153).

``docs/proofs/`` says what is proved and how a test checks it. This module knows no sampling beyond
the cyclic one of M10, no budget and no file.
"""

from __future__ import annotations

import math
import numbers
import operator

import numpy as np

from accounting.curves import count_weight, curve_of, gaussian_rdp
from accounting.errors import AdjacencyMismatch, InvalidParameter, UnsupportedEvent
from accounting.events import (
    MAX_COUNT,
    ZCDP,
    Adjacency,
    ApproxDP,
    BandedMF,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    Event,
    Laplace,
    PureDP,
    Shuffled,
    Skellam,
    Tree,
)
from accounting.orders import Floats, Orders, between_whole_orders
from accounting.poisson_gaussian import poisson_gaussian_rdp
from accounting.trees import tree_squared_sensitivity

__all__ = ["rounded_sensitivity", "share_sum_tau"]

_TERMS = 24  # of the series of M5
_LONGEST = 1e145  # of a clip or a scale: products stay finite


def _doubled(adjacency: Adjacency) -> float:
    """Sensitivity under replace-one over that under the other two."""
    return 2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0


def _carried(event: PureDP | ApproxDP | ZCDP, adjacency: Adjacency) -> None:
    if event.adjacency is not adjacency:
        raise AdjacencyMismatch(
            f"{event} is proved under {event.adjacency}, the claim is under {adjacency}: state the "
            "guarantee under the adjacency of the claim"
        )


def _no_add_remove(event: Event, adjacency: Adjacency, why: str) -> None:
    if adjacency is Adjacency.ADD_REMOVE:
        raise UnsupportedEvent(
            f"{type(event).__name__} has no cost under add-remove: {why}; use zero-out",
            event=event,
        )


# --- M5, M6 -------------------------------------------------------------------------------------


@curve_of(Laplace)
def _laplace(event: Laplace, orders: Orders, adjacency: Adjacency) -> Floats:
    """M5, log(a/(2a-1) e^{(a-1)/b} + (a-1)/(2a-1) e^{-a/b}) / (a-1), also where it is near 0."""
    a, x = orders.values, _doubled(adjacency) / event.b
    with np.errstate(over="ignore", invalid="ignore"):
        large = np.logaddexp(
            np.log(a / (2 * a - 1)) + (a - 1) * x, np.log((a - 1) / (2 * a - 1)) - a * x
        )
    # A - 1 = a(a-1)/(2a-1) sum_{k>=2} ((a-1)^{k-1} - (-a)^{k-1}) x^k / k!: the terms k = 1 cancel.
    u, v = np.minimum((a - 1) * x, 1.0), np.minimum(a * x, 1.0)
    small = np.zeros(len(orders))
    factor = x
    for k in range(2, _TERMS):
        factor = factor / k
        small += factor * (u ** (k - 1) - (-v) ** (k - 1))
    near_one = np.log1p(a * (a - 1) / (2 * a - 1) * small)
    log_a = np.where(a * x < 0.5, near_one, large)
    return np.minimum(log_a * orders.inverse, x)


def pure_rdp(epsilon: float, orders: Orders) -> Floats:
    """M6, log((e^{a eps} + e^{(1-a) eps}) / (1 + e^eps)) / (a-1), at most eps.

    As cosh((a-1/2) eps) / cosh(eps/2) = 1 + 2 sinh(a eps/2) sinh((a-1) eps/2) / cosh(eps/2).
    """
    a = orders.values
    with np.errstate(over="ignore", invalid="ignore"):
        x, y = (a - 0.5) * epsilon, epsilon / 2
        excess = 2 * np.sinh(a * y) * np.sinh((a - 1) * y) / np.cosh(min(y, 700.0))
        large = (x - y) + np.log1p(np.exp(-2 * x)) - math.log1p(math.exp(-2 * y))
        log_a = np.where(x < 20, np.log1p(excess), large)
    return np.minimum(log_a * orders.inverse, epsilon)


@curve_of(PureDP)
def _pure(event: PureDP, orders: Orders, adjacency: Adjacency) -> Floats:
    _carried(event, adjacency)
    return pure_rdp(event.epsilon, orders)


@curve_of(ApproxDP)
def _approx(event: ApproxDP, orders: Orders, adjacency: Adjacency) -> Floats:
    """Outside of its failure event; the accountant takes delta off the target."""
    _carried(event, adjacency)
    return pure_rdp(event.epsilon, orders)


@curve_of(ZCDP)
def _zcdp(event: ZCDP, orders: Orders, adjacency: Adjacency) -> Floats:
    _carried(event, adjacency)
    return orders.values * event.rho


# --- M7, M8, M9: integer noise ------------------------------------------------------------------


@curve_of(DiscreteGaussian)
def _discrete_gaussian(event: DiscreteGaussian, orders: Orders, adjacency: Adjacency) -> Floats:
    """M7, a l2^2 / (2 sigma^2)."""
    ratio = _doubled(adjacency) * event.l2 / event.sigma
    return orders.values * (0.5 * ratio * ratio)


def share_sum_tau(sigma: float, shares: int) -> float:
    """M8's tau = 10 sum_{k=1..n-1} e^{-2 pi^2 sigma^2 k/(k+1)}: how far a sum of shares is off."""
    exact = min(shares - 1, 1000)
    k = np.arange(1, exact + 1)
    head = float(np.sum(np.exp(-2 * math.pi**2 * sigma * sigma * k / (k + 1))))
    # Beyond: each term is at most the last one counted.
    last = math.exp(-2 * math.pi**2 * sigma * sigma * exact / (exact + 1)) if exact else 0.0
    return 10 * (head + (shares - 1 - exact) * last)


@curve_of(DistributedDiscreteGaussian)
def _distributed(
    event: DistributedDiscreteGaussian, orders: Orders, adjacency: Adjacency
) -> Floats:
    """M8, the least of three bounds on n shares with S = sqrt(n) sigma."""
    _no_add_remove(event, adjacency, "a client that is absent takes its share of the noise away")
    if event.sigma_share < 0.5:
        raise UnsupportedEvent(
            f"sums of discrete Gaussians are proved for sigma_share >= 1/2, found "
            f"{event.sigma_share:g}: scale the integers up",
            event=event,
        )
    a, dim = orders.values, float(event.dim)
    tau = share_sum_tau(event.sigma_share, event.shares)
    total = math.sqrt(event.shares) * event.sigma_share
    l2, l1 = (_doubled(adjacency) * norm for norm in (event.l2, event.l1))
    x = l2 / total
    with np.errstate(over="ignore"):
        first = a * (x * x / 2) + tau * dim
        second = a / 2 * (x * x + 2 * l1 * tau / total + tau * tau * dim)
        root = x + math.sqrt(dim) * tau
        third = a / 2 * (root * root)
    return np.minimum(np.minimum(first, second), third)


@curve_of(Skellam)
def _skellam(event: Skellam, orders: Orders, adjacency: Adjacency) -> Floats:
    """M9 at whole orders, a l2^2/(2 mu) + min{((2a-1) l2^2 + 6 l1)/(4 mu^2), 3 l1/(2 mu)}."""
    _no_add_remove(event, adjacency, "a client that is absent takes its share of the noise away")
    mu = event.mu
    l2, l1 = (_doubled(adjacency) * norm for norm in (event.l2, event.l1))

    def fill(whole: Orders, log_a: Floats) -> None:
        a = whole.values
        with np.errstate(over="ignore"):
            bend = np.minimum(
                ((2 * a - 1) * (l2 / mu * (l2 / mu)) + 6 * (l1 / mu / mu)) / 4, 1.5 * l1 / mu
            )
            log_a[:] = (a - 1) * (a * (l2 / mu * l2 / 2) + bend)

    return between_whole_orders(orders, fill)


def rounded_sensitivity(clip: float, scale: float, dim: int) -> tuple[float, float]:
    """(l2, l1) bounds on a vector clipped to ``clip``, scaled and rounded to whole numbers.

    For rounding that is repeated until l2 holds: min{r + sqrt(D), sqrt(r^2 + D/4 + sqrt(2 ln(1/b))
    (r + sqrt(D)/2))} with r = clip * scale and b = e^-1/2; l1 = l2 min(sqrt(D), l2), since whole
    numbers are at most their squares (Kairouz, Liu, Steinke 2021, arXiv 2102.06387, section 4).

    Args:
        clip: norm bound before scaling, > 0, at most 1e145.
        scale: grid points per unit, > 0, at most 1e145.
        dim: D, coordinates after padding, 1..2^53.

    Raises:
        InvalidParameter: for arguments out of range.
    """
    r, root = _length(clip, "clip") * _length(scale, "scale"), math.sqrt(_coordinates(dim))
    l2 = min(r + root, math.sqrt(r * r + dim / 4 + (r + root / 2)))  # sqrt(2 ln(1/b)) = 1
    l2 *= 1 + 2**-50  # a few ulps up, for the rounding of this line and the one before
    return l2, l2 * min(root, l2)


def _length(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidParameter(f"{name} must be a number, found {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number <= _LONGEST:
        raise InvalidParameter(f"{name} must be > 0 and at most 1e145, found {value!r}")
    return number


def _coordinates(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidParameter(f"dim must be an int, found {type(value).__name__}")
    number = operator.index(value)
    if not 1 <= number <= MAX_COUNT:
        raise InvalidParameter(f"dim must be in 1..2^53, found {number}")
    return number


# --- M10: trees and banded matrices -------------------------------------------------------------


@curve_of(Tree)
def _tree(event: Tree, orders: Orders, adjacency: Adjacency) -> Floats:
    """M10, a V / (2 z^2): all nodes together are one Gaussian release of squared sensitivity V."""
    _only_zero_out(event, adjacency)
    found = tree_squared_sensitivity(event.steps, event.participations, event.min_sep)
    return gaussian_rdp(event.noise_multiplier, orders, adjacency) * count_weight(found.squared)


@curve_of(BandedMF)
def _banded(event: BandedMF, orders: Orders, adjacency: Adjacency) -> Floats:
    """M10: columns that far apart are orthogonal; cyclic sampling is ceil(T/bands) rounds of M2."""
    _only_zero_out(event, adjacency)
    unsampled = gaussian_rdp(event.noise_multiplier, orders, adjacency)
    if event.sample_rate is None:
        return unsampled * float(event.participations)
    rounds = float(-(-event.steps // event.bands))
    if event.sample_rate == 1:
        return unsampled * rounds
    sampled = poisson_gaussian_rdp(event.sample_rate, event.noise_multiplier, orders)
    return np.minimum(sampled, unsampled) * rounds


def _only_zero_out(event: Tree | BandedMF, adjacency: Adjacency) -> None:
    if adjacency is not Adjacency.ZERO_OUT:
        raise UnsupportedEvent(
            f"{type(event).__name__} is proved under zero-out only, found {adjacency}: with a unit "
            "absent or replaced the steps of the others move",
            event=event,
        )


@curve_of(Shuffled)
def _shuffled(event: Shuffled, _orders: Orders, _adjacency: Adjacency) -> Floats:
    raise UnsupportedEvent(
        "shuffled batches have no tight cost, only a lower and an upper bound: use "
        "accounting.interval, or sample by Poisson coins",
        event=event,
    )
