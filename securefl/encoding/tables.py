"""Tables of two noise laws on the integers, with a proved distance to the true law.

A table holds floor(2^128 P[X <= k]) for |k| < K; drawing from it is exact up to these 128 bits and
to what lies beyond K, about fourteen standard deviations. Every quantity on the way is kept as a
lower and an upper bound in integer arithmetic, so that the distance is not estimated but computed:
with L <= W <= U, the sums of the lower bounds, the true weights and the upper bounds, the law that
is proportional to the lower bounds is within (W - L)/W <= (U - L)/L of the truth in total
variation, and rounding 2K numbers down to 128 bits adds at most (K + 1) 2^-128 more. Building fails
if this exceeds 2^-106.

Weights are relative to that of 0. Discrete Gaussian of parameter s^2: exp(-k^2 / 2 s^2). Skellam of
variance mu: I_k(mu) / I_0(mu), a product of the ratios R_k = I_k / I_{k-1}, which satisfy
R_k = 1 / (2k/mu + R_{k+1}) (Abramowitz and Stegun 1964, 9.6.26) and fall with k (Amos 1974,
*Computation of modified Bessel functions and their ratios*). Put into each other, these two give

    rho(k) <= R_k <= rho(k-1),   rho(k) = sqrt(1 + (k/mu)^2) - k/mu,

where the backward recursion starts; it shrinks an error by R_k^2 per step. Both parameters are
multiples of 2^-20, so that they are integers here. This module draws nothing.
"""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError

__all__ = [
    "MAX_DISTANCE",
    "MAX_TICKS",
    "TICKS",
    "Mechanism",
    "NoiseTable",
    "noise_table",
    "table_bound",
]

TICKS = 1 << 20
"""Parameters (variances) are integer multiples of 1/TICKS."""

MAX_TICKS = TICKS << 32
"""Largest parameter: standard deviation 2^16. Beyond it a table no longer fits the caches."""

MAX_DISTANCE = 2.0**-106
"""Largest total variation distance between a table's law and the true one."""

_P = 192  # fractional bits of weights and ratios
_ONE = 1 << _P
_GUIDE_BITS = 16


class Mechanism(StrEnum):
    """The law of a noise share."""

    SKELLAM = "skellam"
    DISCRETE_GAUSSIAN = "discrete-gaussian"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoiseTable:
    """The distribution function of a noise law, for inversion.

    Attributes:
        bound: K; draws lie in [-K, K].
        high: uint64[2K + 1], upper words of floor(2^128 P[X <= k]) for k = -K .. K - 1, ascending,
            then the largest word as an end mark.
        low: uint64[2K], the lower words.
        guide: uint16[2^16], or uint32 for tables too long for it: how many upper words lie below
            g 2^48. Narrow, so that it stays in the core's cache between two clients.
        steps: halvings that find the place in a narrow bucket of the guide, of fewer than 2^steps
            entries.
        wide: the largest number of the guide's type, which stands in the buckets that need more;
            they hold at most 2^-8 of the probability.
        distance: proved total variation distance to the true law, at most 2^-106.
    """

    bound: int
    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    guide: NDArray[np.unsignedinteger]
    steps: int
    wide: int
    distance: float


@lru_cache(maxsize=16)
def noise_table(mechanism: Mechanism, ticks: int) -> NoiseTable:
    """The table of a law; kept, since a run draws from few laws very often.

    Args:
        mechanism: Skellam or discrete Gaussian.
        ticks: mu or s^2 in multiples of 2^-20, 1 .. 2^52.

    Raises:
        ConfigurationError: on ticks out of range.
    """
    if isinstance(ticks, bool) or not isinstance(ticks, int) or not 1 <= ticks <= MAX_TICKS:
        raise ConfigurationError(
            f"the variance of a noise share must be a multiple of 2^-20 up to 2^32, found "
            f"{ticks!r} * 2^-20: lower the resolution, or spread the noise over more shares"
        )
    bound = table_bound(ticks)
    if Mechanism(mechanism) is Mechanism.SKELLAM:
        lower, upper, beyond = _skellam_weights(ticks, bound)
    else:
        lower, upper, beyond = _gaussian_weights(ticks, bound)
    return _table(lower, upper, beyond)


