"""What releases cost together: composition in RDP, and the translation to (epsilon, delta).

RDP curves add up under (even adaptive) composition (Mironov 2017, Prop. 1); the sum is translated
once, at the best order (see :mod:`accounting.curves` for the sources). For unsampled Gaussians the
exact answer is known (Balle, Wang 2018, arXiv 1805.06530, Theorem 8); for rare participation a
privacy-loss distribution is tighter (:mod:`accounting.pld`).

What an epsilon of this module means: the releases were *planned beforehand*. If parameters or the
decision to stop depend on earlier outputs, only the declared order of :mod:`accounting.ledger`
gives a bound. This module knows no budget, no file and no history.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import erfcx, ndtr

from accounting.choice import Choice
from accounting.curves import (
    DEFAULT_ORDERS,
    Floats,
    Orders,
    add_curve,
    best_order,
    combined_gaussian,
    count_weight,
    leaf_curve,
    slack_of,
    total_curve,
)
from accounting.errors import (
    AdjacencyMismatch,
    InvalidEvent,
    InvalidParameter,
    OrderAtEdgeWarning,
    UnsupportedEvent,
)
from accounting.events import Adjacency, Event, Gaussian, Group, NoiseShares, Tree, leaves
from accounting.trees import tree_squared_sensitivity

__all__ = [
    "Bound",
    "BoundKind",
    "Method",
    "RDPAccountant",
    "RDPCurve",
    "checked_delta",
    "checked_epsilon",
    "epsilon",
    "gaussian_delta",
    "gaussian_epsilon",
]

_KEPT_TOTALS = 8
_TINY = 5e-324


class BoundKind(StrEnum):
    """What a number says about the true epsilon. An estimate never supports a claim."""

    UPPER = "upper"
    LOWER = "lower"
    EXACT = "exact"
    ESTIMATE = "estimate"


class Method(Choice):
    """How an epsilon is computed."""

    AUTO = "auto"
    """Exact if every event is an unsampled Gaussian or a tree of them, else the smaller of PLD (if
    it is installed and right for the event) and RDP. The bound says which."""

    RDP = "rdp"
    EXACT = "exact"
    PLD = "pld"
    INTERVAL = "interval"
    """Of a bound from :func:`accounting.interval`; cannot be asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One statement: "(value, delta)-differentially private under this adjacency".

    Attributes:
        value: epsilon, >= 0, possibly infinite.
        kind: what the number says about the true epsilon.
        method: how it was computed.
        delta: the delta of the statement, in [0, 1].
        adjacency: the neighbour relation.
        order: the RDP order that gave it; None where no order was involved.
        discretisation: the grid width of a discretised method; None for RDP and exact.
        discretisation_error: how much the value moved when that width was halved; None otherwise.
    """

    value: float
    kind: BoundKind
    method: Method
    delta: float
    adjacency: Adjacency
    order: float | None = None
    discretisation: float | None = None
    discretisation_error: float | None = None

    def __str__(self) -> str:
        at = "" if self.order is None else f", order {self.order:.6g}"
        return (
            f"epsilon {self.value:.6g} at delta {self.delta:.6g} "
            f"({self.adjacency}, {self.method} {self.kind}{at})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RDPCurve:
    """An RDP curve on the accountant's orders.

    Attributes:
        orders: the orders, increasing.
        values: the RDP at each, >= 0, possibly infinite.
        adjacency: the neighbour relation.
        delta: probability of a failure outside of which the curve holds; 0 unless an
            (epsilon, delta)-private event was composed.
    """

    orders: tuple[float, ...]
    values: tuple[float, ...]
    adjacency: Adjacency
    delta: float = 0.0


def checked_delta(delta: object) -> float:
    """Delta as a float strictly between 0 and 1.

    Raises:
        InvalidParameter: otherwise. A delta of 0 or 1 has no meaning for these bounds.
    """
    if isinstance(delta, bool) or not isinstance(delta, numbers.Real):
        raise InvalidParameter(f"delta must be a number, found {type(delta).__name__}")
    number = _float(delta)
    if not 0 < number < 1:
        raise InvalidParameter(f"delta must be strictly between 0 and 1, found {number!r}")
    return number


def checked_epsilon(value: object) -> float:
    """Epsilon as a finite float >= 0.

    Raises:
        InvalidParameter: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidParameter(f"epsilon must be a number, found {type(value).__name__}")
    number = _float(value)
    if not 0 <= number < math.inf:
        raise InvalidParameter(f"epsilon must be finite and >= 0, found {number!r}")
    return number


