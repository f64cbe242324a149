"""Numbers in words: upper bounds rounded up, lower bounds down; no value is computed here.

This module knows no lint and no verdict.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from accounting.accountant import Bound, BoundKind

__all__ = ["bound_text", "down", "epsilon_text", "percent", "plain", "up"]


def up(value: float, digits: int = 3) -> str:
    """``digits`` significant digits, rounded up: for what a guarantee must not exceed."""
    return _rounded(value, digits, upwards=True)


def down(value: float, digits: int = 3) -> str:
    """``digits`` significant digits, rounded down: for what is at least so."""
    return _rounded(value, digits, upwards=False)


def _rounded(value: float, digits: int, *, upwards: bool) -> str:
    if not math.isfinite(value):
        return "infinite" if value > 0 else str(value)
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    # In decimals, so that .3 stays .3 and nothing is lost by dividing floats.
    exact = Decimal(repr(value)).quantize(
        Decimal(1).scaleb(-places), ROUND_CEILING if upwards else ROUND_FLOOR
    )
    return plain(float(exact))


def plain(value: float) -> str:
    """A number as people write it: no exponent where it is readable without, no trailing zeros."""
    if isinstance(value, bool) or not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}" if abs(value) >= 1e4 else str(int(value))
    return f"{value:.6g}"


def percent(value: float) -> str:
    """A fraction as a percentage."""
    return f"{100 * value:.3g} %"


def epsilon_text(bound: Bound | None) -> str:
    """The value of a bound, rounded to the side that its kind needs; a dash for none."""
    if bound is None:
        return "–"
    if bound.kind is BoundKind.LOWER:
        return f"≥ {down(bound.value)}"
    if bound.kind is BoundKind.ESTIMATE:
        return f"about {up(bound.value)}"
    return up(bound.value) if math.isfinite(bound.value) else "no bound"


def bound_text(bound: Bound) -> str:
    """A bound with how it was found."""
    at = "" if bound.order is None else f" at order {bound.order:.4g}"
    return f"{epsilon_text(bound)} ({bound.kind}, {bound.method}{at})"
