"""A budget for releases that may depend on each other: ticks, :class:`Filter`, :class:`Odometer`.

A privacy filter lets the next release depend on everything seen so far, even the decision to
stop, and still guarantees the declared (epsilon, delta), provided that one Renyi order a* is fixed
before the data are touched and releases are admitted while the sum of their RDP at a* stays within
B (Feldman, Zrnic 2021, arXiv 2008.11193). Picking the best order afresh every round is no filter.
``docs/proofs/filter.md`` has the statements and the proofs for the ticks.

Charges are integers, so that sums are exact, commute and cost O(1) per round: one tick is 2^-40
of RDP, every charge is rounded up after the factor 1 + 2^-29, which pays for the curves' relative
error of 1e-9, and the budget is rounded down. Releases that are only (epsilon, delta)-private are
also charged their delta, in ticks of 2^-64, against a reserve declared beforehand.

The ledger keeps the same sums in a file; a :class:`Filter` forgets them with its process. This
module knows no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

from accounting.accountant import RDPAccountant, checked_delta, checked_epsilon
from accounting.curves import MAX_ORDER, MIN_ORDER, Orders, total_curve
from accounting.errors import BudgetExceeded, InvalidParameter, UnsupportedEvent
from accounting.events import Adjacency, ApproxDP, Event, leaves

__all__ = [
    "FAILURE_TICKS_PER_UNIT",
    "MAX_TICKS",
    "TICKS_PER_UNIT",
    "Filter",
    "Odometer",
    "budget_ticks",
    "check_order",
    "checked_reserve",
    "failure_ticks",
    "floor_ticks",
    "less_reserve",
    "price",
    "refusal",
    "refuse_failure",
    "reserve_ticks",
    "spent_epsilon",
    "to_rdp",
]

TICKS_PER_UNIT = 1 << 40
FAILURE_TICKS_PER_UNIT = 1 << 64
MAX_TICKS = 1 << 62  # sums of two of them still fit SQLite's signed 64-bit integers
_SLACK = 29


# --- ticks --------------------------------------------------------------------------------------


def budget_ticks(epsilon: float, delta: float, order: float) -> int:
    """B in ticks: floor(2^40 (eps - ln(1-1/a) + (ln delta + ln a)/(a-1))) at order a.

    Raises:
        InvalidParameter: if the order is outside [1.01, 65536], or the budget would be below one
            tick or above 2^62 ticks.
    """
    check_order(order)
    budget = epsilon - math.log1p(-1 / order) + (math.log(delta) + math.log(order)) / (order - 1)
    return _budget_in_ticks(budget, epsilon, delta, order)


def check_order(order: float) -> None:
    """Refuses an order that cannot be declared.

    Raises:
        InvalidParameter: outside [1.01, 65536].
    """
    if not MIN_ORDER <= order <= MAX_ORDER:
        raise InvalidParameter(f"order must be in [{MIN_ORDER}, {MAX_ORDER}], found {order!r}")


def _budget_in_ticks(budget: float, epsilon: float, delta: float, order: float) -> int:
    ticks = budget * TICKS_PER_UNIT  # a power of two: the product is exact
    if not 1 <= ticks <= MAX_TICKS:
        raise InvalidParameter(
            f"order {order:g} leaves an RDP budget of {budget:.6g} for epsilon {epsilon:g} at "
            f"delta {delta:g}: declare the order of the calibrated plan (achieved.order)"
        )
    return math.floor(ticks)


def price(event: Event, *, order: float, adjacency: Adjacency) -> int | None:
    """What an event is charged: ceil(2^40 (1 + 2^-29) eps(a*)) ticks, at least 1.

    For an event with (epsilon, delta)-private parts this is the cost outside of their failures,
    whose probability is :func:`failure_ticks`: one is never right without the other.

    Returns:
        The ticks; None if the cost is infinite or beyond 2^62 ticks, which fits no budget.

    Raises:
        UnsupportedEvent: if no proved curve is known.
    """
    cost = _cost_at(event, order, adjacency)
    return _ceil_ticks(cost, numerator=(1 << _SLACK) + 1, shift=_SLACK)


def floor_ticks(event: Event, *, order: float, adjacency: Adjacency) -> int | None:
    """The least that a verifier accepts: 2^40 eps(a*) rounded up, without the factor.

    Two numerical libraries may differ in an event's last bits; the factor is the room for that.
    """
    return _ceil_ticks(_cost_at(event, order, adjacency), numerator=1, shift=0)


@lru_cache(maxsize=8192)
def _cost_at(event: Event, order: float, adjacency: Adjacency) -> float:
    return float(total_curve(event, Orders.of((order,)), adjacency)[0])


def _ceil_ticks(cost: float, *, numerator: int, shift: int) -> int | None:
    if not cost < MAX_TICKS / TICKS_PER_UNIT / 2:
        return None
    top, bottom = cost.as_integer_ratio()
    return -(-(top * TICKS_PER_UNIT * numerator) // (bottom << shift))  # rounded up: at least 1


@lru_cache(maxsize=8192)
def failure_ticks(event: Event) -> int:
    """The sum of all deltas of (epsilon, delta)-private parts, in ticks of 2^-64, rounded up.

    Computed in exact fractions, so that every reader finds the same number. 0 for other events.
    """
    total = sum(
        (count * Fraction(leaf.delta) for leaf, count in leaves(event) if type(leaf) is ApproxDP),
        Fraction(0),
    )
    return math.ceil(total * FAILURE_TICKS_PER_UNIT)


def reserve_ticks(delta_reserve: float) -> int:
    """A declared reserve of delta in ticks of 2^-64, rounded down."""
    return math.floor(Fraction(delta_reserve) * FAILURE_TICKS_PER_UNIT)


def checked_reserve(value: object, delta: float) -> float:
    """A reserve of delta, 0 <= value < delta, as a float.

    Raises:
        InvalidParameter: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < delta:
        raise InvalidParameter(f"delta_reserve must be in [0, delta = {delta:g}), found {value!r}")
    return float(value)