def _float(value: numbers.Real) -> float:
    try:
        return float(value)
    except OverflowError:  # an int of 400 digits, say: in no range either way
        return math.inf


def _checked_times(n: object) -> int:
    if isinstance(n, bool) or not isinstance(n, numbers.Integral) or operator.index(n) < 1:
        raise InvalidParameter(f"n must be an int >= 1, found {n!r}")
    return operator.index(n)


class RDPAccountant:
    """Adds up releases on one data set and answers with an (epsilon, delta).

    Without ``orders`` the default grid is used and the best order is refined around its minimum;
    with ``orders`` exactly these are used, so that two accountants can be compared number by
    number. Refining can only lower an epsilon, never make it wrong.

    Args:
        adjacency: the neighbour relation of the claim; no default.
        orders: increasing RDP orders in [1.01, 65536], or None for the refined default grid.

    Raises:
        InvalidParameter: for an unknown adjacency or impossible orders.

    >>> a = RDPAccountant(adjacency=Adjacency.ADD_REMOVE)
    >>> a.compose(Gaussian(noise_multiplier=20.0), 1000)
    >>> round(a.epsilon(1e-5).value, 3)
    8.078
    """

    def __init__(
        self, *, adjacency: Adjacency | str, orders: Iterable[float] | None = None
    ) -> None:
        self._adjacency = Adjacency.of(adjacency)
        self._grid = Orders.of(DEFAULT_ORDERS if orders is None else orders)
        self._refines = orders is None
        self._counts: dict[Event, int] = {}
        # Sums of curves by the orders they were asked for; kept up to date by compose().
        self._totals: dict[Orders, Floats] = {}

    @property
    def adjacency(self) -> Adjacency:
        """The neighbour relation of every number this accountant gives."""
        return self._adjacency

    @property
    def events(self) -> tuple[tuple[Event, int], ...]:
        """What was composed, as (event without Repeat or Compose, how often)."""
        return tuple(self._counts.items())

    def compose(self, event: Event, n: int = 1) -> None:
        """Adds ``n`` independent runs of ``event``.

        Raises:
            InvalidEvent: if ``event`` is not an event.
            InvalidParameter: if ``n`` is not an int >= 1.
            UnsupportedEvent: if some part has no proved curve; then nothing was added.
            AdjacencyMismatch: if some part is proved under another adjacency; as above.
        """
        if not isinstance(event, Event):
            raise InvalidEvent(f"expected a privacy event, found {type(event).__name__}")
        times = _checked_times(n)
        parts = [(leaf, count * times) for leaf, count in leaves(event)]
        for leaf, _ in parts:
            leaf_curve(leaf, _PROBE, self._adjacency)  # refuses what it does not know
        for orders, total in self._totals.items():
            for leaf, count in parts:
                add_curve(total, count, leaf_curve(leaf, orders, self._adjacency))
        for leaf, count in parts:
            self._counts[leaf] = self._counts.get(leaf, 0) + count

    def __add__(self, other: RDPAccountant) -> RDPAccountant:
        """The accountant of both histories on the same data set.

        Raises:
            AdjacencyMismatch: if the neighbour relations differ.
            InvalidParameter: if the orders differ.
        """
        if not isinstance(other, RDPAccountant):
            return NotImplemented
        if self._adjacency is not other._adjacency:
            raise AdjacencyMismatch(
                f"cannot add a {other._adjacency} history to a {self._adjacency} one: "
                "account for both under one adjacency"
            )
        if self._grid is not other._grid or self._refines is not other._refines:
            raise InvalidParameter("cannot add accountants with different orders")
        result = RDPAccountant(adjacency=self._adjacency)
        result._grid, result._refines = self._grid, self._refines
        result._counts = dict(self._counts)
        result._totals = {orders: total.copy() for orders, total in self._totals.items()}
        for leaf, count in other._counts.items():
            result.compose(leaf, count)
        return result

    def curve(self) -> RDPCurve:
        """The composed RDP curve on this accountant's grid."""
        return RDPCurve(
            orders=tuple(self._grid.values.tolist()),
            values=tuple(self._total(self._grid).tolist()),
            adjacency=self._adjacency,
            delta=self._slack(),
        )

    def epsilon(self, delta: float) -> Bound:
        """The smallest epsilon that the curve proves for this delta.

        Warns:
            OrderAtEdgeWarning: if the best order is the first or the last of the grid.

        Raises:
            InvalidParameter: unless 0 < delta < 1.
        """
        return self._epsilon(self._total, checked_delta(delta), self._slack())

    def epsilon_if(self, events: Iterable[Event], delta: float) -> Bound:
        """The epsilon there would be with these events as well. Nothing is composed.

        Cheap after many releases: only the new curves are added.

        Raises:
            InvalidParameter: unless 0 < delta < 1.
            UnsupportedEvent: if some part has no proved curve.
        """
        more = tuple(events)
        slack = self._slack(part for event in more for part in leaves(event))
        return self._epsilon(
            lambda orders: self._total_with(more, orders), checked_delta(delta), slack
        )

    def epsilon_at(self, order: float, delta: float) -> Bound:
        """The epsilon that one declared order proves for this delta.

        Raises:
            InvalidParameter: unless 0 < delta < 1 and the order is in [1.01, 65536].
        """
        delta = checked_delta(delta)
        orders = Orders.of((order,))
        left = delta - self._slack()
        if left <= 0:
            return self._bound(math.inf, delta, order=None)
        value = float(orders.to_epsilon(self._total(orders), left)[0])
        return self._bound(max(0.0, value), delta, order=order)

    def delta(self, epsilon: float) -> Bound:
        """The smallest delta that the curve proves for this epsilon, on the grid.

        Returns:
            The statement, with ``value`` = epsilon and the answer in ``delta``.

        Raises:
            InvalidParameter: unless epsilon is finite and >= 0.
        """
        epsilon = checked_epsilon(epsilon)
        logs = self._grid.to_log_delta(self._total(self._grid), epsilon)
        index = int(np.argmin(logs))
        proved = min(1.0, math.exp(min(0.0, float(logs[index]))))
        return self._bound(
            epsilon,
            min(1.0, min(proved, _total_variation(self._total(self._grid))) + self._slack()),
            order=float(self._grid.values[index]),
        )

    def _slack(self, more: Iterable[tuple[Event, int]] = ()) -> float:
        """The probability that (epsilon, delta)-private events fail; taken off every delta."""
        return slack_of([*self._counts.items(), *more])

    def _epsilon(self, curve: Callable[[Orders], Floats], delta: float, slack: float) -> Bound:
        left = delta - slack
        if left <= 0:
            return self._bound(math.inf, delta, order=None)
        if _total_variation(curve(self._grid)) <= left:
            return self._bound(0.0, delta, order=float(self._grid.values[0]))
        if self._refines:
            value, order, index = best_order(curve, left, grid=self._grid)
        else:
            values = self._grid.to_epsilon(curve(self._grid), left)
            index = int(np.argmin(values))
            value, order = float(values[index]), float(self._grid.values[index])
        if math.isinf(value):
            return self._bound(math.inf, delta, order=None)
        self._warn_at_edge(index, value)
        return self._bound(max(0.0, value), delta, order=order)

    def _total(self, orders: Orders) -> Floats:
        """The sum of all curves; the last few sets of orders asked for are kept up to date."""
        total = self._totals.pop(orders, None)
        if total is None:
            total = np.zeros(len(orders))
            for leaf, count in self._counts.items():
                add_curve(total, count, leaf_curve(leaf, orders, self._adjacency))
            while len(self._totals) >= _KEPT_TOTALS:
                self._totals.pop(next(iter(self._totals)))
        self._totals[orders] = total  # last in, so that the least used one is the first to go
        return total

    def _total_with(self, events: Iterable[Event], orders: Orders) -> Floats:
        total = self._total(orders)
        for event in events:
            total = total + total_curve(event, orders, self._adjacency)
        return total

    def _warn_at_edge(self, index: int, value: float) -> None:
        if value > 0 and index in (0, len(self._grid) - 1):
            edge = float(self._grid.values[index])
            warnings.warn(
                f"the best RDP order is {edge:g}, at the edge of the grid: epsilon {value:.6g} is "
                "valid but may be loose; give other orders or check the parameters",
                OrderAtEdgeWarning,
                stacklevel=4,
            )

    def _bound(self, value: float, delta: float, *, order: float | None) -> Bound:
        return Bound(
            value=value,
            kind=BoundKind.UPPER,
            method=Method.RDP,
            delta=delta,
            adjacency=self._adjacency,
            order=order,
        )

    def __repr__(self) -> str:
        return f"RDPAccountant(adjacency={self._adjacency.value!r}, events={len(self._counts)})"


