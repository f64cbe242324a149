"""M2, the Poisson-sampled Gaussian, and the binomial sums that M3 and M4 share with it.

Mironov, Talwar, Zhang 2019 (arXiv 1908.10530), section 3.3 for integer orders; fractional orders by
quadrature of the same expectation instead of the paper's alternating series, which loses digits at
large rates. ``docs/proofs/poisson-gaussian.md`` says what is proved and how exact it is. This
module knows no event and no adjacency.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from accounting.orders import Floats, Orders, between_whole_orders

__all__ = [
    "Longs",
    "log_binomial_mean",
    "log_binomial_sum",
    "log_expm1",
    "pairs",
    "poisson_gaussian_rdp",
]

Longs: TypeAlias = NDArray[np.longdouble]
_Whole: TypeAlias = NDArray[np.intp]

_QUADRATURE_NOISE = (0.2, 1e4)  # beyond: whole orders and chords


def poisson_gaussian_rdp(sample_rate: float, noise_multiplier: float, orders: Orders) -> Floats:
    """M2, log(A) / (a - 1) with A = E_{w ~ N(0, s^2)}[((1-q) + q e^{(2w-1)/(2 s^2)})^a].

    Args:
        sample_rate: q, 0 < q < 1.
        noise_multiplier: s = z > 0.
        orders: the orders a.

    Returns:
        float64[len(orders)].
    """
    q, s = sample_rate, noise_multiplier
    log_a = np.empty(len(orders))
    if orders.fractional.size:
        if not _QUADRATURE_NOISE[0] <= s <= _QUADRATURE_NOISE[1]:
            # The quadrature would need millions of points, or its squares might overflow.
            return between_whole_orders(
                orders, lambda whole, at_whole: _whole_orders(q, s, whole, at_whole)
            )
        _fractional_orders(q, s, orders, log_a)
    if orders.precise.size or orders.large.size:
        _whole_orders(q, s, orders, log_a)
    return log_a * orders.inverse


def _whole_orders(q: float, s: float, orders: Orders, log_a: Floats) -> None:
    """A = 1 + sum_{k=2..a} C(a,k) (1-q)^(a-k) q^k expm1(k(k-1)/(2 s^2)): all terms positive."""
    per_pair = 1 / (2 * np.longdouble(s) * np.longdouble(s))
    log_binomial_mean(q, lambda highest: pairs(highest)[1] * per_pair, orders, log_a)


def log_binomial_mean(
    q: float, exponents: Callable[[int], Longs], orders: Orders, log_a: Floats
) -> None:
    """log(1 + sum_{k=2..a} C(a,k) (1-q)^(a-k) q^k expm1(x_k)) at whole orders a, x_k > 0.

    Args:
        q: 0 < q < 1.
        exponents: gives x_2 .. x_highest.
        orders: whole orders are used, others left alone.
        log_a: written at the places of the whole orders.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        log_terms = log_expm1(exponents(orders.highest_whole))
        log_binomial_sum(q, log_terms, orders, log_a, log_rest=np.log1p(-np.longdouble(q)))


