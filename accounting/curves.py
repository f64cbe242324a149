"""What a release costs: Renyi differential privacy curves, one pure function per event.

Formulas, with the names of the papers:

* M1, the Gaussian mechanism: Mironov 2017 (arXiv 1702.07476), Corollary 3.
* M3, any other event on a Poisson sample: Zhu, Wang 2019, Theorem 5, and without its factor 3 where
  the noise is symmetric about 0 (``docs/proofs/poisson-other.md``).

M2, the Poisson-sampled Gaussian, stands in :mod:`accounting.poisson_gaussian`, M5 to
M10 in :mod:`accounting.closed_forms`; M4, M11, M13, M14 and noise shares, which are made from the
curve of an inner event, in :mod:`accounting.derived`.

``docs/proofs/`` has a page for each. M1 and M2 are upper bounds up to a relative error of 1e-12
(integer orders up to 1024) and 1e-9 (fractional orders), for rates in [1e-8, .999], noise
multipliers in [.2, 100] and orders in [1.01, 1024]; tests hold them against 40-digit arithmetic.
Outside of that box the bounds stay valid, but may be looser. This module knows no budget, no
composition over time and no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import numpy as np

from accounting.errors import UnsupportedEvent
from accounting.events import (
    ZCDP,
    Adjacency,
    ApproxDP,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    Event,
    Gaussian,
    Laplace,
    NoiseShares,
    NonPrivate,
    Poisson,
    PureDP,
    Skellam,
    leaves,
)
from accounting.orders import (
    DEFAULT_ORDERS,
    MAX_ORDER,
    MIN_ORDER,
    Floats,
    Orders,
    between_whole_orders,
)
from accounting.poisson_gaussian import Longs, log_binomial_mean, pairs, poisson_gaussian_rdp

__all__ = [
    "DEFAULT_ORDERS",
    "MAX_ORDER",
    "MIN_ORDER",
    "Floats",
    "Orders",
    "add_curve",
    "best_order",
    "combined_gaussian",
    "count_weight",
    "curve_of",
    "gaussian_rdp",
    "inner_curve",
    "leaf_curve",
    "not_falling",
    "poisson_rdp",
    "rdp",
    "rdp_at",
    "slack_delta",
    "slack_of",
    "total_curve",
]

_INTEGERS_ONLY = 256  # refinement uses whole orders above this one
_REFINE_ROUNDS, _REFINE_POINTS = 3, 13
_TINY = np.finfo(np.float64).tiny  # no release is free: an underflow must not become a zero

# --- the registry -------------------------------------------------------------------------------

_E = TypeVar("_E", bound=Event)
_Curve: TypeAlias = Callable[[_E, Orders, Adjacency], Floats]
_CURVES: dict[type[Event], _Curve[Any]] = {}


def curve_of(cls: type[_E]) -> Callable[[_Curve[_E]], _Curve[_E]]:
    """Registers the curve of one event class."""

    def add(function: _Curve[_E]) -> _Curve[_E]:
        _CURVES[cls] = function
        return function

    return add


def rdp(event: Event, orders: Orders, adjacency: Adjacency) -> Floats:
    """The RDP curve of an event.

    Args:
        event: any event tree; repetitions and compositions add up.
        orders: where to evaluate.
        adjacency: the neighbour relation of the claim.

    Returns:
        float64[len(orders)], each > 0 and possibly infinite; an upper bound on the Renyi
        divergence between neighbours in both directions.

    Raises:
        UnsupportedEvent: if no proved curve is known, or a part is (epsilon, delta)-private only:
            a curve alone does not describe it.
        AdjacencyMismatch: if a part is proved under another adjacency.
    """
    slack = slack_delta(event)
    if slack > 0:
        raise UnsupportedEvent(
            f"{event} fails with probability {slack:.3g}, which a Renyi curve has no place for: "
            "use accounting.epsilon, which takes it off the target delta",
            event=event,
        )
    return total_curve(event, orders, adjacency)


def total_curve(event: Event, orders: Orders, adjacency: Adjacency) -> Floats:
    """The curve of an event outside of a failure of probability :func:`slack_delta`.

    Never use it without that probability; :func:`rdp` is the one that needs no care.
    """
    total = np.zeros(len(orders))
    for leaf, count in leaves(event):
        add_curve(total, count, leaf_curve(leaf, orders, adjacency))
    return total


def add_curve(total: Floats, count: int, curve: Floats) -> None:
    """Adds ``count`` times a curve in place; what is beyond all floats is infinite."""
    with np.errstate(over="ignore"):
        total += count_weight(count) * curve


@lru_cache(maxsize=8192)
def slack_delta(event: Event) -> float:
    """1 - prod (1 - delta_i) over the (epsilon, delta)-private parts, rounded up; 0 without any."""
    return slack_of(leaves(event))


def slack_of(parts: Iterable[tuple[Event, int]]) -> float:
    """:func:`slack_delta` of (leaf, count) pairs."""
    log_kept = [
        count_weight(count) * math.log1p(-leaf.delta)
        for leaf, count in parts
        if isinstance(leaf, ApproxDP) and leaf.delta > 0
    ]
    if not log_kept:
        return 0.0
    # Four ulps up for the rounding of the product and the sum; a tiny one is kept above 0.
    return min(1.0, max(-math.expm1(math.fsum(log_kept)) * (1 + 2**-50), _TINY))


@lru_cache(maxsize=8192)
def rdp_at(event: Event, order: float, adjacency: Adjacency) -> float:
    """The RDP of an event at one order, as a float; see :func:`rdp`."""
    return float(rdp(event, Orders.of((order,)), adjacency)[0])


@lru_cache(maxsize=8192)
def leaf_curve(leaf: Event, orders: Orders, adjacency: Adjacency) -> Floats:
    """The curve of one leaf (no Repeat, no Compose), cached and read-only."""
    curve = _fresh_curve(leaf, orders, adjacency)
    curve.flags.writeable = False
    return curve


def _fresh_curve(leaf: Event, orders: Orders, adjacency: Adjacency) -> Floats:
    function = _CURVES.get(type(leaf))
    if function is None:
        raise UnsupportedEvent(f"no RDP curve is known for {leaf}", event=leaf)
    with np.errstate(over="ignore", invalid="ignore"):  # at the ends of the floats: infinite
        curve = function(leaf, orders, adjacency)
    return np.maximum(np.where(np.isnan(curve), np.inf, curve), _TINY)


def inner_curve(event: Event, highest: int, adjacency: Adjacency) -> Floats:
    """The curve of an event inside of another one at the orders 2..highest; not kept.

    Raises:
        UnsupportedEvent: as :func:`rdp`.
    """
    if slack_delta(event) > 0:
        return rdp(event, Orders.of((2.0,)), adjacency)  # raises
    orders = _whole_up_to(highest)
    total = np.zeros(len(orders))
    for leaf, count in leaves(event):
        add_curve(total, count, _fresh_curve(leaf, orders, adjacency))
    return total


@lru_cache(maxsize=64)
def _whole_up_to(highest: int) -> Orders:
    return Orders(tuple(float(a) for a in range(2, highest + 1)))


def count_weight(count: int) -> float:
    """A count as a float factor, rounded up: beyond 2^53 the nearest float may be below."""
    try:
        return math.nextafter(float(count), math.inf) if count > 1 << 53 else float(count)
    except OverflowError:
        return math.inf


_GRID = Orders.of(DEFAULT_ORDERS)


def not_falling(bound: _Curve[_E], event: _E, orders: Orders, adjacency: Adjacency) -> Floats:
    """A bound, and at every order the least one of the grid's larger orders.

    A Renyi divergence does not fall with its order, so what bounds it at an order bounds it at all
    smaller ones; the bounds of some theorems do fall.

    Args:
        bound: the theorem's bound; a function of a module, whose values on the grid are kept.
        event: what it bounds.
        orders: where it is wanted.
        adjacency: the neighbour relation of the claim.

    Returns:
        float64[len(orders)].
    """
    at_least = _least_from_here(bound, event, adjacency)
    above: Floats = at_least[np.searchsorted(_GRID.values, orders.values)]
    found: Floats = np.minimum(bound(event, orders, adjacency), above)
    return found


@lru_cache(maxsize=1024)
def _least_from_here(bound: _Curve[Any], event: Event, adjacency: Adjacency) -> Floats:
    """Per order of the grid the least bound of it and the larger ones; infinite beyond the grid."""
    on_grid = bound(event, _GRID, adjacency)
    return np.append(np.minimum.accumulate(on_grid[::-1])[::-1], np.inf)


# --- M1 -----------------------------------------------------------------------------------------


def gaussian_rdp(noise_multiplier: float, orders: Orders, adjacency: Adjacency) -> Floats:
    """M1, a / (2 z^2); under replace-one the sensitivity is 2C, so z is halved."""
    inverse = 1.0 / noise_multiplier
    if adjacency is Adjacency.REPLACE_ONE:
        inverse *= 2.0
    return orders.values * (0.5 * inverse * inverse)


@curve_of(Gaussian)
def _gaussian(event: Gaussian, orders: Orders, adjacency: Adjacency) -> Floats:
    return gaussian_rdp(event.noise_multiplier, orders, adjacency)


@curve_of(NonPrivate)
def _non_private(_event: NonPrivate, orders: Orders, _adjacency: Adjacency) -> Floats:
    return np.full(len(orders), np.inf)


# --- Poisson samples ----------------------------------------------------------------------------


@curve_of(Poisson)
def _poisson(event: Poisson, orders: Orders, adjacency: Adjacency) -> Floats:
    rate, inner = _merged_sample(event)
    z = combined_gaussian(inner, adjacency)
    if z is not None:
        unsampled = gaussian_rdp(z, orders, adjacency)
        if adjacency is Adjacency.REPLACE_ONE:
            # No amplification is proved for this pair: a replaced unit is in both samples or in
            # neither, and with the coin fixed this is M1 (quasi-convexity).
            return unsampled
        return np.minimum(poisson_gaussian_rdp(rate, z, orders), unsampled)
    for leaf, _ in leaves(inner):
        bare = leaf.event if isinstance(leaf, NoiseShares) else leaf
        if any(not isinstance(part, _SAMPLED) for part, _ in leaves(bare)):
            raise UnsupportedEvent(
                f"a Poisson sample is accounted for around single releases of noise, found {leaf} "
                "inside: put other sampling outside of Poisson, or use Hierarchical",
                event=event,
            )
    if adjacency is Adjacency.REPLACE_ONE:
        raise UnsupportedEvent(
            f"no amplification by Poisson sampling of {inner} is proved under replace-one: "
            "account for the inner event alone",
            event=event,
        )
    if _is_one_symmetric_release(inner):
        return poisson_rdp(rate, inner, orders, adjacency)
    return not_falling(_with_factor_three, event, orders, adjacency)


def _with_factor_three(event: Poisson, orders: Orders, adjacency: Adjacency) -> Floats:
    rate, inner = _merged_sample(event)
    return poisson_rdp(rate, inner, orders, adjacency)


# What M3 may stand around: one release each, no sampling or failure of its own.
_SAMPLED = (
    Gaussian,
    Laplace,
    PureDP,
    ZCDP,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    Skellam,
)
# Noise added to a sum, symmetric about 0: there M3 holds without its factor 3.
_SYMMETRIC = (Laplace, DiscreteGaussian, DistributedDiscreteGaussian, Skellam, Gaussian)


def _merged_sample(event: Poisson) -> tuple[float, Event]:
    """Rate and innermost event of nested samples: a unit is in if all its coins say so."""
    rate, inner = event.sample_rate, event.event
    while isinstance(inner, Poisson):
        rate, inner = math.nextafter(rate * inner.sample_rate, 1.0), inner.event
    return rate, inner


def combined_gaussian(event: Event, adjacency: Adjacency) -> float | None:
    """The z of the one Gaussian that equals all releases, 1/z^2 = sum n/z_i^2; None if mixed.

    Raises:
        UnsupportedEvent: for noise shares under add-remove.
    """
    found: list[tuple[float, int]] = []
    for leaf, count in leaves(event):
        plain = _without_shares(leaf, adjacency) if isinstance(leaf, NoiseShares) else leaf
        for part, times in leaves(plain):
            if not isinstance(part, Gaussian):
                return None
            found.append((part.noise_multiplier, count * times))
    if len(found) == 1 and found[0][1] == 1:
        return found[0][0]
    inverse = math.hypot(*(math.sqrt(count_weight(n)) / z for z, n in found))
    return max(1.0 / inverse, 5e-324) if inverse > 0 else math.inf


def _without_shares(event: NoiseShares, adjacency: Adjacency) -> Event:
    from accounting.derived import survivors_event  # noqa: PLC0415  # it stands on this module

    return survivors_event(event, adjacency)


# --- M3 -----------------------------------------------------------------------------------------


def poisson_rdp(rate: float, inner: Event, orders: Orders, adjacency: Adjacency) -> Floats:
    """M3 for one event (tree) on a Poisson sample, never above the unsampled event.

    At whole orders, with c_2 = 1 and c_l = 3 (c_l = 1 for one release of symmetric noise):
    A = 1 + sum_{l=2..a} C(a,l) (1-g)^(a-l) g^l (c_l e^{(l-1) eps(l)} - 1); in between the chord.

    Args:
        rate: g, 0 < g < 1.
        inner: the event on the sample.
        orders: the orders a.
        adjacency: add-remove or zero-out.

    Returns:
        float64[len(orders)].
    """
    symmetric = _is_one_symmetric_release(inner)

    def exponents(highest: int) -> Longs:
        k, _ = pairs(highest)
        factors = np.where((k > 2) & (not symmetric), np.log(np.longdouble(3)), np.longdouble(0))
        exponent: Longs = (k - 1) * inner_curve(inner, highest, adjacency) + factors
        return exponent

    sampled = between_whole_orders(
        orders, lambda whole, log_a: log_binomial_mean(rate, exponents, whole, log_a)
    )
    return np.minimum(sampled, rdp(inner, orders, adjacency))


def _is_one_symmetric_release(event: Event) -> bool:
    """Two releases on one sample may follow each other, and then nothing is symmetric any more."""
    if isinstance(event, NoiseShares):
        return _is_one_symmetric_release(event.event)
    found = leaves(event)
    return len(found) == 1 and found[0][1] == 1 and isinstance(found[0][0], _SYMMETRIC)


# --- the best order -----------------------------------------------------------------------------


def best_order(
    curve: Callable[[Orders], Floats], delta: float, *, grid: Orders
) -> tuple[float, float, int]:
    """The smallest epsilon over the grid and over three rounds of 13 orders around the best one.

    Every order gives a valid bound, so refining can only lower the value.

    Returns:
        (epsilon not clipped at zero, its order, index of the best order on the grid).
    """
    values = grid.to_epsilon(curve(grid), delta)
    index = int(np.argmin(values))
    best, order = float(values[index]), float(grid.values[index])
    if math.isinf(best):
        return best, order, index
    low = float(grid.values[max(index - 1, 0)])
    high = float(grid.values[min(index + 1, len(grid) - 1)])
    for _ in range(_REFINE_ROUNDS):
        around = _spread(low, high)
        if around is None:
            break
        values = around.to_epsilon(curve(around), delta)
        position = int(np.argmin(values))
        if values[position] < best:
            best, order = float(values[position]), float(around.values[position])
        low = float(around.values[max(position - 1, 0)])
        high = float(around.values[min(position + 1, len(around) - 1)])
    return best, order, index


@lru_cache(maxsize=4096)
def _spread(low: float, high: float) -> Orders | None:
    """13 orders from low to high; only whole ones above 256. None if there are none."""
    points = np.linspace(low, high, _REFINE_POINTS)
    points = np.unique(np.where(points > _INTEGERS_ONLY, np.round(points), points))
    return Orders.of(points.tolist()) if len(points) > 1 else None