_PROBE = Orders.of((2.0,))


def _total_variation(curve: Floats) -> float:
    """An upper bound on the total variation distance, from KL <= eps(a) for every a > 1.

    Bretagnolle, Huber 1979: TV <= sqrt(1 - e^-KL); then (0, TV)-DP holds.
    """
    return math.sqrt(-math.expm1(-float(curve[0])))


def epsilon(
    event: Event,
    delta: float,
    *,
    adjacency: Adjacency | str,
    method: Method | str = Method.AUTO,
) -> Bound:
    """The epsilon of one event (tree) at this delta.

    Args:
        event: what is released in all.
        delta: 0 < delta < 1.
        adjacency: the neighbour relation of the claim; no default.
        method: ``auto`` is exact if all events are unsampled Gaussians or trees of them (of kind
            ``upper`` if a tree's sensitivity is only bounded), else the smaller one of PLD (where
            dp-accounting is installed and right for the event) and RDP.

    Raises:
        InvalidParameter: for a delta, an adjacency or a method that is not possible.
        UnsupportedEvent: if no proved cost is known by this method.
        AdjacencyMismatch: if a part is proved under another adjacency.
        MissingExtra: if ``pld`` is asked for and dp-accounting is not installed.

    >>> epsilon(Gaussian(noise_multiplier=1.0), 1e-5, adjacency="replace-one").kind.value
    'exact'
    """
    adjacency = Adjacency.of(adjacency)
    method = Method.of(method)
    if method is Method.INTERVAL:
        raise InvalidParameter("an interval is no single epsilon: call accounting.interval")
    delta = checked_delta(delta)
    if not isinstance(event, Event):
        raise InvalidEvent(f"expected a privacy event, found {type(event).__name__}")
    if method is Method.PLD:
        return _by_pld(event, delta, adjacency)
    if method is not Method.RDP:
        gaussian = _as_gaussian(event, adjacency)
        if gaussian is not None:
            return Bound(
                value=gaussian_epsilon(gaussian.mu, delta),
                kind=gaussian.kind,
                method=Method.EXACT,
                delta=delta,
                adjacency=adjacency,
            )
        if method is Method.EXACT:
            raise UnsupportedEvent(
                f"only unsampled Gaussians have an exact epsilon here, found {event}: use rdp",
                event=event,
            )
    accountant = RDPAccountant(adjacency=adjacency)
    if method is Method.AUTO:
        return _smaller(event, delta, accountant)
    accountant.compose(event)
    return accountant.epsilon(delta)