def log_binomial_sum(
    q: float,
    log_terms: Longs | Floats,
    orders: Orders,
    log_a: Floats,
    *,
    log_rest: np.longdouble | float = 0.0,
) -> None:
    """log(1 + sum_{k=2..a} C(a,k) r^(a-k) q^k t_k) at whole orders a, from the logs of t_k and r.

    The exponents cancel from thousands to about zero, so up to order 1024 they are formed in long
    double (64-bit mantissa on x86; where it is a plain double the error is 1e-11, not 1e-12).
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        k, _ = pairs(orders.highest_whole)
        # r^(a-k) = r^a r^-k: the second factor is the same in all rows, the first in all of one.
        rest = np.longdouble(log_rest)
        shared = k * (np.log(np.longdouble(q)) - rest) + log_terms
        if orders.precise.size:
            rows = _joined_rows(orders.precise_orders)
            terms = shared[rows.column]
            terms += rows.log_binomials
            log_a[orders.precise] = _log_one_plus_sums(terms, rows, rest)
        for index in orders.large:
            rows = _joined_rows((int(orders.values[index]),))
            terms = rows.log_binomials + shared[rows.column]
            log_a[index] = _log_one_plus_sums(terms, rows, rest)[0]


@lru_cache(maxsize=64)
def pairs(highest: int) -> tuple[Longs, Longs]:
    """Both k and k(k-1), for k = 2..highest."""
    k: Longs = np.arange(2, highest + 1, dtype=np.longdouble)
    return k, k * (k - 1)


def log_expm1(x: Longs) -> Longs:
    """log(e^x - 1) for x > 0 without overflow and without cancellation.

    Only the leading x needs the long double; what is added to it is below 1 or stands alone.
    """
    y = x.astype(np.float64)
    return np.where(y > 1, x + np.log1p(-np.exp(-y)), np.log(np.expm1(np.minimum(y, 1.0))))


def _log_one_plus_sums(terms: Longs, rows: _Rows, log_rest: np.longdouble) -> Floats:
    """log(1 + r^a sum e^term) per row of joined rows; the sums themselves need doubles only."""
    top = np.maximum.reduceat(terms, rows.starts)
    scaled = np.exp((terms - np.repeat(top, rows.lengths)).astype(np.float64))
    total = np.add.reduceat(scaled, rows.starts)
    log_sum = top + rows.orders * log_rest + np.log(total)
    log_total: Floats = np.logaddexp(0, log_sum.astype(np.float64))
    log_total[np.isposinf(top)] = np.inf  # noise so small that even the exponents overflow
    log_total[np.isneginf(top)] = 0.0  # noise so large that all of them underflow
    return log_total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rows:
    """For each order a in turn the numbers k = 2..a, joined into one array."""

    log_binomials: Longs  # log C(a, k)
    orders: Longs  # a, once per row
    column: _Whole  # k - 2
    starts: _Whole
    lengths: _Whole


@lru_cache(maxsize=256)
def _joined_rows(orders: tuple[int, ...]) -> _Rows:
    """From exact integers: differences of log-gamma would cost three digits."""
    lengths = np.array(orders) - 1
    k = [np.arange(2, a + 1) for a in orders]
    return _Rows(
        log_binomials=np.concatenate(
            [_log_half_row(a)[np.minimum(row, a - row)] for a, row in zip(orders, k, strict=True)]
        ),
        orders=np.array(orders, dtype=np.longdouble),
        column=np.concatenate(k) - 2,
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
    )


def _log_half_row(a: int) -> Longs:
    """The logs of C(a, k), k = 0..a//2: the top 63 bits of each integer and its power of two."""
    leading, shifts, binomial = [1], [0], 1
    for k in range(1, a // 2 + 1):
        binomial = binomial * (a - k + 1) // k
        shift = max(0, binomial.bit_length() - 63)
        leading.append(binomial >> shift)
        shifts.append(shift)
    logs: Longs = np.log(np.array(leading, dtype=np.uint64).astype(np.longdouble))
    half_row: Longs = logs + np.array(shifts) * np.log(np.longdouble(2))
    return half_row


def _fractional_orders(q: float, s: float, orders: Orders, log_a: Floats) -> None:
    """The trapezoid rule, in groups of similar orders so that no large order widens all grids."""
    remaining = orders.fractional
    for limit in (16.0, 128.0, math.inf):
        group = remaining[orders.values[remaining] <= limit]
        remaining = remaining[orders.values[remaining] > limit]
        if group.size:
            log_a[group] = _log_expectation(q, s, orders.values[group])


def _log_expectation(q: float, s: float, a: Floats) -> Floats:
    """The log of A at real orders by the trapezoid rule on [-9.5 s, max(a) + 9.5 s].

    The integrand is analytic for abs(Im w) < pi s^2, so with step min(s/3, s^2/2) the rule's error
    is about e^-39 of the integrand's size. Where A is near 1 it is found from A - 1, for log A
    rises with the order: if the largest order is near 1, so are all.
    """
    step = min(s / 3, s * s / 2)
    w = np.arange(-9.5 * s, float(a[-1]) + 9.5 * s + step, step)
    log_weight = -(w * w) / (2 * s * s) + math.log(step / (s * math.sqrt(2 * math.pi)))
    y = (2 * w - 1) / (2 * s * s)
    with np.errstate(over="ignore", under="ignore"):
        # g: log of the bracket, so that A = E[e^{a g}] and E[e^g] = 1.
        g = np.where(y < 700, np.log1p(q * np.expm1(np.minimum(y, 700.0))), y + math.log(q))
        result = _log_mean_power(a[-1:], g, log_weight)
        if result[0] >= 0.3:
            result = np.append(_log_mean_power(a[:-1], g, log_weight), result)
        else:
            result = np.zeros(len(a))
        near_one = result < 0.3
        if near_one.any():
            result[near_one] = _log1p_excess(a[near_one], g, log_weight)
    return result


def _log_mean_power(a: Floats, g: Floats, log_weight: Floats) -> Floats:
    """The log of E[e^{a g}] per order, stable where it is large."""
    exponent = a[:, None] * g
    exponent += log_weight
    top: Floats = exponent.max(axis=1, initial=-math.inf)
    np.subtract(exponent, top[:, None], out=exponent)
    log_mean: Floats = top + np.log(np.exp(exponent, out=exponent).sum(axis=1))
    return log_mean


_TAYLOR = np.arange(2.0, 15.0)
_FACTORIALS = np.cumprod(np.append(1.0, _TAYLOR))[1:]


def _log1p_excess(a: Floats, g: Floats, log_weight: Floats) -> Floats:
    """The log of A where A is near 1, from A - 1 = E[expm1(a g) - a expm1(g)], since E[e^g] = 1.

    The integrand is of second order in g. Three forms of it: e^{a g} against its weight in log
    space where it would overflow; the plain difference; the series
    sum_{k=2..14} (a^k - a) g^k / k! where abs(a g) < .1 and the difference would cancel.
    """
    order = a[:, None]
    ag = order * g
    weight = np.exp(log_weight)
    integrand = np.minimum(ag, 30.0)
    np.expm1(integrand, out=integrand)
    integrand -= order * np.expm1(np.minimum(g, 30.0))
    # g rises along the grid, and a > 1: each of the other two forms is needed on one piece only.
    near = slice(*np.searchsorted(g, (-0.1, 0.1)))
    if near.start < near.stop:
        repeated = np.broadcast_to(g[near], (14, near.stop - near.start))
        powers = np.cumprod(repeated, axis=0, dtype=np.float64)[1:] / _FACTORIALS[:, None]
        series = (order * np.expm1(np.log(order) * (_TAYLOR - 1))) @ powers
        np.copyto(integrand[:, near], series, where=np.abs(ag[:, near]) < 0.1)
    integrand *= weight
    far = slice(int(np.searchsorted(g, 30.0 / a[-1])), len(g))
    if far.start < far.stop:
        weighted = np.exp(ag[:, far] + log_weight[far]) - weight[far]
        weighted -= order * (np.exp(g[far] + log_weight[far]) - weight[far])
        np.copyto(integrand[:, far], weighted, where=ag[:, far] > 30)
    log_a: Floats = np.log1p(np.maximum(integrand.sum(axis=1), 0.0))
    return log_a