def less_reserve(delta: float, delta_reserve: float) -> float:
    """Delta - delta_reserve, rounded down."""
    return math.nextafter(delta - delta_reserve, 0.0) if delta_reserve else delta


def spent_epsilon(ticks: int, *, delta: float, order: float) -> float:
    """The epsilon that the declared order proves after so many ticks, at least 0."""
    offset = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    return max(0.0, to_rdp(ticks) + offset) if ticks else 0.0


def to_rdp(ticks: int) -> float:
    """Ticks as RDP at the declared order, for people to read; decisions are made in ticks."""
    return ticks / TICKS_PER_UNIT


def refusal(
    event: Event,
    *,
    order: float,
    spent: int,
    requested: int | None,
    limit: int,
    promise: tuple[float, float],
) -> BudgetExceeded:
    """The error for a release that does not fit, in RDP at the declared order."""
    cost = math.inf if requested is None else to_rdp(requested)
    epsilon, delta = promise
    return BudgetExceeded(
        f"{event} costs {cost:.6g} RDP at order {order:g}; {to_rdp(spent):.6g} of "
        f"{to_rdp(limit):.6g} are taken (epsilon {epsilon:g}, delta {delta:g}): stop here, or "
        "declare less per round in a new plan",
        spent=to_rdp(spent),
        requested=cost,
        limit=to_rdp(limit),
    )


def refuse_failure(event: Event, *, spent: int, limit: int) -> None:
    """Raises unless the event's probability of failure fits what is left of the reserve of delta.

    Raises:
        UnsupportedEvent: if no reserve was declared.
        BudgetExceeded: if it is used up; the three numbers are then probabilities.
    """
    ticks = failure_ticks(event)
    if ticks <= limit - spent:
        return
    shown, unit = ticks / FAILURE_TICKS_PER_UNIT, FAILURE_TICKS_PER_UNIT
    if not limit:
        raise UnsupportedEvent(
            f"{event} is only private outside of a failure of probability {shown:.3g}, and no "
            "part of delta was set aside for that: declare a delta_reserve beforehand",
            event=event,
        )
    raise BudgetExceeded(
        f"{event} fails with probability {shown:.3g}; {spent / unit:.3g} of the reserve of delta "
        f"{limit / unit:.3g} are taken: stop here, or declare a larger reserve in a new plan",
        spent=spent / unit,
        requested=shown,
        limit=limit / unit,
    )


# --- the filter ---------------------------------------------------------------------------------