def _by_pld(event: Event, delta: float, adjacency: Adjacency) -> Bound:
    from accounting.pld import pld_epsilon  # noqa: PLC0415  # it stands on this module

    return pld_epsilon(event, delta, adjacency=adjacency)


def _smaller(event: Event, delta: float, accountant: RDPAccountant) -> Bound:
    """The smaller one of two valid upper bounds; the only one, where there is but one."""
    from accounting.pld import pld_available, pld_supports  # noqa: PLC0415  # as above

    tight = None
    if pld_supports(event, accountant.adjacency) and pld_available():
        with contextlib.suppress(UnsupportedEvent):  # a grid too large
            tight = _by_pld(event, delta, accountant.adjacency)
    try:
        accountant.compose(event)
    except UnsupportedEvent:
        if tight is None:
            raise
        return tight
    if tight is None:
        return accountant.epsilon(delta)
    with warnings.catch_warnings():  # a loose RDP bound does not matter here
        warnings.simplefilter("ignore", OrderAtEdgeWarning)
        upper = accountant.epsilon(delta)
    return tight if tight.value <= upper.value else upper


# --- the exact Gaussian -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _GaussianDP:
    mu: float
    kind: BoundKind  # exact, or upper where mu itself is one


def _as_gaussian(event: Event, adjacency: Adjacency) -> _GaussianDP | None:
    """Gaussian DP with mu^2 = sum n / z^2 (replace-one: four times that); None if mixed.

    A tree is one Gaussian release of squared sensitivity V, which is sometimes only bounded.
    """
    shifts, kind = [], BoundKind.EXACT
    for leaf, count in leaves(event):
        squared = 1
        if isinstance(leaf, Gaussian):
            z: float | None = leaf.noise_multiplier
        elif isinstance(leaf, NoiseShares | Group):
            z = _shared_z(leaf, adjacency)
        elif isinstance(leaf, Tree) and adjacency is Adjacency.ZERO_OUT:
            found = tree_squared_sensitivity(leaf.steps, leaf.participations, leaf.min_sep)
            z, squared = leaf.noise_multiplier, found.squared
            kind = kind if found.exact else BoundKind.UPPER
        else:
            return None
        if z is None:
            return None
        shifts.append(math.sqrt(count_weight(count * squared)) / z)
    scale = 2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0
    return _GaussianDP(mu=scale * math.hypot(*shifts), kind=kind)


