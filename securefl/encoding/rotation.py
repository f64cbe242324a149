"""Step 3, before rounding: spread a vector evenly over its coordinates.

v = H diag(signs) x / sqrt(b): random signs, then the Hadamard transform of order b (Suresh et al.
2017, *Distributed mean estimation with limited communication*, section 3; Kairouz, Liu, Steinke
2021, *The distributed discrete Gaussian mechanism*, section 4). A rotated coordinate of any vector
of norm C is sub-Gaussian with variance C^2 / b over the signs, so a modulus can be chosen that
almost no sum leaves, and rounding errors spread over all coordinates alike. It is orthonormal:
norms stay, and the inverse undoes it.

One transform of the next power of two would pad 26,010 coordinates to 32,768. Instead there are
n_b blocks of b = 2^a entries, and coordinate i belongs to block i mod n_b, so that a layer is
shared out over all blocks. The signs come from the round's public seed: everybody knows them, and
neither secrecy nor differential privacy depends on them. This module knows no integers and no
noise.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError

__all__ = ["MIN_SEED_BYTES", "Rotation", "block_size", "public_bytes"]

MIN_SEED_BYTES = 16
"""A shorter round seed is taken for one that was forgotten."""

_SMALLEST, _LARGEST = 11, 16  # log2 of the block sizes
_MOST_PADDING = 1.05
_FACTOR = 5  # log2 of the largest Kronecker factor: 32 x 32 products stay in the first cache

_Float = TypeVar("_Float", np.float32, np.float64)


def block_size(dimension: int) -> int:
    """b: the largest of 2^11 .. 2^16 that pads at most 5 %, else the one that pads least.

    Below 2,048 coordinates there is one block, of the next power of two. Among blocks that pad
    alike the largest is taken, since it spreads best.

    >>> [(d, -(-d // block_size(d)) * block_size(d)) for d in (650, 26_010, 1_663_370)]
    [(650, 1024), (26010, 26624), (1663370, 1703936)]
    """
    if isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1:
        raise ConfigurationError(f"dimension must be an int >= 1, found {dimension!r}")
    if dimension < 1 << _SMALLEST:
        return 1 << (dimension - 1).bit_length()
    sizes = [1 << a for a in range(_LARGEST, _SMALLEST - 1, -1)]
    padded = {b: -(-dimension // b) * b for b in sizes}
    for b in sizes:
        if padded[b] <= _MOST_PADDING * dimension:
            return b
    return min(sizes, key=padded.__getitem__)


def public_bytes(round_seed: bytes, label: bytes, count: int) -> bytes:
    """``count`` bytes of public randomness: shake_256 over the seed and what it is used for.

    Raises:
        ConfigurationError: on a seed of fewer than 16 bytes.
    """
    if not isinstance(round_seed, bytes) or len(round_seed) < MIN_SEED_BYTES:
        found = len(round_seed) if isinstance(round_seed, bytes) else type(round_seed).__name__
        raise ConfigurationError(
            f"round_seed must be at least {MIN_SEED_BYTES} bytes, the same for all clients of a "
            f"round and for its decoder, found {found}; pass the round's public seed"
        )
    # Length first: no seed is the beginning of another seed with its label.
    material = len(round_seed).to_bytes(8, "little") + round_seed + label
    return hashlib.shake_256(material).digest(count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """The randomised block Hadamard transform of vectors of d coordinates.

    Attributes:
        dimension: d >= 1.
        label: what the signs are used for; two uses in one round take two labels.
        block: b, chosen by :func:`block_size`.
        padded: D = b n_b, coordinates of a rotated vector.

    >>> rotation = Rotation(dimension=3)
    >>> turned = rotation.apply(np.array([3.0, 0.0, 4.0]), round_seed=bytes(32))
    >>> len(turned), round(float(np.linalg.norm(turned)), 12)
    (4, 5.0)
    >>> rotation.invert(turned, round_seed=bytes(32)).round(12).tolist()
    [3.0, 0.0, 4.0]
    """

    dimension: int
    label: bytes = b"securefl rotation 1"
    block: int = field(init=False)
    padded: int = field(init=False)

    def __post_init__(self) -> None:
        block = block_size(self.dimension)
        object.__setattr__(self, "block", block)
        object.__setattr__(self, "padded", -(-self.dimension // block) * block)

    def apply(self, values: NDArray[_Float], *, round_seed: bytes) -> NDArray[_Float]:
        """The rotated vector.

        Args:
            values: float32[d] or float64[d]; the arithmetic is done in this precision.
            round_seed: the round's public seed, at least 16 bytes.

        Returns:
            [D] of the same dtype and, up to rounding, the same norm. In float64 the error has norm
            at most 2^-43 of that of ``values``, whatever the order of summation: at most four
            factors of order at most 32, each with a relative error below 32^1.5 2^-53.
        """
        self._check(values, self.dimension)
        spread = np.zeros(self.padded, dtype=values.dtype)
        np.multiply(values, self._signs(round_seed)[: self.dimension], out=spread[: len(values)])
        return self._transform(spread)

    def invert(self, values: NDArray[_Float], *, round_seed: bytes) -> NDArray[_Float]:
        """The vector [d] that :meth:`apply` turned into ``values`` [D], padding dropped."""
        self._check(values, self.padded)
        turned = self._transform(values.copy())[: self.dimension]
        turned *= self._signs(round_seed)[: self.dimension]
        return turned

    def _transform(self, values: NDArray[_Float]) -> NDArray[_Float]:
        """H_b / sqrt(b) along the first axis of [b, n_b], one Kronecker factor after the other.

        ``values`` is overwritten.
        """
        outer, inner = 1, self.padded
        other = np.empty_like(values)
        for order in _factors(self.block):
            inner //= order
            factor = _hadamard(order, values.dtype.str)
            if inner == 1:
                shape: tuple[int, ...] = (outer, order)
                np.matmul(values.reshape(shape), factor, out=other.reshape(shape))
            else:
                shape = (outer, order, inner)
                np.matmul(factor, values.reshape(shape), out=other.reshape(shape))
            values, other = other, values
            outer *= order
        values *= values.dtype.type(1 / math.sqrt(self.block))
        return values

    def _signs(self, round_seed: bytes) -> NDArray[np.int8]:
        return _signs(round_seed, self.label, self.padded)

    def _check(self, values: NDArray[Any], length: int) -> None:
        if values.shape != (length,) or values.dtype not in (np.float32, np.float64):
            raise ConfigurationError(
                f"expected float32 or float64 of shape ({length},), found {values.dtype} of shape "
                f"{values.shape}"
            )


def _factors(block: int) -> list[int]:
    """Orders of the Kronecker factors: as equal as possible, at most 32 each."""
    exponent = block.bit_length() - 1
    stages = max(1, -(-exponent // _FACTOR))
    return [1 << (exponent // stages + (s < exponent % stages)) for s in range(stages)]


@lru_cache(maxsize=32)
def _hadamard(order: int, dtype: str) -> NDArray[Any]:
    """Sylvester's matrix: entry (i, j) is -1 to the number of bits that i and j share."""
    matrix = np.ones((1, 1), dtype=dtype)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.flags.writeable = False
    return matrix


@lru_cache(maxsize=4)
def _signs(round_seed: bytes, label: bytes, count: int) -> NDArray[np.int8]:
    bits = np.unpackbits(
        np.frombuffer(public_bytes(round_seed, label, -(-count // 8)), dtype=np.uint8),
        count=count,
        bitorder="little",
    )
    signs = 1 - 2 * bits.astype(np.int8)
    signs.flags.writeable = False
    return signs