class _Sums:
    """What was charged so far at each declared order, and to the reserve of delta."""

    def __init__(self, orders: Iterable[float], adjacency: Adjacency | str) -> None:
        self.orders = tuple(float(order) for order in orders)
        self.adjacency = Adjacency.of(adjacency)
        if not self.orders or len(set(self.orders)) != len(self.orders):
            raise InvalidParameter(f"orders must be different numbers, found {self.orders}")
        for order in self.orders:
            check_order(order)
        self.spent: tuple[int | None, ...] = (0,) * len(self.orders)  # None: without limit
        self.failures = 0
        self.releases = 0

    def prices(self, event: Event) -> tuple[int | None, ...]:
        return tuple(price(event, order=a, adjacency=self.adjacency) for a in self.orders)

    def with_prices(self, prices: Iterable[int | None]) -> tuple[int | None, ...]:
        pairs = zip(self.spent, prices, strict=True)
        return tuple(None if old is None or new is None else old + new for old, new in pairs)

    def take(self, spent: tuple[int | None, ...], event: Event) -> None:
        self.spent = spent
        self.failures += failure_ticks(event)
        self.releases += 1


class Filter:
    """A gate in memory: releases are admitted while the declared (epsilon, delta) holds.

    Guarantee: whatever is released under ``admit``, in any number and order, each release chosen
    in view of all earlier outputs, and stopped for any reason: all outputs together are
    (epsilon, delta)-differentially private under ``adjacency``. Not covered: releases that were
    not admitted first, and an order or a budget chosen after looking at the data. It forgets with
    its process; a :class:`~accounting.Ledger` does not.

    With several orders, each has the budget epsilon - ln(k / delta)/(a - 1) (k orders), and a
    release is admitted while at least one order has room. One order has the sharper
    epsilon - ln(1 - 1/a) + (ln delta + ln a)/(a - 1): take several only if the plan is unknown.

    Args:
        plan: what is planned; its best order becomes the declared one. None if ``orders`` is given.
        epsilon: the promise, > 0.
        delta: the promise, in (0, 1).
        adjacency: the neighbour relation.
        orders: the declared orders, in [1.01, 65536], in place of the plan's; whole ones where
            events with whole-order costs (Skellam, sampled Laplace) are to come.
        delta_reserve: part of ``delta``, set aside for (epsilon, delta)-private releases.

    Raises:
        InvalidParameter: for impossible values, or an order that leaves no budget.

    >>> from accounting import Filter, Gaussian, Repeat
    >>> step = Gaussian(noise_multiplier=20.0)
    >>> gate = Filter(Repeat(event=step, count=100), 3.0, 1e-5, adjacency="zero-out")
    >>> while gate.fits(step):
    ...     gate.admit(step)
    >>> gate.releases
    169
    """

    def __init__(
        self,
        plan: Event | None,
        epsilon: float,
        delta: float,
        *,
        adjacency: Adjacency | str,
        orders: Iterable[float] | None = None,
        delta_reserve: float = 0.0,
    ) -> None:
        self.epsilon = checked_epsilon(epsilon)
        self.delta = checked_delta(delta)
        if (plan is None) == (orders is None):
            raise InvalidParameter("give either a plan or the orders, not both and not neither")
        reserve = checked_reserve(delta_reserve, self.delta)
        left = less_reserve(self.delta, reserve)
        if plan is not None:
            orders = (_best_order(plan, left, adjacency),)
        self._sums = _Sums(orders or (), adjacency)
        self._limits = _limits(self._sums.orders, self.epsilon, left)
        self._failure_limit = reserve_ticks(reserve)

    @property
    def adjacency(self) -> Adjacency:
        """The neighbour relation of the promise."""
        return self._sums.adjacency

    @property
    def orders(self) -> tuple[float, ...]:
        """The declared orders."""
        return self._sums.orders

    @property
    def limits(self) -> tuple[int, ...]:
        """The budget at each order, in ticks of 2^-40."""
        return self._limits

    @property
    def spent(self) -> tuple[int | None, ...]:
        """What was admitted, at each order in ticks of 2^-40; None for no finite sum."""
        return self._sums.spent

    @property
    def releases(self) -> int:
        """How many releases were admitted."""
        return self._sums.releases

    def fits(self, event: Event) -> bool:
        """Whether :meth:`admit` would admit this event now; O(1) in the number of releases.

        Raises:
            UnsupportedEvent: if the event has no proved cost, or can fail and no reserve of delta
                was declared.
        """
        try:
            self._sums_with(event)
        except BudgetExceeded:
            return False
        return True

    def admit(self, event: Event) -> None:
        """Charges a release, before it happens.

        Raises:
            BudgetExceeded: if it does not fit; nothing was charged, and it must not be released.
            UnsupportedEvent: as :meth:`fits`.
        """
        self._sums.take(self._sums_with(event), event)

    def _sums_with(self, event: Event) -> tuple[int | None, ...]:
        refuse_failure(event, spent=self._sums.failures, limit=self._failure_limit)
        prices = self._sums.prices(event)
        after = self._sums.with_prices(prices)
        if any(s is not None and s <= b for s, b in zip(after, self._limits, strict=True)):
            return after
        # Told at the order that was last to give way.
        _, index = max((-math.inf if s is None else b - s, i) for i, (s, b) in self._pairs())
        raise refusal(
            event,
            order=self.orders[index],
            spent=self.spent[index] or 0,
            requested=prices[index],
            limit=self._limits[index],
            promise=(self.epsilon, self.delta),
        )

    def _pairs(self) -> Iterable[tuple[int, tuple[int | None, int]]]:
        return enumerate(zip(self.spent, self._limits, strict=True))

    def __repr__(self) -> str:
        return (
            f"Filter(epsilon={self.epsilon:g}, delta={self.delta:g}, "
            f"adjacency={self.adjacency.value!r}, orders={self.orders}, releases={self.releases})"
        )