def _shared_z(event: NoiseShares | Group, adjacency: Adjacency) -> float | None:
    """The z of noise shares or a group around Gaussians; None around anything else."""
    from accounting.derived import group_event  # noqa: PLC0415  # it stands on this module

    if isinstance(event, NoiseShares):
        return combined_gaussian(event, adjacency)
    if combined_gaussian(event.event, adjacency) is None:
        return None
    return combined_gaussian(group_event(event), adjacency)


# Gauss-Legendre nodes and weights on [0, 1]; 20 leave no error that doubles could show for mu <= 1.
_NODES, _WEIGHTS = (np.asarray(part) for part in np.polynomial.legendre.leggauss(20))
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2
# Relative errors of gaussian_delta and of what stands around it; a test holds them below.
_SLACK = 1e-11


def gaussian_delta(mu: float, value: float) -> float:
    """Delta of mu-Gaussian DP at epsilon ``value``: Phi(m/2 - e/m) - e^e Phi(-m/2 - e/m).

    (Balle, Wang 2018, Theorem 8.) With x = e/m - m/2, the density phi and Mills' ratio R = Q/phi
    it is phi(x) (R(x) - R(x + m)). For m <= 1 the difference is the integral of -R'(t) = 1 - t R(t)
    from x to x + m: no two nearly equal numbers are subtracted, however small m is.

    Args:
        mu: m > 0.
        value: epsilon >= 0.

    Returns:
        Delta with a relative error below 1e-11, where it is a normal float.
    """
    x = value / mu - mu / 2
    density = math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    if mu > 1:
        return max(0.0, float(ndtr(-x)) - density * float(_mills(np.float64(x + mu))))
    if density == 0:
        return 0.0
    t = x + mu * _NODES
    return density * mu * float(_WEIGHTS @ (1 - t * _mills(t)))


def _mills(t: Any) -> Any:
    """Q(t) / phi(t)."""
    return math.sqrt(math.pi / 2) * erfcx(t / math.sqrt(2))


@lru_cache(maxsize=4096)
def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon of mu-Gaussian DP at this delta, rounded to the safe side."""
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return math.inf
    aim = delta * (1 - _SLACK)
    if gaussian_delta(mu, 0.0) <= aim:
        return 0.0
    # Enough by zCDP; where mu is below all floats' roots the product may underflow.
    low, high = 0.0, max(mu * (mu / 2 + math.sqrt(2 * -math.log(delta))), _TINY)
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):  # no float is left between two subnormal ones
            break
        if gaussian_delta(mu, middle) <= aim:
            high = middle
        else:
            low = middle
    return high
