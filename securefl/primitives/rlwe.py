"""EXPERIMENTAL. Ring-LWE masks whose secrets add up: the vector part of the hybrid Paillier mode.

Each client hides its vector as b_j = a_j s + e_j + 2^g u_j in Z_q[X]/(X^2048 + 1), q = 2^34, with
one ternary secret s for all polynomials of a round and public a_j. Sums of b are masked by the sum
S of the secrets, which Paillier carries, and opening S opens the sum of the vectors only.

**What is not settled.** The server sees the samples of every honest client *and* learns the sums of
their secrets and errors. Security needs Hint-RLWE with exactly these hints and at least two honest
clients; the parameters are extrapolated from the homomorphic encryption standard's tables, no
lattice estimator was run, and nobody outside has reviewed them. Not for production. Related: ACORN
(Bell et al. 2023), OPA (Karthikeyan, Polychroniadou 2024). No constant-time claim is made for the
sampling or the transforms.

This module is arithmetic on integers: it knows no key, no client and no Paillier.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError

__all__ = ["DEGREE", "MODULUS_BITS", "RlweShape", "mask", "public_polynomials", "secret", "unmask"]

DEGREE = 2048
"""Coefficients per polynomial."""

MODULUS_BITS = 34
SHIFT = 10
"""g: the vector is shifted above the noise."""

SUM_BITS = MODULUS_BITS - SHIFT
MOST_CLIENTS = 127
"""Coefficients of the summed secret stay within +-127, for which the transform is exact."""

FAILURE_BITS = 40

_LIMB = 17
_HALF = DEGREE // 2
_TWIST = np.exp(1j * np.pi * np.arange(_HALF) / DEGREE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RlweShape:
    """What one round masks.

    Attributes:
        dimension: values per client.
        bound: B; values are in [-B, B].
        max_clients: most vectors in a sum.

    Raises:
        ConfigurationError: if sums would not fit 24 bits, or rounding would fail with a chance
            above 2^-40 over all coordinates.
    """

    dimension: int
    bound: int
    max_clients: int

    def __post_init__(self) -> None:
        for name in ("dimension", "bound", "max_clients"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be a positive integer, found {value!r}")
        if self.max_clients > MOST_CLIENTS:
            raise ConfigurationError(
                f"the hybrid mode sums at most {MOST_CLIENTS} clients, found {self.max_clients}"
            )
        if 2 * self.bound * self.max_clients >= 1 << SUM_BITS:
            raise ConfigurationError(
                f"sums of {self.max_clients} values up to {self.bound} need "
                f"{(2 * self.bound * self.max_clients).bit_length()} bits, the hybrid mode has "
                f"{SUM_BITS}"
            )
        # |sum of e| has variance 5K and is bounded like a Gaussian: P <= 2 exp(-2^(2g-2) / (10K)).
        needed = 10 * self.max_clients * (log(2 * self.dimension) + FAILURE_BITS * log(2))
        if needed > 1 << (2 * SHIFT - 2):
            raise ConfigurationError(
                f"{self.max_clients} clients and {self.dimension} values would be rounded wrongly "
                f"with a chance above 2^-{FAILURE_BITS}"
            )

    @property
    def polynomials(self) -> int:
        """How many polynomials carry the vector."""
        return -(-self.dimension // DEGREE)

    @property
    def body_bytes(self) -> int:
        """Bytes of one masked vector: 34 bits per value."""
        return -(-self.dimension * MODULUS_BITS // 8)


def public_polynomials(seed: bytes, count: int) -> NDArray[np.uint64]:
    """The public a_1..a_count of a round, uint64[count, 2048], each below 2^34.

    Every party computes the seed from the session itself: a server that could choose a = 0 would
    read every vector.

    Args:
        seed: 32 bytes, a hash of session, round, key and dimension.
        count: how many polynomials.
    """
    if len(seed) != 32:
        raise ConfigurationError(
            f"the seed of the public polynomials has 32 bytes, not {len(seed)}"
        )
    found = np.zeros((count, DEGREE, 8), dtype=np.uint8)
    for j in range(count):
        stream = hashlib.shake_256(seed + struct.pack("<I", j)).digest(5 * DEGREE)
        found[j, :, :5] = np.frombuffer(stream, dtype=np.uint8).reshape(DEGREE, 5)
    words = found.view("<u8").reshape(count, DEGREE).astype(np.uint64)
    words &= np.uint64((1 << MODULUS_BITS) - 1)
    return words


def secret(random_bytes: Callable[[int], bytes]) -> NDArray[np.int64]:
    """A fresh ternary secret, int64[2048] of -1, 0, 1, uniform by rejection. For one round only."""
    parts: list[NDArray[np.int64]] = []
    have = 0
    while have < DEGREE:
        raw = np.frombuffer(random_bytes(DEGREE), dtype=np.uint8)
        kept = raw[raw < 255].astype(np.int64) % 3 - 1
        parts.append(kept)
        have += len(kept)
    return np.concatenate(parts)[:DEGREE]


def _errors(count: int, random_bytes: Callable[[int], bytes]) -> NDArray[np.int64]:
    """Centred binomial noise of variance 5: popcount of 10 bits minus popcount of 10 bits."""
    raw = np.frombuffer(random_bytes(4 * count), dtype="<u4")
    low, high = raw & np.uint32(0x3FF), raw >> np.uint32(10) & np.uint32(0x3FF)
    drawn: NDArray[np.int64] = np.bitwise_count(low).astype(np.int64) - np.bitwise_count(high)
    return drawn


def multiply(a: NDArray[np.uint64], s: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Products a_j s in Z_q[X]/(X^2048 + 1), q = 2^34, exact for |s| <= 127.

    Folded twisted complex transforms of half length on two limbs of 17 bits. The exact products are
    below 2048 x 127 x 2^17 < 2^35; float64 rounding moves them by less than 10^-4 (worst seen
    1.2e-5), far from the 1/2 at which rounding to integers would fail.

    Args:
        a: uint64[count, 2048], below 2^34.
        s: int64[2048], in -127..127.

    Returns:
        uint64[count, 2048], below 2^34.
    """
    if np.abs(s).max(initial=0) > MOST_CLIENTS:
        raise ConfigurationError(f"a coefficient of the secret is beyond +-{MOST_CLIENTS}")
    transformed = np.fft.fft((s[:_HALF] + 1j * s[_HALF:]) * _TWIST)
    total = np.zeros(a.shape, dtype=np.uint64)
    for shift in (0, _LIMB):
        limb = (a >> np.uint64(shift) & np.uint64((1 << _LIMB) - 1)).astype(np.float64)
        folded = (limb[:, :_HALF] + 1j * limb[:, _HALF:]) * _TWIST
        product = np.fft.ifft(np.fft.fft(folded, axis=1) * transformed, axis=1) / _TWIST
        whole = np.concatenate([product.real, product.imag], axis=1)
        total += np.rint(whole).astype(np.int64).astype(np.uint64) << np.uint64(shift)
    return total & np.uint64((1 << MODULUS_BITS) - 1)


