"""The noise, the steps, the sampling rate or the cohort that meets a target (epsilon, delta).

The search is Brent's method on the logarithm for noise and rate, doubling and bisection for
steps, and always ends on the safe side of the target.

Head-room. A plan calibrated here must fit into a ledger declared with the same epsilon, delta and
the order ``achieved.order``, although the ledger rounds every charge up: by the factor 1 + 2^-29
and to whole ticks of 2^-40. The search therefore aims at epsilon - (1e-6 epsilon + 2e-7), which
pays for the factor and for 1e5 reservations (1e5 ticks are 9.1e-8); for epsilon below 5e-4 the
head-room is limited to 4e-4 of epsilon. This module knows no ledger beyond that number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accounting.accountant import (
    Bound,
    BoundKind,
    Method,
    checked_delta,
    checked_epsilon,
    epsilon,
)
from accounting.choice import Choice
from accounting.curves import (
    DEFAULT_ORDERS,
    Floats,
    Orders,
    best_order,
    slack_delta,
    total_curve,
)
from accounting.errors import CalibrationError, InvalidEvent, InvalidParameter, UnsupportedEvent
from accounting.events import MAX_COUNT, Adjacency, Event
from accounting.pld import pld_supports

__all__ = ["Calibration", "Over", "calibrate", "headroom"]

_SMALLEST_NOISE, _LARGEST_NOISE = 1e-4, 1e9
_SMALLEST_RATE = 1e-12
_MOST_STEPS = 1 << 40
_REMEMBERED = 1024


class Over(Choice):
    """Which parameter :func:`calibrate` searches."""

    NOISE_MULTIPLIER = "noise_multiplier"
    STEPS = "steps"
    SAMPLE_RATE = "sample_rate"
    COHORT = "cohort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The answer of :func:`calibrate`.

    Attributes:
        value: the noise multiplier, the rate, or the number of steps or units (an int).
        achieved: the bound at that value; ``achieved.value <= target``.
        target: the epsilon that was asked for.
    """

    value: float
    achieved: Bound
    target: float


def headroom(target: float) -> float:
    """How far below the target epsilon the search aims; see the module's first paragraphs."""
    return min(1e-6 * target + 2e-7, 4e-4 * target)


def calibrate(
    make_event: Callable[[Any], Event],
    eps: float,
    delta: float,
    *,
    adjacency: Adjacency | str,
    over: Over | str = Over.NOISE_MULTIPLIER,
    method: Method | str = Method.RDP,
) -> Calibration:
    """Finds the least noise, the most steps, the largest rate or cohort that meets (eps, delta).

    Args:
        make_event: everything that will be released, as a function of the searched parameter: a
            float (noise multiplier, rate) or an int (steps, cohort). Its cost must be monotone in
            it. A cohort above the population may raise InvalidEvent, as ``FixedSize`` does.
        eps: target epsilon, finite and > 0.
        delta: 0 < delta < 1.
        adjacency: the neighbour relation of the claim; no default.
        over: which parameter.
        method: ``rdp`` gives the order that a ledger needs; ``exact``, ``pld`` and ``auto`` may
            not. ``pld`` is slow: seconds to minutes.

    Returns:
        ``achieved.value <= eps`` always, and >= .999 eps for noise multiplier and rate (except at
        rate 1). With ``rdp`` the plan fits into a ledger declared with the same eps and delta and
        order ``achieved.order``, split over up to 1e5 reservations (eps >= 5e-4).

    Raises:
        CalibrationError: if no value meets the target. RDP itself has a floor: about
            ln(1/delta)/4096 for noise, and higher for rates, since a rare participation with
            little noise only has small useful orders.
        InvalidParameter: for impossible arguments.

    >>> from accounting import Gaussian
    >>> plan = lambda z: Gaussian(noise_multiplier=z)
    >>> round(calibrate(plan, 1.0, 1e-5, adjacency="add-remove", method="exact").value, 3)
    3.731
    """
    target = checked_epsilon(eps)
    if target == 0:
        raise InvalidParameter("eps must be > 0, found 0")
    search = _Search(
        make_event=make_event,
        target=target,
        aim=target - headroom(target),
        delta=checked_delta(delta),
        adjacency=Adjacency.of(adjacency),
        method=Method.of(method),
    )
    over = Over.of(over)
    probes = {
        Over.NOISE_MULTIPLIER: (1.0, 2.0, 4.0),
        Over.STEPS: (1, 2, 3),
        Over.COHORT: (1, 1, 1),
        Over.SAMPLE_RATE: (0.25, 0.5, 1.0),
    }[over]
    key = (
        *(over, search.target, search.delta, search.adjacency, search.method),
        *(search.event(probe) for probe in probes),
    )
    remembered = _answers.get(key)
    # Two functions may agree on the probes only: the answer is taken over if they also agree on
    # the answer itself, so that ``achieved`` is always the bound of this caller's event.
    if remembered is not None and search.event(remembered[0].value) == remembered[1]:
        return remembered[0]
    value = {
        Over.NOISE_MULTIPLIER: _least_noise,
        Over.STEPS: _most_steps,
        Over.COHORT: _largest_cohort,
        Over.SAMPLE_RATE: _largest_rate,
    }[over](search)
    answer = Calibration(value=value, achieved=search.bound(value), target=target)
    if len(_answers) >= _REMEMBERED:
        _answers.clear()
    _answers[key] = (answer, search.event(value))
    return answer


