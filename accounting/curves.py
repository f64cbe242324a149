"""What a release costs: Renyi differential privacy curves, one pure function per event.

Formulas, with the names of the papers:

* M1, the Gaussian mechanism: Mironov 2017 (arXiv 1702.07476), Corollary 3.
* M2, the Poisson-sampled Gaussian: Mironov, Talwar, Zhang 2019 (arXiv 1908.10530), section 3.3 for
  integer orders; fractional orders by quadrature of the same expectation instead of the paper's
  alternating series, which loses digits at large rates.
* M3, any other event on a Poisson sample: Zhu, Wang 2019, Theorem 5, and without its factor 3 where
  the noise is symmetric about 0 (``docs/proofs/poisson-other.md``).
* The conversion to (epsilon, delta): Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), Prop. 12.

M5 to M10 stand in :mod:`accounting.closed_forms`; M4, M11, M13, M14 and noise shares, which are
made from the curve of an inner event, in :mod:`accounting.derived`.

``docs/proofs/`` has a page for each. M1 and M2 are upper bounds up to a relative error of 1e-12
(integer orders up to 1024) and 1e-9 (fractional orders), for rates in [1e-8, .999], noise
multipliers in [.2, 100] and orders in [1.01, 1024]; tests hold them against 40-digit arithmetic.
Outside of that box the bounds stay valid, but may be looser. This module knows no budget, no
composition over time and no file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from accounting.errors import InvalidParameter, UnsupportedEvent
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

__all__ = [
    "DEFAULT_ORDERS",
    "MAX_ORDER",
    "MIN_ORDER",
    "Orders",
    "add_curve",
    "best_order",
    "between_whole_orders",
    "combined_gaussian",
    "count_weight",
    "curve_of",
    "gaussian_rdp",
    "inner_curve",
    "leaf_curve",
    "log_binomial_mean",
    "log_binomial_sum",
    "log_expm1",
    "poisson_gaussian_rdp",
    "rdp",
    "rdp_at",
    "slack_delta",
    "slack_of",
    "total_curve",
]

Floats: TypeAlias = NDArray[np.float64]
_Long: TypeAlias = NDArray[np.longdouble]
_Whole: TypeAlias = NDArray[np.intp]

MIN_ORDER = 1.01
MAX_ORDER = 1 << 16

DEFAULT_ORDERS: tuple[float, ...] = (
    1.05,
    *(1 + x / 10 for x in range(1, 100)),
    *(float(a) for a in range(11, 64)),
    *(float(1 << k) for k in range(7, 13)),
)
"""The grid: 1.05; 1.1 to 10.9 by .1; 11 to 63; 128, 256, ..., 4096."""

_PRECISE = 1024  # integer orders up to here are summed in long double
_INTEGERS_ONLY = 256  # refinement uses whole orders above this one
_REFINE_ROUNDS, _REFINE_POINTS = 3, 13
_QUADRATURE_NOISE = (0.2, 1e4)
_TINY = np.finfo(np.float64).tiny  # no release is free: an underflow must not become a zero


class Orders:
    """A fixed set of RDP orders with everything that depends on the orders alone.

    Built through :meth:`of`, which returns the same object for the same orders, so that curves can
    be cached under it. Equal only to itself.
    """

    __slots__ = (
        "_log_order",
        "_log_shrink",
        "fractional",
        "highest_whole",
        "inverse",
        "large",
        "precise",
        "precise_orders",
        "values",
    )

    def __init__(self, values: tuple[float, ...]) -> None:
        self.values: Floats = np.array(values, dtype=np.float64)
        self.values.flags.writeable = False
        self.inverse: Floats = 1.0 / (self.values - 1.0)
        self._log_order: Floats = np.log(self.values)
        self._log_shrink: Floats = np.log1p(-1.0 / self.values)
        is_whole = self.values == np.round(self.values)
        self.precise = np.flatnonzero(is_whole & (self.values <= _PRECISE))
        self.large = np.flatnonzero(is_whole & (self.values > _PRECISE))
        self.fractional = np.flatnonzero(~is_whole)
        self.precise_orders = tuple(self.values[self.precise].astype(int).tolist())
        self.highest_whole = int(self.values[is_whole].max(initial=0))

    @staticmethod
    def of(values: Iterable[float]) -> Orders:
        """The orders, which must increase strictly and lie in [1.01, 65536].

        Raises:
            InvalidParameter: for no orders, bools, or orders out of range or out of order.
        """
        return _orders(tuple(values))

    def __len__(self) -> int:
        return len(self.values)

    def to_epsilon(self, curve: Floats, delta: float) -> Floats:
        """Epsilon at each order for this delta, not clipped at zero (Prop. 12, see module)."""
        return curve + self._log_shrink - (math.log(delta) + self._log_order) * self.inverse

    def to_log_delta(self, curve: Floats, epsilon: float) -> Floats:
        """Natural log of delta at each order for this epsilon, not clipped at zero."""
        with np.errstate(over="ignore"):
            return (self.values - 1.0) * (curve - epsilon + self._log_shrink) - self._log_order


@lru_cache(maxsize=4096)
def _orders(values: tuple[float, ...]) -> Orders:
    if not values:
        raise InvalidParameter("orders must hold at least one order, found none")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, float | int):
            raise InvalidParameter(f"orders must be numbers, found {type(value).__name__}")
        if not MIN_ORDER <= value <= MAX_ORDER:
            raise InvalidParameter(f"orders must be in [{MIN_ORDER}, {MAX_ORDER}], found {value!r}")
    if any(b <= a for a, b in itertools.pairwise(values)):
        raise InvalidParameter("orders must increase strictly")
    return Orders(tuple(float(value) for value in values))


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

    def exponents(highest: int) -> _Long:
        k, _ = _pairs(highest)
        factors = np.where((k > 2) & (not symmetric), np.log(np.longdouble(3)), np.longdouble(0))
        exponent: _Long = (k - 1) * inner_curve(inner, highest, adjacency) + factors
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


def between_whole_orders(orders: Orders, fill: Callable[[Orders, Floats], None]) -> Floats:
    """A curve known at whole orders, and the chord of (a - 1) eps(a) between them.

    (a - 1) eps(a) of a true divergence is convex and 0 at a = 1, so the chord between bounds at
    whole orders is a bound.

    Args:
        orders: where the curve is wanted.
        fill: writes (a - 1) eps(a) at given whole orders into an array.
    """
    a = orders.values
    needed = np.unique(np.append(np.floor(a), np.ceil(a)))
    whole = Orders.of(needed[needed > 1].tolist())
    at_whole = np.empty(len(whole))
    fill(whole, at_whole)
    at, points = np.append(0.0, at_whole), np.append(1.0, whole.values)
    low = np.searchsorted(points, np.floor(a))
    high = np.searchsorted(points, np.ceil(a))
    fraction = a - np.floor(a)
    with np.errstate(invalid="ignore"):
        chord = at[low] + fraction * (at[high] - at[low])
    log_a = np.where(fraction == 0, at[low], np.where(np.isinf(at[high]), np.inf, chord))
    return log_a * orders.inverse


# --- M2 -----------------------------------------------------------------------------------------


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
    log_binomial_mean(q, lambda highest: _pairs(highest)[1] * per_pair, orders, log_a)


def log_binomial_mean(
    q: float, exponents: Callable[[int], _Long], orders: Orders, log_a: Floats
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
    log_terms: _Long | Floats,
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
        k, _ = _pairs(orders.highest_whole)
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
def _pairs(highest: int) -> tuple[_Long, _Long]:
    """Both k and k(k-1), for k = 2..highest."""
    k: _Long = np.arange(2, highest + 1, dtype=np.longdouble)
    return k, k * (k - 1)


def log_expm1(x: _Long) -> _Long:
    """log(e^x - 1) for x > 0 without overflow and without cancellation.

    Only the leading x needs the long double; what is added to it is below 1 or stands alone.
    """
    y = x.astype(np.float64)
    return np.where(y > 1, x + np.log1p(-np.exp(-y)), np.log(np.expm1(np.minimum(y, 1.0))))


def _log_one_plus_sums(terms: _Long, rows: _Rows, log_rest: np.longdouble) -> Floats:
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

    log_binomials: _Long  # log C(a, k)
    orders: _Long  # a, once per row
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


def _log_half_row(a: int) -> _Long:
    """The logs of C(a, k), k = 0..a//2: the top 63 bits of each integer and its power of two."""
    leading, shifts, binomial = [1], [0], 1
    for k in range(1, a // 2 + 1):
        binomial = binomial * (a - k + 1) // k
        shift = max(0, binomial.bit_length() - 63)
        leading.append(binomial >> shift)
        shifts.append(shift)
    logs: _Long = np.log(np.array(leading, dtype=np.uint64).astype(np.longdouble))
    half_row: _Long = logs + np.array(shifts) * np.log(np.longdouble(2))
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
