"""Shamir sharing over GF(p), p = 2^31 - 1, of secrets cut into 30-bit words.

Shamir 1979: every word is the constant term of its own polynomial of degree t - 1 with uniform
coefficients, and a share is the polynomials' values at one point x > 0. Any t shares give the word
back, t - 1 say nothing. All dealers of a session use the same points, so the interpolation weights
depend on the set of responders only and are computed once per set. Field arithmetic is plain
vectorised uint64 without branches on secret values; this module does not know whose secret it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from securefl.errors import SecureFLError, WireError
from securefl.primitives.field import PRIME, inverse, residue, uniform
from securefl.primitives.field import fold as _fold

__all__ = [
    "PRIME",
    "Unreconstructable",
    "interpolate",
    "inverse",
    "lagrange_at_zero",
    "multipliers",
    "parse_share_words",
    "reconstruct",
    "residue",
    "secret_from_words",
    "share",
    "uniform",
    "weights_at_zero",
    "word_count",
]

WORD_BITS = 30

_P = np.uint64(PRIME)


class Unreconstructable(SecureFLError):
    """Shares whose interpolation is no secret of the promised length: at least one is wrong."""


def word_count(secret_bytes: int) -> int:
    """Field elements per share: 16 bytes -> 5, 32 bytes -> 9."""
    return -(-8 * secret_bytes // WORD_BITS)


def _to_words(secret: bytes) -> NDArray[np.uint64]:
    number = int.from_bytes(secret, "little")
    low = (1 << WORD_BITS) - 1
    return np.array(
        [number >> (WORD_BITS * i) & low for i in range(word_count(len(secret)))], dtype=np.uint64
    )


def secret_from_words(words: Sequence[int], secret_bytes: int) -> bytes:
    """The secret that was cut into these words.

    Raises:
        Unreconstructable: if no secret of that length is.
    """
    if any(w >> WORD_BITS for w in words):
        raise Unreconstructable("a reconstructed word has more than 30 bits: a share is wrong")
    number = sum(w << (WORD_BITS * i) for i, w in enumerate(words))
    if number >> (8 * secret_bytes):
        raise Unreconstructable("a reconstructed secret is too long: a share is wrong")
    return number.to_bytes(secret_bytes, "little")


def share(
    secret: bytes, *, t: int, points: NDArray[np.uint64], random_bytes: Callable[[int], bytes]
) -> NDArray[np.uint32]:
    """Shares of a secret at the given points.

    Args:
        secret: 16 or 32 bytes in this library; any length works.
        t: how many shares reconstruct, at least 1.
        points: uint64[h], distinct, in [1, 2^30).
        random_bytes: source of the (t - 1) × words coefficients; row j - 1 belongs to x^j.

    Returns:
        uint32[h, words], row i the share at points[i], every value below p.
    """
    words = _to_words(secret)
    coefficients = uniform(t - 1, len(words), random_bytes)
    x = points.reshape(-1, 1)
    value = np.zeros((len(points), len(words)), dtype=np.uint64)
    for row in coefficients[::-1]:
        # Horner; value < 2^32 and x < 2^30 keep every product below 2^62.
        value = _fold((value + row) * x)
    return residue(value + words).astype(np.uint32)


def parse_share_words(data: memoryview | bytes) -> NDArray[np.uint32]:
    """Share bytes (u32 little-endian each) as field elements, uint32[words].

    Raises:
        WireError: if a value is not below p.
    """
    words = np.frombuffer(data, dtype="<u4").astype(np.uint32, copy=False)
    if words.size and int(words.max()) >= PRIME:
        raise WireError(f"a share holds {int(words.max())}, which is not below {PRIME}")
    return words


def multipliers(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """v_i = Π_{j≠i} 1 / (x_i - x_j) mod p: all that interpolation needs to know about the points.

    Σ_i v_i f(x_i) is the coefficient of x^(M-1) of the polynomial f of degree below M, hence 0 if
    the degree is lower still.

    Args:
        x: uint64[..., M], points in [1, 2^30), distinct along the last axis.

    Returns:
        uint64[..., M], below p.
    """
    product = np.ones_like(x)
    for j in range(x.shape[-1]):
        difference = x + (_P - x[..., j : j + 1])
        difference[..., j] = 1
        # product < 2^31 + 4 after two folds, difference < 2^32: below 2^64.
        product = _fold(_fold(product * difference))
    return inverse(residue(product))


def weights_at_zero(
    x: NDArray[np.uint64], inverse_x: NDArray[np.uint64], v: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """w_i = Π_{j≠i} x_j / (x_j - x_i) mod p, so that f(0) = Σ w_i f(x_i) for degrees below M.

    Args:
        x: uint64[..., M], the points.
        inverse_x: the points' inverses.
        v: their :func:`multipliers`.
    """
    product = _product(x)
    if x.shape[-1] % 2 == 0:  # (-1)^(M-1), for the multipliers are written with x_i - x_j
        product = _P - product
    return residue(residue(v * inverse_x) * product)


def _product(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The product along the last axis mod p, uint64[..., 1], halving the axis each time."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        paired = residue(x[..., :half] * x[..., half : 2 * half])
        x = np.concatenate([paired, x[..., 2 * half :]], axis=-1)
    return x


@lru_cache(maxsize=64)
def lagrange_at_zero(points: tuple[int, ...]) -> NDArray[np.uint64]:
    """The weights of :func:`weights_at_zero` for one set of points.

    Args:
        points: distinct, in [1, 2^30).

    Returns:
        uint64[len(points)], read-only (it is cached).
    """
    x = np.array(points, dtype=np.uint64)
    weights = weights_at_zero(x, inverse(x), multipliers(x))
    weights.setflags(write=False)
    return weights


def interpolate(
    shares: NDArray[np.uint32 | np.uint64], weights: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Σ_i w_i · share_i mod p, for every word.

    Args:
        shares: uint32 or uint64 [..., M, words], below p.
        weights: uint64[..., M], below p.

    Returns:
        uint64[..., words], below p.
    """
    products = residue(shares.astype(np.uint64, copy=False) * weights[..., np.newaxis])
    return residue(products.sum(axis=-2))


def reconstruct(
    shares: NDArray[np.uint32], weights: NDArray[np.uint64], secret_bytes: int
) -> bytes:
    """The secret behind t shares.

    Args:
        shares: uint32[t, words], one row per holder.
        weights: uint64[t], for the same holders' points.
        secret_bytes: how long the secret is.

    Raises:
        Unreconstructable: if the interpolated words are no secret of that length.
    """
    return secret_from_words(interpolate(shares, weights).tolist(), secret_bytes)
