"""Paillier keys: generation, full validation, canonical bytes, and decryption by the key holder.

Keys follow Paillier 1999 with the Damgard-Jurik 2001 ciphertexts of degree s = 1, 2, 3. A public
key is its modulus n and nothing else: the base of the short encryption form is a hash of n, so
nobody has to trust a published base (one of small order would remove all hiding). What a public
key check cannot see is whether n = p q with safe primes; that is the publisher's word.

This module does not know packing, randomness or protocols.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import urandom
from typing import Literal, NoReturn

import numpy as np

from securefl.errors import ConfigurationError, WireError
from securefl.primitives import bigint
from securefl.primitives.bigint import Integer
from securefl.primitives.paillier.algebra import Degree, Logarithm, derive

__all__ = ["MIN_BITS", "PublicKey", "SecretKey", "generate_keypair"]

MIN_BITS = 2048
"""About 112 bits of security (NIST SP 800-57); the default, 3072, is about 128."""

DEFAULT_BITS = 3072
MAX_BITS = 8192
"""Bounds what parsing a foreign key can cost."""

_SIEVE_WINDOW = 1 << 17
_MAGIC = b"SFLP"
_PUBLIC, _SECRET = 1, 2
_HEADER = struct.Struct(">4sBBH")


@lru_cache(maxsize=16, typed=True)
def _degree(n: int, s: int) -> Degree:
    return Degree(n, s)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A Paillier public key. Build it with :meth:`from_numbers` or :meth:`from_bytes`.

    Attributes:
        n: the modulus, a product of two primes that only the key holder knows.
    """

    n: int

    @classmethod
    def from_numbers(cls, n: int, *, min_bits: int = MIN_BITS) -> PublicKey:
        """A checked public key.

        Args:
            n: the modulus.
            min_bits: least length accepted; below 2048 only in tests.

        Raises:
            ConfigurationError: if n is short, even, of a length that is no multiple of 8, prime,
                a perfect power, has a factor below 2^16, or gives a degenerate base.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n <= 0:
            raise ConfigurationError("a Paillier modulus must be a positive integer")
        bits = n.bit_length()
        if not min_bits <= bits <= MAX_BITS:
            raise ConfigurationError(
                f"a Paillier modulus needs {min_bits} to {MAX_BITS} bits, found {bits}; "
                f"use {DEFAULT_BITS}"
            )
        if bits % 8:
            raise ConfigurationError(f"a modulus length must be a multiple of 8, found {bits} bits")
        factor = next((r for r in bigint.small_primes() if n % r == 0), None)
        if factor is not None:
            raise ConfigurationError(f"the modulus is divisible by {factor}: it hides nothing")
        if bigint.is_prime(n):
            raise ConfigurationError("the modulus is prime: anyone can decrypt")
        if bigint.is_perfect_power(n):
            raise ConfigurationError("the modulus is a perfect power: anyone can factor it")
        key = cls(n)
        h = key.base
        if bigint.gcd(h, n) != 1 or bigint.gcd(h - 1, n) != 1:
            raise ConfigurationError("the derived base shares a factor with the modulus")
        return key

    @property
    def bits(self) -> int:
        """Length of n in bits."""
        return self.n.bit_length()

    @property
    def base(self) -> int:
        """The base h = y^2 mod n, y hashed from n alone; its n^s-th power blinds all messages.

        For safe primes the squares are cyclic and h generates them iff gcd(h-1, n) = 1.
        """
        length = self.bits // 8 + 16
        y = int.from_bytes(derive("securefl/paillier/base/v1", self.n, length=length), "big")
        return y % self.n * (y % self.n) % self.n

    def degree(self, s: int) -> Degree:
        """The numbers of degree s (cached).

        Raises:
            ConfigurationError: unless s is 1, 2 or 3.
        """
        return _degree(self.n, s)

    def to_bytes(self) -> bytes:
        """Canonical bytes: magic, version, kind, length in bytes, n big-endian."""
        length = self.bits // 8
        return _HEADER.pack(_MAGIC, 1, _PUBLIC, length) + self.n.to_bytes(length, "big")

    @classmethod
    def from_bytes(cls, data: bytes, *, min_bits: int = MIN_BITS) -> PublicKey:
        """Reads :meth:`to_bytes`.

        Raises:
            WireError: on malformed bytes.
            ConfigurationError: if the key itself is refused.
        """
        (n,) = _read_key(data, _PUBLIC, 1)
        return cls.from_numbers(n, min_bits=min_bits)

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the canonical bytes; what clients pin."""
        return hashlib.sha256(self.to_bytes()).digest()

    def __repr__(self) -> str:
        return f"PublicKey({self.bits} bits, key_id={self.key_id.hex()[:16]}...)"