def table_bound(ticks: int) -> int:
    """K, the largest magnitude of a draw: fourteen standard deviations and 200 more."""
    return 14 * (math.isqrt(ticks // TICKS) + 1) + 200


def _skellam_weights(ticks: int, bound: int) -> tuple[list[int], list[int], int]:
    """Bounds on 2^192 I_k(mu) / I_0(mu), k = 0 .. bound, and on the sum of all beyond."""
    low, high = _rho(ticks, bound + 1), _rho(ticks, bound) + 1
    first_beyond = high
    scaled = ticks << (2 * _P)
    ratios: list[tuple[int, int]] = []
    for k in range(bound, 0, -1):
        # 1 / (2k/mu + R) with mu = ticks / 2^20, over the common denominator 2^192 ticks.
        twice_k = k << (21 + _P)
        low, high = scaled // (twice_k + ticks * high), scaled // (twice_k + ticks * low) + 1
        ratios.append((low, high))
    below, above = _ONE, _ONE
    lower, upper = [below], [above]
    for low, high in reversed(ratios):
        below, above = (below * low) >> _P, ((above * high) >> _P) + 1
        lower.append(below)
        upper.append(above)
    return lower, upper, _geometric_tail(above, first_beyond)


def _rho(ticks: int, k: int) -> int:
    """floor(2^192 rho(k)), or one less: rho(k) = mu / (sqrt(mu^2 + k^2) + k)."""
    k *= TICKS
    root = math.isqrt((ticks * ticks + k * k) << (2 * _P)) + 1
    return (ticks << (2 * _P)) // (root + (k << _P))


def _gaussian_weights(ticks: int, bound: int) -> tuple[list[int], list[int], int]:
    """Bounds on 2^192 exp(-k^2 / 2 s^2), k = 0 .. bound, and on the sum of all beyond."""
    with decimal.localcontext() as context:
        context.prec = 100
        base = (-decimal.Decimal(TICKS) / decimal.Decimal(2 * ticks)).exp()
        slack = decimal.Decimal(10) ** -90  # far above the two roundings of the line above
        low = max(int((base - slack) * _ONE), 0)
        high = int((base + slack) * _ONE) + 1
    square_low, square_high = (low * low) >> _P, ((high * high) >> _P) + 1
    below, above = _ONE, _ONE
    lower, upper = [below], [above]
    for _ in range(bound):  # w_k / w_{k-1} = base^(2k-1)
        below, above = (below * low) >> _P, ((above * high) >> _P) + 1
        lower.append(below)
        upper.append(above)
        low, high = (low * square_low) >> _P, ((high * square_high) >> _P) + 1
    return lower, upper, _geometric_tail(above, high)


def _geometric_tail(last: int, ratio: int) -> int:
    """Bound on w_{K+1} + w_{K+2} + ..., whose ratios fall from at most ``ratio`` on."""
    return last * ratio // (_ONE - ratio) + 1


def _table(lower: list[int], upper: list[int], beyond: int) -> NoiseTable:
    bound = len(lower) - 1
    total = 2 * sum(lower) - lower[0]
    most = 2 * sum(upper) - upper[0] + 2 * beyond
    distance = math.ldexp((((most - total) << 200) // total + 1) + ((bound + 1) << 72), -200)
    if distance > MAX_DISTANCE:
        raise ConfigurationError(
            f"the noise table is within 2^{math.log2(distance):.1f} of its law, expected 2^-106: "
            "this is a defect of the table, report it"
        )
    words = bytearray()
    cumulative = 0
    for weight in [*reversed(lower[1:]), *lower[:-1]]:
        cumulative += weight
        # Far out all of the 128-bit mass may lie below: the largest number stands for 1.
        words += min((cumulative << 128) // total, (1 << 128) - 1).to_bytes(16, "big")
    pairs = np.frombuffer(words, dtype=">u8").astype(np.uint64).reshape(-1, 2)
    high = np.append(pairs[:, 0], np.uint64((1 << 64) - 1))
    buckets = np.arange(1 << _GUIDE_BITS, dtype=np.uint64) << np.uint64(64 - _GUIDE_BITS)
    guide = np.searchsorted(high[:-1], buckets, side="left")
    widths = np.diff(guide, append=len(pairs))
    steps = _steps(widths)
    narrow = np.uint16 if len(pairs) < np.iinfo(np.uint16).max else np.uint32
    wide = int(np.iinfo(narrow).max)
    table = NoiseTable(
        bound=bound,
        high=high,
        low=np.ascontiguousarray(pairs[:, 1]),
        guide=np.where(widths >= 1 << steps, wide, guide).astype(narrow),
        steps=steps,
        wide=wide,
        distance=distance,
    )
    for array in (table.high, table.low, table.guide):
        array.flags.writeable = False
    return table


def _steps(widths: NDArray[np.int64]) -> int:
    """Fewest halvings that leave at most one bucket in 256 to the slow search."""
    steps = 0
    while np.count_nonzero(widths >= 1 << steps) > len(widths) >> 8:
        steps += 1
    return steps
