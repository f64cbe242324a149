"""Secret coins for training: a Poisson sample and Gaussian noise, from cryptographic bytes.

Both decide whether a release is private, so neither may come from a generator with a seed: two
processes that were seeded alike would draw the same noise, and a known seed lets anybody subtract
it. Bytes come as an argument, ``os.urandom`` or a keystream under a fresh key. NumPy and torch
generators are never touched.

Known weakness, stated: the noise is float64 by inversion of the normal distribution function and
is added to floats. The set of floats that can come out depends slightly on the value noised, which
an attacker who sees all bits can exploit (Mironov 2012, *On significance of the least significant
bits for differential privacy*). The guarantee of this part is that of the real-number Gaussian
mechanism; a mechanism on integers has no such gap. This module knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from securefl.errors import ConfigurationError

__all__ = ["RandomBytes", "poisson_sample", "standard_normal"]

RandomBytes = Callable[[int], bytes]
"""``f(n)`` returns n fresh bytes that nobody else can predict."""

_TWO_64 = 1 << 64


def poisson_sample(records: int, rate: float, random_bytes: RandomBytes) -> NDArray[np.int64]:
    """Indices of a Poisson sample: each of n records independently with probability ``rate``.

    Each record's 64 random bits are compared with floor(rate 2^64), so its probability is at most
    ``rate`` and less by at most 2^-64. The sample may be empty, and often is for small n.

    Args:
        records: n >= 0.
        rate: q in (0, 1].
        random_bytes: 8 n bytes are drawn, also where rate = 1.

    Returns:
        int64[k], ascending.

    Raises:
        ConfigurationError: if the rate is out of range.
    """
    if not (math.isfinite(rate) and 0.0 < rate <= 1.0):
        raise ConfigurationError(f"the sampling rate must be in (0, 1], found {rate}")
    words = _words(records, random_bytes)
    threshold = int(Fraction(rate) * _TWO_64)
    if threshold == _TWO_64:
        return np.arange(records, dtype=np.int64)
    return np.flatnonzero(words < np.uint64(threshold)).astype(np.int64)


def standard_normal(count: int, random_bytes: RandomBytes) -> NDArray[np.float64]:
    """Independent standard normal draws, float64[count].

    Each takes 64 bits: one for the sign, 63 for a uniform u on the multiples of 2^-64 in
    (0, 1/2], whose normal quantile is the magnitude. The largest magnitude is 9.08; the
    probability cut off beyond it is about 2^-64 per draw.
    """
    words = _words(count, random_bytes)
    tail = ((words >> np.uint64(1)).astype(np.float64) + 1.0) * math.ldexp(1.0, -64)
    magnitude = ndtri(tail)  # <= 0: the lower half
    signs = (words & np.uint64(1)).astype(np.float64) * 2.0 - 1.0
    return np.asarray(magnitude * signs, dtype=np.float64)


def _words(count: int, random_bytes: RandomBytes) -> NDArray[np.uint64]:
    """``count`` 64-bit words from the source; a short answer would mean repeated coins."""
    raw = random_bytes(8 * count)
    if len(raw) != 8 * count:
        raise ConfigurationError(
            f"random_bytes returned {len(raw)} bytes where {8 * count} were asked for"
        )
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64, copy=False)
