"""The orders of Renyi curves: a fixed set of them with what depends on the orders alone.

The conversion to (epsilon, delta) is that of Canonne, Kamath, Steinke 2020 (arXiv 2004.00010),
Prop. 12. This module knows no mechanism and no event.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from accounting.errors import InvalidParameter

__all__ = ["DEFAULT_ORDERS", "MAX_ORDER", "MIN_ORDER", "Floats", "Orders", "between_whole_orders"]

Floats: TypeAlias = NDArray[np.float64]

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