def _best_order(plan: Event, delta: float, adjacency: Adjacency | str) -> float:
    accountant = RDPAccountant(adjacency=adjacency)
    accountant.compose(plan)
    bound = accountant.epsilon(delta)
    if bound.order is None:
        raise InvalidParameter("the plan has no finite cost at any order: give orders, or noise")
    return bound.order


def _limits(orders: tuple[float, ...], epsilon: float, delta: float) -> tuple[int, ...]:
    if len(orders) == 1:
        return (budget_ticks(epsilon, delta, orders[0]),)
    log_inverse = math.log(len(orders)) - math.log(delta)
    return tuple(
        _budget_in_ticks(epsilon - log_inverse / (a - 1), epsilon, delta, a) for a in orders
    )


class Odometer:
    """A running bound on the privacy loss that was really incurred, good at all times at once.

    Guarantee: for neighbouring data sets D, D' and outputs drawn from D, let loss_t be the log of
    the likelihood ratio of everything released up to t. With probability at least 1 - ``delta``,
    loss_t <= ``loss_bound`` after release t, for every t at the same time, however each release
    was chosen in view of the earlier ones. That is a statement about what happened, not a budget:
    a run that stops when the odometer shows 3 is not (3, delta)-differentially private by that
    (use a :class:`Filter`), and the plain epsilon of an accountant is for fixed plans only.

    Args:
        orders: the declared orders, in [1.01, 65536], fixed beforehand; k of them share delta.
        delta: probability with which the bound may fail, in (0, 1).
        adjacency: the neighbour relation.

    >>> from accounting import Gaussian, Odometer
    >>> odometer = Odometer(20.0, 1e-5, adjacency="zero-out")
    >>> odometer.charge(Gaussian(noise_multiplier=10.0))
    >>> f"{odometer.loss_bound:.3f}"
    '0.706'
    """

    def __init__(
        self, orders: float | Iterable[float], delta: float, *, adjacency: Adjacency | str
    ) -> None:
        self.delta = checked_delta(delta)
        declared = (float(orders),) if isinstance(orders, int | float) else orders
        self._sums = _Sums(declared, adjacency)
        self._log_inverse = math.log(len(self._sums.orders)) - math.log(self.delta)

    @property
    def orders(self) -> tuple[float, ...]:
        """The declared orders."""
        return self._sums.orders

    @property
    def releases(self) -> int:
        """How many releases were charged."""
        return self._sums.releases

    def charge(self, event: Event) -> None:
        """Adds a release, before it happens. Its event must be fixed by the outputs before it.

        Raises:
            UnsupportedEvent: if the event has no proved cost, or is only (epsilon, delta)-private:
                its loss has no bound outside of a failure that an outsider could tell.
        """
        refuse_failure(event, spent=0, limit=0)
        self._sums.take(self._sums.with_prices(self._sums.prices(event)), event)

    @property
    def loss_bound(self) -> float:
        """Min over orders of sum_t + ln(k / delta)/(a - 1); 0 before the first release."""
        if not self.releases:
            return 0.0
        pairs = zip(self._sums.spent, self.orders, strict=True)
        return min(
            math.inf if ticks is None else to_rdp(ticks) + self._log_inverse / (a - 1)
            for ticks, a in pairs
        )

    def __repr__(self) -> str:
        return f"Odometer(orders={self.orders}, delta={self.delta:g}, releases={self.releases})"
