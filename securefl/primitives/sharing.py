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
from securefl.primitives.field import PRIME
from securefl.primitives.field import fold as _fold
from securefl.primitives.field import residue as _reduce
from securefl.primitives.field import uniform as _uniform

__all__ = [
    "PRIME",
    "Unreconstructable",
    "lagrange_at_zero",
    "parse_share_words",
    "reconstruct",
    "share",
    "weights_without",
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


def _from_words(words: Sequence[int], secret_bytes: int) -> bytes:
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
    coefficients = _uniform(t - 1, len(words), random_bytes)
    x = points.reshape(-1, 1)
    value = np.zeros((len(points), len(words)), dtype=np.uint64)
    for row in coefficients[::-1]:
        # Horner; value < 2^32 and x < 2^30 keep every product below 2^62.
        value = _fold((value + row) * x)
    return _reduce(value + words).astype(np.uint32)


def parse_share_words(data: memoryview | bytes) -> NDArray[np.uint32]:
    """Share bytes (u32 little-endian each) as field elements, uint32[words].

    Raises:
        WireError: if a value is not below p.
    """
    words = np.frombuffer(data, dtype="<u4").astype(np.uint32, copy=False)
    if words.size and int(words.max()) >= PRIME:
        raise WireError(f"a share holds {int(words.max())}, which is not below {PRIME}")
    return words


@lru_cache(maxsize=64)
def lagrange_at_zero(points: tuple[int, ...]) -> NDArray[np.uint64]:
    """Weights w_i = Π_{j≠i} x_j / (x_j - x_i) mod p, so that f(0) = Σ w_i f(x_i).

    Args:
        points: distinct, in [1, 2^30).

    Returns:
        uint64[len(points)], read-only (it is cached).
    """
    x = np.array(points, dtype=np.uint64)
    numerator = 1
    for point in points:
        numerator = numerator * point % PRIME
    denominator = x.copy()
    for j, point in enumerate(points):
        difference = np.uint64(point) + _P - x
        difference[j] = 1
        # Both factors are full-size: one fold alone would let the bound grow with every step.
        denominator = _fold(_fold(denominator * _reduce(difference)))
    weights = np.array(
        [numerator * pow(int(d), -1, PRIME) % PRIME for d in _reduce(denominator)], dtype=np.uint64
    )
    weights.setflags(write=False)
    return weights


def weights_without(points: tuple[int, ...], left_out: int) -> NDArray[np.uint64]:
    """Weights of ``points`` without ``points[left_out]``, from the cached weights of all of them.

    Each client is missing from the holders of its own secret, so a session meets t + 1 responder
    sets that differ in one point; this makes the second and every further one cheap:
    w_i' = w_i (x_u - x_i) / x_u.
    """
    x = np.array(points, dtype=np.uint64)
    factor = np.uint64(pow(points[left_out], -1, PRIME))
    change = _reduce(_reduce(x[left_out] + _P - x) * factor)
    weights = _reduce(lagrange_at_zero(points) * change)
    return np.delete(weights, left_out)


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
    products = _reduce(shares.astype(np.uint64) * weights.reshape(-1, 1))
    words = _reduce(products.sum(axis=0))
    return _from_words(words.tolist(), secret_bytes)
