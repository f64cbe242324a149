"""The group (Z / n^(s+1))* as Damgard and Jurik use it: powers of 1+n and their logarithm.

Damgard, Jurik 2001, section 3. With N = n^(s+1), the elements that are 1 modulo n are exactly the
powers of 1+n, a cyclic group of order n^s, in which logarithms are easy. Plaintexts live there.
This module is plain arithmetic: it knows no key, no randomness and no secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

from securefl.errors import ConfigurationError
from securefl.primitives import bigint
from securefl.primitives.bigint import Integer

__all__ = ["MAX_DEGREE", "Degree", "Logarithm", "derive"]

MAX_DEGREE = 3


def derive(tag: str, *fields: bytes | Integer, length: int) -> bytes:
    """SHAKE256 over length-prefixed fields: no two different lists of fields hash the same bytes.

    Args:
        tag: which derivation this is.
        fields: byte strings, or non-negative integers (big-endian, as short as possible).
        length: how many bytes to give.
    """
    hasher = hashlib.shake_256()
    for piece in map(_field, (tag.encode(), *fields)):
        hasher.update(len(piece).to_bytes(8, "big") + piece)
    return hasher.digest(length)


def _field(value: bytes | Integer) -> bytes:
    if isinstance(value, bytes):
        return value
    number = int(value)
    return number.to_bytes(-(-number.bit_length() // 8), "big")


class Logarithm:
    """The logarithm to base 1+n, i.e. the i with (1+n)^i = x modulo n^(s+1).

    Works modulo the s-th powers of any ``base`` that divides n: the key holder takes logarithms
    modulo p^(s+1), where (1+n)^i = 1 + n i + ... and n = p q, so that the quotient is divided by
    q. ``cofactor`` is that n / base (1 for base = n).
    """

    def __init__(self, n: Integer, base: Integer, s: int) -> None:
        self._s = s
        self._powers = [bigint.integer(base) ** j for j in range(s + 2)]
        n = bigint.integer(n)
        cofactor = n // base
        self._cofactor_inverse = bigint.invert(cofactor, self._powers[s]) if cofactor > 1 else 1
        # n^(k-1) / k! modulo base^j; k! is a unit because base has no small factor.
        self._factors: dict[tuple[int, int], Integer] = {}
        factorial = 1
        for k in range(2, s + 1):
            factorial *= k
            for j in range(k, s + 1):
                modulus = self._powers[j]
                self._factors[k, j] = n ** (k - 1) * bigint.invert(factorial, modulus) % modulus

    def __call__(self, x: Integer) -> Integer:
        """The logarithm of x, which must be 1 modulo ``base``; in [0, base^s)."""
        powers = self._powers
        i = bigint.integer(0)
        for j in range(1, self._s + 1):
            modulus = powers[j]
            t1 = (x % powers[j + 1] - 1) // powers[1] * self._cofactor_inverse % modulus
            t2 = i
            for k in range(2, j + 1):
                i = i - 1
                t2 = t2 * i % modulus
                t1 = (t1 - t2 * self._factors[k, j]) % modulus
            i = t1
        return i


class Degree:
    """The numbers that belong to a modulus n and a degree s: N = n^(s+1), n^s, lengths.

    Attributes:
        n: the Paillier modulus.
        s: 1, 2 or 3.
        plaintexts: n^s, how many plaintexts there are.
        modulus: N = n^(s+1), the modulus of ciphertexts.
        ciphertext_bytes: bytes of one ciphertext on the wire.
    """

    def __init__(self, n: Integer, s: int) -> None:
        if isinstance(s, bool) or not isinstance(s, int) or not 1 <= s <= MAX_DEGREE:
            raise ConfigurationError(f"the degree s must be 1, 2 or {MAX_DEGREE}, found {s!r}")
        self.n = bigint.integer(n)
        self.s = s
        self.plaintexts = self.n**s
        self.modulus = self.n ** (s + 1)
        self.ciphertext_bytes = -(-int(self.modulus).bit_length() // 8)

    @cached_property
    def log(self) -> Logarithm:
        """The logarithm to base 1+n modulo N."""
        return Logarithm(self.n, self.n, self.s)

    @cached_property
    def _binomial_factors(self) -> Sequence[Integer]:
        """n^k / k! modulo N for k = 0..s."""
        factors, factorial = [bigint.integer(1)], 1
        for k in range(1, self.s + 1):
            factorial *= k
            factors.append(self.n**k * bigint.invert(factorial, self.modulus) % self.modulus)
        return factors

    def one_plus_n(self, m: Integer) -> Integer:
        """(1+n)^m mod N for m in [0, n^s): the binomial sum, which ends after n^s."""
        if self.s == 1:
            return 1 + m * self.n
        total, falling = bigint.integer(1), bigint.integer(1)
        for k in range(1, self.s + 1):
            falling = falling * (m - k + 1) % self.plaintexts
            total += falling * self._binomial_factors[k]
        return total % self.modulus