class SecretKey:
    """A Paillier secret key. Whoever has it reads every ciphertext ever made under its modulus.

    It cannot be pickled or copied and its repr shows nothing. Build it with :meth:`from_numbers`,
    :meth:`from_bytes` or :func:`generate_keypair`.

    Attributes:
        public: the public key.
    """

    __slots__ = ("_cache", "_p", "_q", "public")

    def __init__(self, p: int, q: int, public: PublicKey) -> None:
        self._p, self._q = (bigint.integer(x) for x in sorted((p, q)))
        self.public = public
        self._cache: dict[int, tuple[_Half, _Half, Integer]] = {}

    @classmethod
    def from_numbers(cls, p: int, q: int, *, min_bits: int = MIN_BITS) -> SecretKey:
        """A checked secret key.

        Raises:
            ConfigurationError: if p or q is not prime, they are of unequal length or too close, or
                n is not of full length. No message holds p or q.
        """
        if not all(isinstance(x, int) and not isinstance(x, bool) and x > 1 for x in (p, q)):
            raise ConfigurationError("the primes of a secret key must be positive integers")
        bits = (p * q).bit_length()
        if p.bit_length() != q.bit_length() or bits != 2 * p.bit_length():
            raise ConfigurationError(
                f"both primes must have half of the modulus' {bits} bits, found "
                f"{p.bit_length()} and {q.bit_length()}"
            )
        if abs(p - q).bit_length() <= bits // 2 - 100:
            raise ConfigurationError("the two primes are too close: the modulus can be factored")
        public = PublicKey.from_numbers(p * q, min_bits=min_bits)
        if not bigint.is_prime(p) or not bigint.is_prime(q):
            raise ConfigurationError("a factor of the modulus is not prime")
        # gcd(n, phi(n)) = 1, on which decryption rests, holds for unequal primes of one length: p
        # could only divide q - 1 if q > 2p.
        return cls(p, q, public)

    def primes(self) -> tuple[int, int]:
        """The secret factors (p, q): for the dealer of shares and for stock key files only."""
        return int(self._p), int(self._q)

    def to_secret_bytes(self) -> bytes:
        """Canonical bytes *with the factors*: store them encrypted or with mode 0600."""
        length = self.public.bits // 16
        body = b"".join(bigint.to_bytes(x, length) for x in (self._p, self._q))
        return _HEADER.pack(_MAGIC, 1, _SECRET, length) + body

    @classmethod
    def from_bytes(cls, data: bytes, *, min_bits: int = MIN_BITS) -> SecretKey:
        """Reads :meth:`to_secret_bytes`, with full validation.

        Raises:
            WireError: on malformed bytes.
            ConfigurationError: if the key itself is refused.
        """
        p, q = _read_key(data, _SECRET, 2)
        return cls.from_numbers(p, q, min_bits=min_bits)

    def decrypt(self, ciphertext: Integer, s: int = 1) -> int:
        """The plaintext of one ciphertext, in [0, n^s).

        Decides nothing: it is the protocol's key holder that must refuse single ciphertexts.

        Args:
            ciphertext: an element of (Z / n^(s+1))*; see :func:`~.block.check_ciphertexts`.
            s: its degree.
        """
        half_p, half_q, p_inverse = self._halves(s)
        c = bigint.integer(ciphertext)
        m_p, m_q = half_p.residue(c), half_q.residue(c)
        modulus_p, modulus_q = half_p.plaintexts, half_q.plaintexts
        return int(m_p + modulus_p * ((m_q - m_p) * p_inverse % modulus_q))

    def decrypt_all(
        self, ciphertexts: Sequence[Integer], s: int = 1, *, threads: int = 1
    ) -> list[int]:
        """The plaintexts of several ciphertexts, in order; see :meth:`decrypt`.

        Args:
            ciphertexts: elements of (Z / n^(s+1))*.
            s: their degree.
            threads: how many work side by side; worth it with gmpy2 only.
        """
        self._halves(s)  # once, before threads would each make them
        return bigint.map_in_threads(lambda c: self.decrypt(c, s), ciphertexts, threads)

    def _halves(self, s: int) -> tuple[_Half, _Half, Integer]:
        found = self._cache.get(s)
        if found is None:
            n = self.public.degree(s).n
            half_p, half_q = _Half(n, self._p, s), _Half(n, self._q, s)
            inverse = bigint.invert(half_p.plaintexts, half_q.plaintexts)
            found = self._cache[s] = (half_p, half_q, inverse)
        return found

    def __repr__(self) -> str:
        return f"SecretKey(<secret>, {self.public!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecretKey cannot be pickled or copied")

    def __getstate__(self) -> NoReturn:
        self.__reduce__()


