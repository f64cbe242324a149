"""Step 2: bound the Euclidean norm of an update.

Scaling a vector down to norm C leaves its direction, as in the update clipping of McMahan et al.
(2018, *Learning differentially private recurrent language models*, section 3). Here it serves the
number range: a vector of norm at most C has coordinates in [-C, C], which is what the integer
encoding needs. Clipping bounds what one client can do to the sum; it hides nothing, and without
noise it is not differential privacy. This module knows no integers, no modulus and no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError

__all__ = ["Clipped", "clip_by_norm", "finite_float64", "l2_norm"]

_SHORTENED = 2.0**-600  # times the largest float64: norms of any dimension are floats again
# Squares of numbers in this band neither underflow nor overflow, whatever the dimension.
_SAFE_LOW, _SAFE_HIGH = 1e-140, 1e140


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clipped:
    """A vector after clipping, and what clipping did to it.

    Attributes:
        values: float64[d] with ``l2_norm(values) <= clip_norm``.
        norm: norm before clipping, >= 0. It depends on private data: it stays with the client.
        was_clipped: whether the norm was above the bound.
    """

    values: NDArray[np.float64]
    norm: float
    was_clipped: bool


def l2_norm(values: NDArray[np.float64]) -> float:
    """The Euclidean norm in float64, without overflow or underflow of the squares.

    values: float64[d], finite. Returns a float >= 0, with relative error about 2^-52 log2(d);
    it may overflow to infinity only where the norm itself exceeds the largest float64.

    >>> l2_norm(np.array([3.0, 4.0]))
    5.0
    >>> l2_norm(np.array([0.0, -1e200]))
    1e+200
    """
    peak = float(np.max(np.abs(values), initial=0.0))
    if peak == 0.0:
        return 0.0
    if _SAFE_LOW < peak < _SAFE_HIGH:
        return math.sqrt(float(np.dot(values, values)))
    ratios = values / peak
    return peak * math.sqrt(float(np.dot(ratios, ratios)))


def clip_by_norm(values: NDArray[np.floating[Any]], clip_norm: float) -> Clipped:
    """Scales ``values`` so that its Euclidean norm is at most ``clip_norm``.

    Args:
        values: float32[d] or float64[d], every entry finite.
        clip_norm: C, positive and finite, in the units of ``values``.

    Returns:
        A new float64 vector whose float64 norm is at most C; equal to ``values`` if the norm
        already was.

    Raises:
        ConfigurationError: if an entry is NaN or infinite. Such an entry is never replaced by
            zero: it means that training failed, and a silent zero would hide that. Also if C is
            not positive and finite, or ``values`` is not a float vector. No finite vector is
            refused for its length.

    >>> clip_by_norm(np.array([3.0, 4.0]), 1.0)
    Clipped(values=array([0.6, 0.8]), norm=5.0, was_clipped=True)
    """
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise ConfigurationError(f"clip_norm must be positive and finite, found {clip_norm}")
    vector = finite_float64(values)
    norm = l2_norm(vector)
    if norm <= clip_norm:
        return Clipped(values=vector, norm=norm, was_clipped=False)
    finite_norm = norm
    if math.isinf(norm):
        # Entries are finite and their norm is no float. An error here would depend on private data
        # where a clip does as well: shorten the vector first, its direction stays.
        vector *= _SHORTENED
        finite_norm = l2_norm(vector)
    factor = min(1.0, clip_norm / finite_norm)
    clipped = vector * factor
    # The products were rounded: step down by a few units in the last place until the bound holds.
    while l2_norm(clipped) > clip_norm:
        factor *= 1.0 - 2.0**-50
        clipped = vector * factor
    return Clipped(values=clipped, norm=norm, was_clipped=True)


def finite_float64(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """A float64 copy of a float vector.

    Raises:
        ConfigurationError: if it is no vector of float32 or float64, or not finite.
    """
    if not isinstance(values, np.ndarray) or values.dtype not in (np.float32, np.float64):
        found = getattr(values, "dtype", type(values).__name__)
        raise ConfigurationError(f"values must be float32 or float64, found {found}")
    if values.ndim != 1:
        raise ConfigurationError(f"values must have one axis, found shape {values.shape}")
    vector = values.astype(np.float64)
    finite = np.isfinite(vector)
    if not finite.all():
        bad = int(np.count_nonzero(~finite))
        raise ConfigurationError(
            f"{bad} of {vector.size} values are NaN or infinite, the first at index "
            f"{int(np.argmin(finite))}: training diverged; lower the learning rate or check the "
            "data (they are never replaced by zero)"
        )
    return vector
