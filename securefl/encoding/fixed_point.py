"""Step 3, first half: floats in [-C, C] as integers, Q steps per clip norm.

One step is C/Q in the units of the update. Rounding is to the nearest step, or stochastic: down or
up by a coin whose bias is the fraction, which is unbiased on average (the randomised rounding of
Suresh et al. 2017, *Distributed mean estimation with limited communication*, section 2). Neither is
differential privacy; the coins are nevertheless secret, since together with the output they would
tell more about the input than the output does. This module knows no modulus and no other client.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError

__all__ = [
    "MAX_RESOLUTION",
    "Rounding",
    "check_resolution",
    "from_steps",
    "rounding_error",
    "to_steps",
]

MAX_RESOLUTION = 1 << 32
"""Largest Q. Float64 still resolves it with room to spare; a float32 update is far coarser."""

# x * (Q / C) and its way back are rounded a handful of times, each by at most 2^-53 of a value
# that is at most Q <= 2^32 steps long: together well below 2^-18 of a step.
_FLOAT_SLACK = 2.0**-18

_COIN_BITS = 32


class Rounding(StrEnum):
    """How a value between two steps becomes an integer."""

    NEAREST = "nearest"
    STOCHASTIC = "stochastic"


def check_resolution(resolution: int) -> None:
    """Refuses a Q that is no integer in 1..2^32.

    Raises:
        ConfigurationError: with the number found.
    """
    if isinstance(resolution, bool) or not isinstance(resolution, int):
        raise ConfigurationError(
            f"resolution must be an int (steps per clip norm), found {type(resolution).__name__}"
        )
    if not 1 <= resolution <= MAX_RESOLUTION:
        raise ConfigurationError(f"resolution must be in 1..2^32, found {resolution}")


def rounding_error(*, clip_norm: float, resolution: int, rounding: Rounding) -> float:
    """Largest error of one coordinate of one vector, in the units of the update.

    C/(2Q) to the nearest step, C/Q stochastically, plus 2^-18 of a step for float64 itself.
    """
    step = clip_norm / resolution
    worst = 0.5 if rounding is Rounding.NEAREST else 1.0
    return step * (worst + _FLOAT_SLACK)


def to_steps(
    values: NDArray[np.float64],
    *,
    clip_norm: float,
    resolution: int,
    rounding: Rounding,
    random_bytes: Callable[[int], bytes],
) -> NDArray[np.int64]:
    """Values in [-C, C] as integers in [-Q, Q].

    Args:
        values: float64[d], finite, every |value| <= clip_norm (what ``clip_by_norm`` returns).
        clip_norm: C, positive and finite.
        resolution: Q, 1..2^32 steps per clip norm.
        rounding: nearest (ties to even) or stochastic.
        random_bytes: source of secret coins, 4 bytes per coordinate; used by stochastic rounding
            only. Each coin has 32 bits, so a probability is off by at most 2^-32.

    Returns:
        int64[d]; ``from_steps`` brings each entry back to within ``rounding_error``.

    Raises:
        ConfigurationError: if a value is not finite or outside [-C, C].
    """
    check_resolution(resolution)
    # The negation catches NaN, for which every comparison is false.
    if values.size and not float(np.max(np.abs(values))) <= clip_norm:
        raise ConfigurationError(
            f"values must lie in [-{clip_norm}, {clip_norm}], found a magnitude of "
            f"{float(np.max(np.abs(values)))}: clip before rounding"
        )
    scaled = values * (resolution / clip_norm)
    if rounding is Rounding.NEAREST:
        steps = np.rint(scaled)
    else:
        below = np.floor(scaled)
        steps = below + (_coins(values.size, random_bytes) < scaled - below)
    # Float error may carry |C| * Q/C past Q by less than a step; the range of the sum rests on Q.
    np.clip(steps, -resolution, resolution, out=steps)
    return steps.astype(np.int64)


def from_steps(
    steps: NDArray[np.int64], *, clip_norm: float, resolution: int
) -> NDArray[np.float64]:
    """Integers (or sums of them) back in the units of the update: steps * C / Q, float64[d]."""
    check_resolution(resolution)
    return steps.astype(np.float64) * (clip_norm / resolution)


def _coins(count: int, random_bytes: Callable[[int], bytes]) -> NDArray[np.float64]:
    """float64[count], uniform on the multiples of 2^-32 in [0, 1)."""
    width = _COIN_BITS // 8
    raw = random_bytes(width * count)
    if len(raw) != width * count:
        raise ConfigurationError(
            f"random_bytes returned {len(raw)} bytes where {width * count} were asked for"
        )
    return np.frombuffer(raw, dtype="<u4").astype(np.float64) * math.ldexp(1.0, -_COIN_BITS)
