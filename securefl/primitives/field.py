"""Arithmetic in GF(p), p = 2^31 - 1, on arrays: reduction, uniform values, inverses, products.

Plain vectorised uint64 without branches on values. Matrix products go through the BLAS in float64
and are exact all the same: one factor is cut into limbs of 10, 11 and 10 bits, so that every
partial sum is an integer below 2^53. This module does not know what the numbers are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["PRIME", "fold", "interpolation_matrix", "inverse", "multiply", "residue", "uniform"]

PRIME = (1 << 31) - 1

_P = np.uint64(PRIME)
_31 = np.uint64(31)

Elements = NDArray[np.uint32] | NDArray[np.uint64]


def fold(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The value x modulo p up to a small multiple: (x & p) + (x >> 31), for 2^31 = 1 (mod p)."""
    return (x & _P) + (x >> _31)


def residue(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The value x modulo p, fully, for any x < 2^64, without a branch."""
    folded = fold(fold(fold(x)))  # < 2^33 + 2^31, then < 2^31 + 8, then <= p
    return folded - _P * (folded >= _P).astype(np.uint64)


def uniform(rows: int, columns: int, random_bytes: Callable[[int], bytes]) -> NDArray[np.uint64]:
    """Uniform field elements, uint64[rows, columns], by rejection.

    One block of 4 bytes each is read in row order and masked to 31 bits; the value p, the only one
    that is no field element, is redrawn after the block until none is left. Reducing modulo p
    instead would make 0 twice as likely as any other value.
    """

    def draw(count: int) -> NDArray[np.uint64]:
        raw = np.frombuffer(random_bytes(4 * count), dtype="<u4")
        return raw.astype(np.uint64) & _P

    values = draw(rows * columns)
    while (rejected := np.flatnonzero(values == _P)).size:
        values[rejected] = draw(rejected.size)
    return values.reshape(rows, columns)


def inverse(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """x^(p-2): the inverse of every non-zero x below p; 0 where x is 0."""
    result, power = np.ones_like(x), x
    for bit in range(31):
        if (PRIME - 2) >> bit & 1:
            result = result * power % _P
        power = power * power % _P
    return result


def interpolation_matrix(*, at: Sequence[int], nodes: Sequence[int]) -> NDArray[np.uint64]:
    """Lagrange weights: f(at_j) = Σ_k W_{jk} f(nodes_k) for every f of degree below #nodes.

    W_{jk} = Π_{l≠k} (at_j - nodes_l) / (nodes_k - nodes_l) mod p. With both sets disjoint this is
    diagonal times Cauchy matrix times diagonal, so every square submatrix can be inverted.

    Args:
        at: distinct, in [0, p), none of them a node.
        nodes: distinct, in [0, p).

    Returns:
        uint64[#at, #nodes].
    """
    a = np.array(at, dtype=np.uint64).reshape(-1, 1)
    x = np.array(nodes, dtype=np.uint64)
    distances = (a + _P - x) % _P
    numerator = np.ones(len(a), dtype=np.uint64)
    denominator = np.ones(len(x), dtype=np.uint64)
    for k in range(len(x)):
        numerator = numerator * distances[:, k] % _P
        between = (x + _P - x[k]) % _P
        between[k] = 1  # the node itself is left out
        denominator = denominator * between % _P
    rows = numerator.reshape(-1, 1) * inverse(distances) % _P
    return rows * inverse(denominator) % _P


_LIMBS = ((0, 10), (10, 11), (21, 10))
_INNER = 1 << 11
"""Terms of one sum: (2^11 - 1)(2^31 - 2) 2^11 < 2^53."""
_COLUMNS = 1 << 11
"""Columns per block: the three partial products stay small beside the factors."""


def multiply(a: Elements, b: Elements) -> NDArray[np.uint32]:
    """The matrix product modulo p.

    Args:
        a: [r, s], every value below p. This is the factor that is cut into limbs: 3rs float64.
        b: [s, c], every value below p.

    Returns:
        uint32[r, c], every value below p.
    """
    r, s = a.shape
    wide = a.astype(np.uint64, copy=False)
    product = np.zeros((r, b.shape[1]), dtype=np.uint32)
    limbs = np.concatenate(
        [wide >> np.uint64(low) & np.uint64((1 << bits) - 1) for low, bits in _LIMBS]
    ).astype(np.float64)
    for column in range(0, b.shape[1], _COLUMNS):
        block = b[:, column : column + _COLUMNS].astype(np.float64)
        total = np.zeros((r, block.shape[1]), dtype=np.uint64)
        for inner in range(0, s, _INNER):
            exact = limbs[:, inner : inner + _INNER] @ block[inner : inner + _INNER]
            low, middle, high = exact.astype(np.uint64).reshape(3, r, -1)
            total += fold(low) + (fold(middle) << np.uint64(10)) + (fold(high) << np.uint64(21))
            total = fold(total)
        product[:, column : column + _COLUMNS] = residue(total)
    return product
