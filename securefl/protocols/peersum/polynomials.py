"""Shares of a whole vector, and the sum of vectors from sums of shares.

Shamir 1979, one polynomial of degree below t per entry with the entry as its constant term, and the
linearity that Ben-Or, Goldwasser and Wigderson 1988 build on: sums of shares are shares of the sum.
Peer v holds the values at x_v = 1 + index of v in the cohort. With M > t sums of shares, wrong ones
are found as errors of a Reed-Solomon code. This module knows neither frames nor phases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from securefl.primitives import reed_solomon
from securefl.primitives.field import PRIME, multiply, uniform
from securefl.primitives.prg import expand
from securefl.primitives.sharing import lagrange_at_zero

__all__ = ["accumulate", "coefficients", "deal", "open_sum", "share_matrix", "wrong_rows"]

_CHECKS = 2
"""Random combinations per row that errors are searched in: one is missed with p^-2 < 2^-61."""


def share_matrix(holders: Sequence[int], t: int) -> NDArray[np.uint64]:
    """V: share of holder i = Σ_j V_ij a_j, where a_0 is the secret; uint64[#holders, t].

    Args:
        holders: positions in the cohort, from 0.
        t: shares that give the secret back.

    >>> share_matrix([0, 1, 2], 3).tolist()
    [[1, 1, 1], [1, 2, 4], [1, 3, 9]]
    """
    rows = [[pow(1 + i, j, PRIME) for j in range(t)] for i in holders]
    return np.array(rows, dtype=np.uint64).reshape(len(holders), t)


def coefficients(key: bytes, *, t: int, m: int) -> NDArray[np.uint32]:
    """The coefficients behind an expansion key: uniform, uint32[t - 1, m].

    The words of the key's stream in order, masked to 31 bits; the value p is redrawn after the
    last one. Row j - 1 belongs to x^j.
    """
    position = 0

    def words(size: int) -> bytes:
        nonlocal position
        start, position = position, position + size // 4
        return expand(key, size // 4, np.uint32, start=start).astype("<u4", copy=False).tobytes()

    return uniform(t - 1, m, words).astype(np.uint32)


def deal(
    secret: NDArray[np.uint32], noise: NDArray[np.uint32], holders: Sequence[int]
) -> NDArray[np.uint32]:
    """Shares of a vector.

    Args:
        secret: uint32[m], below p.
        noise: uint32[t - 1, m], see :func:`coefficients`.
        holders: positions in the cohort.

    Returns:
        uint32[#holders, m], below p.
    """
    rows = np.concatenate([secret.reshape(1, -1), noise])
    return multiply(share_matrix(holders, len(rows)), rows)


def accumulate(total: NDArray[np.uint32], addend: NDArray[np.uint32]) -> None:
    """Adds field elements in place, modulo p; both below p."""
    np.add(total, addend, out=total)  # below 2p < 2^32
    np.minimum(total, total - np.uint32(PRIME), out=total)  # below p it wraps: the minimum keeps x


def open_sum(sums: NDArray[np.uint32], holders: Sequence[int], t: int) -> NDArray[np.uint32]:
    """The sum of the vectors from the first t sums of shares, uint32[m].

    Args:
        sums: uint32[M, m], M >= t.
        holders: whose they are, positions in the cohort, distinct.
        t: shares that give a secret back.
    """
    weights = lagrange_at_zero(tuple(1 + i for i in holders[:t])).reshape(1, -1)
    return multiply(weights, sums[:t]).reshape(-1)


def wrong_rows(
    sums: NDArray[np.uint32],
    holders: Sequence[int],
    t: int,
    random_bytes: Callable[[int], bytes],
) -> tuple[int, ...]:
    """Rows that do not lie on the polynomials of all others; at most ⌊(M-t)/2⌋.

    Each row is compressed by two fresh random vectors, drawn after all rows are in. That keeps
    shares shares and errors errors, but for a chance of p^-2 per wrong row.

    Args:
        sums: uint32[M, m], M >= t.
        holders: whose they are, positions in the cohort, distinct.
        t: shares that give a secret back.
        random_bytes: source of the random vectors.

    Raises:
        TooManyErrors: if more rows are wrong.
    """
    combinations = uniform(_CHECKS, sums.shape[1], random_bytes)
    compressed = multiply(combinations, np.ascontiguousarray(sums.T)).T
    return reed_solomon.decode(compressed, points=[1 + i for i in holders], t=t).errors