class _Half:
    """Decryption modulo one prime: x = c^(p-1) = (1+n)^i mod p^(s+1), i = m (p-1) mod p^s."""

    __slots__ = ("_exponent", "_inverse", "_log", "_modulus", "plaintexts")

    def __init__(self, n: Integer, p: Integer, s: int) -> None:
        self._modulus = p ** (s + 1)
        self.plaintexts = p**s
        self._exponent = p - 1
        self._inverse = bigint.invert(p - 1, self.plaintexts)
        self._log = Logarithm(n, p, s)

    def residue(self, c: Integer) -> Integer:
        x = bigint.powmod_secret(c % self._modulus, self._exponent, self._modulus)
        return self._log(x) * self._inverse % self.plaintexts


def _read_key(data: bytes, kind: int, numbers: int) -> tuple[int, ...]:
    if len(data) < _HEADER.size:
        raise WireError(f"a Paillier key has at least {_HEADER.size} bytes, found {len(data)}")
    magic, version, found_kind, length = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != 1:
        raise WireError("this is not a Paillier key of version 1")
    if found_kind != kind:
        names = {_PUBLIC: "public", _SECRET: "secret"}
        raise WireError(
            f"expected a {names[kind]} Paillier key, found a {names.get(found_kind, 'unknown')} one"
        )
    if len(data) != _HEADER.size + numbers * length or not length:
        raise WireError(
            f"a Paillier key of {numbers} x {length} bytes has {_HEADER.size + numbers * length}, "
            f"found {len(data)}"
        )
    pieces = [data[_HEADER.size + i * length :][:length] for i in range(numbers)]
    if any(not piece[0] for piece in pieces):
        raise WireError("a number of a Paillier key starts with a zero byte")
    return tuple(int.from_bytes(piece, "big") for piece in pieces)


def generate_keypair(
    bits: int = DEFAULT_BITS,
    *,
    primes: Literal["safe", "blum"] = "safe",
    random_bytes: Callable[[int], bytes] = urandom,
    min_bits: int = MIN_BITS,
) -> SecretKey:
    """A fresh key pair.

    Args:
        bits: length of the modulus, a multiple of 16.
        primes: ``"safe"``: p = 2p'+1 with p' prime, which full-length blinding (DCR alone) and
            threshold keys need; ``"blum"``: p = q = 3 mod 4 and gcd(p-1, q-1) = 2, much faster.
        random_bytes: source of randomness; only tests give another one.
        min_bits: below 2048 only in tests.

    Returns:
        The secret key, which holds its public key.

    Raises:
        ConfigurationError: on an impossible length or kind.
    """
    if bits % 16 or not min_bits <= bits <= MAX_BITS:
        raise ConfigurationError(
            f"a key length must be a multiple of 16 in {min_bits}..{MAX_BITS}, found {bits}"
        )
    if primes not in ("safe", "blum"):
        raise ConfigurationError(f'primes must be "safe" or "blum", found {primes!r}')
    find = _safe_prime if primes == "safe" else _blum_prime
    while True:
        p, q = find(bits // 2, random_bytes), find(bits // 2, random_bytes)
        coprime = bigint.gcd(p - 1, q - 1) == 2  # both are even
        if coprime and abs(p - q).bit_length() > bits // 2 - 100:
            return SecretKey.from_numbers(p, q, min_bits=min_bits)


def _start(bits: int, random_bytes: Callable[[int], bytes]) -> int:
    """A uniform number of ``bits`` bits with its two highest bits set."""
    return bigint.random_bits(bits, random_bytes) | 3 << (bits - 2)


def _blum_prime(bits: int, random_bytes: Callable[[int], bytes]) -> int:
    while True:
        candidate = _start(bits, random_bytes) | 3
        if all(candidate % r for r in bigint.small_primes()[1:200]) and bigint.is_prime(candidate):
            return candidate


def _safe_prime(bits: int, random_bytes: Callable[[int], bytes]) -> int:
    """A prime p = 2p'+1 with p' prime: a joint sieve of p' and p over a random window.

    The survivors of a window are tried in random order, so that the primes after long gaps are not
    favoured within it.
    """
    while True:
        first = _start(bits, random_bytes) >> 1 | 1
        # p' = first + 2i: i is hit when r divides p' or 2p'+1.
        open_places = np.ones(_SIEVE_WINDOW, dtype=bool)
        for r in bigint.small_primes()[1:]:
            half = (r + 1) // 2  # 1/2 mod r
            for target in (0, (r - 1) // 2):  # p' = 0; p' = -1/2, i.e. 2p'+1 = 0
                open_places[(target - first) * half % r :: r] = False
        places = np.flatnonzero(open_places)
        keys = np.frombuffer(random_bytes(8 * len(places)), dtype=np.uint64)
        for i in places[np.argsort(keys)]:
            small = first + 2 * int(i)
            p = 2 * small + 1
            if p.bit_length() != bits:
                continue
            if bigint.powmod(2, small - 1, small) != 1 or bigint.powmod(2, p - 1, p) != 1:
                continue
            if bigint.is_prime(small) and bigint.is_prime(p):
                return p