_answers: dict[object, tuple[Calibration, Event]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    make_event: Callable[[Any], Event]
    target: float
    aim: float
    delta: float
    adjacency: Adjacency
    method: Method

    def event(self, value: float) -> Event:
        event = self.make_event(value)
        if not isinstance(event, Event):
            raise InvalidEvent(
                f"make_event must return a privacy event, found {type(event).__name__}"
            )
        return event

    def bound(self, value: float) -> Bound:
        """The bound at a value, by the plain conversion formula for RDP.

        The accountant's second rule (epsilon 0 where delta exceeds the total variation) is left
        out: it is no statement about one order, so a ledger could not reproduce it.
        """
        event = self.event(value)
        if self.method is not Method.RDP:
            other = self._by_other_method(event)
            if other.method is not Method.RDP:
                return other

        def curve(orders: Orders) -> Floats:
            return total_curve(event, orders, self.adjacency)

        left = self.delta - slack_delta(event)
        found, order = math.inf, math.inf
        if left > 0:
            found, order, _ = best_order(curve, left, grid=_GRID)
        return Bound(
            value=max(0.0, found),
            kind=BoundKind.UPPER,
            method=Method.RDP,
            delta=self.delta,
            adjacency=self.adjacency,
            order=None if math.isinf(found) else order,
        )

    def _by_other_method(self, event: Event) -> Bound:
        try:
            return epsilon(event, self.delta, adjacency=self.adjacency, method=self.method)
        except UnsupportedEvent:
            if self.method is not Method.PLD or not pld_supports(event, self.adjacency):
                raise
            # Too little noise for any grid: as good as infinite to a search for the target.
            return Bound(
                value=math.inf,
                kind=BoundKind.UPPER,
                method=Method.PLD,
                delta=self.delta,
                adjacency=self.adjacency,
            )

    def excess(self, value: float) -> float:
        """How far the bound is above the aim; <= 0 is on the safe side."""
        return self.bound(value).value - self.aim

    def refuse(self, what: str) -> CalibrationError:
        return CalibrationError(
            f"no {what} meets epsilon {self.target:g} at delta {self.delta:g} ({self.adjacency}): "
            "raise epsilon, release less, or check what make_event returns"
        )


_GRID = Orders.of(DEFAULT_ORDERS)


def _least_noise(search: _Search) -> float:
    high = 1.0
    while search.excess(high) > 0:
        high *= 4
        if high > _LARGEST_NOISE:
            raise search.refuse("noise multiplier up to 1e9")
    low = high / 4
    while search.excess(low) <= 0:
        high, low = low, low / 4
        if low < _SMALLEST_NOISE:
            raise search.refuse("need for a noise multiplier of 1e-4 or more: no finite one")
    return _safe_root(search, low, high)


def _largest_rate(search: _Search) -> float:
    if search.excess(1.0) <= 0:
        return 1.0
    high, low = 1.0, 0.25
    while search.excess(low) > 0:
        high, low = low, low / 4
        if low < _SMALLEST_RATE:
            raise search.refuse("sample rate down to 1e-12")
    return _safe_root(search, high, low)


def _safe_root(search: _Search, unsafe: float, safe: float) -> float:
    """A value just on the safe side of the root between ``unsafe`` and ``safe``."""
    from scipy.optimize import brentq  # noqa: PLC0415  # slow to import, needed here only

    log_unsafe, log_safe = math.log(unsafe), math.log(safe)

    def excess(log_value: float) -> float:
        # A finite stand-in keeps the interpolation alive where the cost overflows.
        return min(search.excess(math.exp(log_value)), 1e6)

    root = float(brentq(excess, log_unsafe, log_safe, xtol=1e-9, rtol=1e-9))
    step = math.copysign(1e-9, log_safe - log_unsafe)
    while search.excess(math.exp(root)) > 0:
        root += step
        step *= 2
    return math.exp(root)


def _largest_cohort(search: _Search) -> int:
    """By doubling and bisection; a cohort that make_event refuses is one too large."""

    def too_large(cohort: int) -> bool:
        try:
            return search.excess(cohort) > 0
        except InvalidEvent:
            return True

    search.event(1)  # an event that is wrong for other reasons is refused here
    if too_large(1):
        raise search.refuse("cohort, not even one unit,")
    low, high = 1, 2
    while not too_large(high):
        low, high = high, 2 * high
        if high > MAX_COUNT:
            raise search.refuse("finite cohort: no size uses it up, none")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if too_large(middle) else (middle, high)
    return low


def _most_steps(search: _Search) -> int:
    if search.excess(1) > 0:
        raise search.refuse("number of steps, not even one,")
    low, high = 1, 2
    while search.excess(high) <= 0:
        low, high = high, 2 * high
        if high > _MOST_STEPS:
            raise search.refuse("finite number of steps: 2^40 of them still do not use it up, none")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if search.excess(middle) <= 0 else (low, middle)
    return low