def mask(
    values: NDArray[np.int64],
    shape: RlweShape,
    a: NDArray[np.uint64],
    s: NDArray[np.int64],
    random_bytes: Callable[[int], bytes],
) -> NDArray[np.uint64]:
    """The masked vector b of one client.

    Args:
        values: int64[dimension], each in [-B, B].
        shape: the round's shape.
        a: public polynomials of the round.
        s: this client's fresh secret.
        random_bytes: source of the errors.

    Returns:
        uint64[dimension], below 2^34.

    Raises:
        ConfigurationError: on a value beyond the bound or a wrong shape.
    """
    if values.shape != (shape.dimension,) or values.dtype != np.int64:
        raise ConfigurationError(f"expected int64[{shape.dimension}], found {values.shape}")
    if values.size and int(np.abs(values).max()) > shape.bound:
        raise ConfigurationError(f"a value to mask is beyond the bound of {shape.bound}")
    b = multiply(a, s).reshape(-1)[: shape.dimension]
    b += _errors(shape.dimension, random_bytes).astype(np.uint64)
    b += (values + shape.bound).astype(np.uint64) << np.uint64(SHIFT)
    return b & np.uint64((1 << MODULUS_BITS) - 1)


def unmask(
    total: NDArray[np.uint64],
    shape: RlweShape,
    a: NDArray[np.uint64],
    summed_secret: NDArray[np.int64],
    *,
    count: int,
) -> NDArray[np.int64]:
    """The exact sum of ``count`` vectors.

    Args:
        total: uint64[dimension], the sum of their b modulo 2^34.
        shape: the round's shape.
        a: public polynomials of the round.
        summed_secret: int64[2048], the opened sum of their secrets.
        count: K, how many vectors were summed.

    Returns:
        int64[dimension], each in [-K B, K B] for honest clients.
    """
    y = total - multiply(a, summed_secret).reshape(-1)[: shape.dimension]
    y += np.uint64(1 << (SHIFT - 1))
    y &= np.uint64((1 << MODULUS_BITS) - 1)
    sums = (y >> np.uint64(SHIFT)).astype(np.int64)
    return sums - count * shape.bound
