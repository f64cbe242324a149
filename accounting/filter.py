"""The arithmetic of a fully adaptive budget: whole ticks at one order declared beforehand.

A privacy filter lets the next release depend on everything seen so far, even the decision to
stop, and still guarantees the declared (epsilon, delta), provided that one Renyi order a* is fixed
before the data are touched and releases are admitted while the sum of their RDP at a* stays within
B (Feldman, Zrnic 2021, arXiv 2008.11193). Picking the best order afresh every round is no filter.
``docs/proofs/filter.md`` has the statement and the proof for the ticks.

Charges are integers, so that sums are exact, commute and cost O(1) per round: one tick is 2^-40
of RDP, every charge is rounded up after the factor 1 + 2^-29, which pays for the curves' relative
error of 1e-9, and the budget is rounded down. This module knows no file.
"""

from __future__ import annotations

import math

from accounting.curves import MAX_ORDER, MIN_ORDER, rdp_at
from accounting.errors import InvalidParameter
from accounting.events import Adjacency, Event

__all__ = [
    "MAX_TICKS",
    "TICKS_PER_UNIT",
    "budget_ticks",
    "floor_ticks",
    "price",
    "spent_epsilon",
    "to_rdp",
]

TICKS_PER_UNIT = 1 << 40
MAX_TICKS = 1 << 62  # sums of two of them still fit SQLite's signed 64-bit integers
_SLACK = 29


def budget_ticks(epsilon: float, delta: float, order: float) -> int:
    """B in ticks: floor(2^40 (eps - ln(1-1/a) + (ln delta + ln a)/(a-1))) at order a.

    Raises:
        InvalidParameter: if the order is outside [1.01, 65536], or the budget would be below one
            tick or above 2^62 ticks.
    """
    if not MIN_ORDER <= order <= MAX_ORDER:
        raise InvalidParameter(f"order must be in [{MIN_ORDER}, {MAX_ORDER}], found {order!r}")
    budget = epsilon - math.log1p(-1 / order) + (math.log(delta) + math.log(order)) / (order - 1)
    ticks = math.floor(budget * TICKS_PER_UNIT)  # a power of two: the product is exact
    if not 1 <= ticks <= MAX_TICKS:
        raise InvalidParameter(
            f"order {order:g} leaves an RDP budget of {budget:.6g} for epsilon {epsilon:g} at "
            f"delta {delta:g}: declare the order of the calibrated plan (achieved.order)"
        )
    return ticks


def price(event: Event, *, order: float, adjacency: Adjacency) -> int | None:
    """What an event is charged: ceil(2^40 (1 + 2^-29) eps(a*)) ticks, at least 1.

    Returns:
        The ticks; None if the cost is infinite or beyond 2^62 ticks, which fits no budget.

    Raises:
        UnsupportedEvent: if no proved curve is known.
    """
    cost = rdp_at(event, order, adjacency)
    return _ceil_ticks(cost, numerator=(1 << _SLACK) + 1, shift=_SLACK)


def floor_ticks(event: Event, *, order: float, adjacency: Adjacency) -> int | None:
    """The least that a verifier accepts: 2^40 eps(a*) rounded up, without the factor.

    Two numerical libraries may differ in an event's last bits; the factor is the room for that.
    """
    return _ceil_ticks(rdp_at(event, order, adjacency), numerator=1, shift=0)


def _ceil_ticks(cost: float, *, numerator: int, shift: int) -> int | None:
    if not cost < MAX_TICKS / TICKS_PER_UNIT / 2:
        return None
    top, bottom = cost.as_integer_ratio()
    return -(-(top * TICKS_PER_UNIT * numerator) // (bottom << shift))  # rounded up: at least 1


def spent_epsilon(ticks: int, *, delta: float, order: float) -> float:
    """The epsilon that the declared order proves after so many ticks, at least 0."""
    offset = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    return max(0.0, to_rdp(ticks) + offset) if ticks else 0.0


def to_rdp(ticks: int) -> float:
    """Ticks as RDP at the declared order, for people to read; decisions are made in ticks."""
    return ticks / TICKS_PER_UNIT
