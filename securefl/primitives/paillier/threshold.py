"""Threshold decryption, any t of l, with a trusted dealer (Damgard, Jurik 2001, section 4).

Adversary: up to t-1 share holders pool everything they have and may send wrong partials; they
learn nothing and every wrong partial is traced to its sender. Trusted: the dealer, who knows every
secret and must forget it. 3072-bit moduli are the product of safe primes.

    d = 0 mod p'q', d = 1 mod n^s;   f(X) = d + a_1 X + .. + a_(t-1) X^(t-1) over Z_(n^s p'q')
    share s_i = f(i);   Delta = l!;   v generates the squares;   v_i = v^(Delta s_i)
    partial c_i = c^(2 Delta s_i);   c' = prod c_i^(2 mu_i) = (1+n)^(4 Delta^2 m)

The public key holds n, s, t, l, v and the v_i, and nothing from which n could be factored (never
p'q' or a multiple of it, never d). A partial carries a proof, batched over all ciphertexts, that
it used the share behind v_i: that the combination is 1 modulo n is *not* sufficient, since
c_i (1+n)^x passes that test and opens to a wrong sum. Batching by 128-bit random exponents is
sound because the squares modulo n^(s+1) have no element of small order when p' and q' exceed
2^128 (small-exponents test; Bellare, Garay, Rabin 1998); this rests on the dealer's safe primes.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import factorial, prod
from typing import NoReturn

from securefl.errors import ConfigurationError, SecureFLError, WireError
from securefl.primitives import bigint
from securefl.primitives.bigint import Integer
from securefl.primitives.paillier.algebra import Degree, derive
from securefl.primitives.paillier.block import are_ciphertexts
from securefl.primitives.paillier.keys import DEFAULT_BITS, MIN_BITS, PublicKey, generate_keypair
from securefl.primitives.paillier.knowledge import multi_power

__all__ = [
    "KeyShare",
    "NotAPlaintext",
    "PartialProof",
    "ThresholdPublicKey",
    "deal",
    "default_threshold",
]

MAX_PARTIES = 255
_CHALLENGE_BYTES = 16
_HEADER = struct.Struct(">4sBBBBBH")
_SHARE = struct.Struct(">4sBBH")
_MAGIC_PUBLIC, _MAGIC_SHARE = b"SFLT", b"SFLS"


class NotAPlaintext(SecureFLError):
    """Partials whose combination is no power of 1+n: at least one of them is wrong."""


def default_threshold(parties: int) -> int:
    """The default t = floor(2l/3) + 1: against split views it tolerates c < l/3 corrupt holders.

    >>> default_threshold(10)
    7
    """
    return min(parties, 2 * parties // 3 + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialProof:
    """That one party's partials were made with its share (Chaum, Pedersen 1992, by hashing).

    Attributes:
        challenge: 128 bits.
        response: z = r + challenge Delta s_i, an integer.
    """

    challenge: int
    response: int

    def to_bytes(self) -> bytes:
        """The challenge (16 bytes), then the response, big-endian, as short as it can be."""
        length = max(1, -(-self.response.bit_length() // 8))
        return self.challenge.to_bytes(_CHALLENGE_BYTES, "big") + self.response.to_bytes(
            length, "big"
        )

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> PartialProof:
        """Reads :meth:`to_bytes`.

        Raises:
            WireError: if it is too short or not in shortest form.
        """
        raw = bytes(data)
        proof = cls(
            challenge=int.from_bytes(raw[:_CHALLENGE_BYTES], "big"),
            response=int.from_bytes(raw[_CHALLENGE_BYTES:], "big"),
        )
        if len(raw) <= _CHALLENGE_BYTES or proof.to_bytes() != raw:
            raise WireError(f"a proof of {len(raw)} bytes is not in its shortest form")
        return proof


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdPublicKey:
    """What everybody knows about a threshold key.

    Attributes:
        public: the Paillier key that clients encrypt under.
        s: degree.
        threshold: t, how many partials open a ciphertext.
        parties: l.
        v: generator of the squares modulo n^(s+1).
        verification: v_i = v^(Delta s_i) for i = 1..l.

    Raises:
        ConfigurationError: unless 2 <= t <= l <= 255, there is one v_i per party, each a unit, and
            v is no number of obviously small order.
    """

    public: PublicKey
    s: int
    threshold: int
    parties: int
    v: int
    verification: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_parties(self.threshold, self.parties)
        if len(self.verification) != self.parties:
            raise ConfigurationError(
                f"a key of {self.parties} parties needs as many verification values, found "
                f"{len(self.verification)}"
            )
        N = self.degree.modulus
        if not all(
            1 < x < N and bigint.gcd(x, self.public.n) == 1 for x in (self.v, *self.verification)
        ):
            raise ConfigurationError("a verification value is not a unit modulo n^(s+1)")
        # What anybody can check of a generator of the squares: a v of small order, as -1 or a power
        # of 1+n, would make every proof about partials true.
        if any(bigint.jacobi(x, self.public.n) != 1 for x in (self.v, *self.verification)) or (
            bigint.gcd(self.v * self.v - 1, self.public.n) != 1
        ):
            raise ConfigurationError("the verification base does not generate the squares")

    @property
    def degree(self) -> Degree:
        """The numbers of this key's degree."""
        return self.public.degree(self.s)

    @property
    def delta(self) -> int:
        """Delta = l!."""
        return factorial(self.parties)

    def to_bytes(self) -> bytes:
        """Canonical bytes: header, n, v, v_1..v_l, all big-endian and of fixed length."""
        W = self.degree.ciphertext_bytes
        length = self.public.bits // 8
        header = _HEADER.pack(_MAGIC_PUBLIC, 1, self.s, self.threshold, self.parties, 0, length)
        numbers = b"".join(x.to_bytes(W, "big") for x in (self.v, *self.verification))
        return header + self.public.n.to_bytes(length, "big") + numbers

    @classmethod
    def from_bytes(cls, data: bytes, *, min_bits: int = MIN_BITS) -> ThresholdPublicKey:
        """Reads :meth:`to_bytes` and checks the key.

        Raises:
            WireError: on malformed bytes.
            ConfigurationError: if the key is refused, or its v_i do not lie on one polynomial.
        """
        if len(data) < _HEADER.size or data[:4] != _MAGIC_PUBLIC:
            raise WireError("this is not a threshold Paillier key")
        _, version, s, threshold, parties, zero, length = _HEADER.unpack_from(data)
        body = data[_HEADER.size :]
        if version != 1 or zero or len(body) < length:
            raise WireError("this is not a threshold Paillier key of version 1")
        public = PublicKey.from_numbers(int.from_bytes(body[:length], "big"), min_bits=min_bits)
        W = public.degree(s).ciphertext_bytes
        if public.bits != 8 * length or len(body) != length + W * (parties + 1):
            raise WireError("a threshold Paillier key has bytes missing or left over")
        numbers = [int.from_bytes(body[i : i + W], "big") for i in range(length, len(body), W)]
        key = cls(
            public=public,
            s=s,
            threshold=threshold,
            parties=parties,
            v=numbers[0],
            verification=tuple(numbers[1:]),
        )
        if not key.is_consistent():
            raise ConfigurationError(
                "the verification values of this key do not belong to one polynomial of degree "
                f"{threshold - 1}: different sets of share holders would open different sums"
            )
        return key

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the canonical bytes; what clients and share holders pin."""
        return hashlib.sha256(self.to_bytes()).digest()

    def is_consistent(self) -> bool:
        """Whether all v_i come from one polynomial of degree below t (public check)."""
        N, first = self.degree.modulus, range(1, self.threshold + 1)
        for j in range(self.threshold + 1, self.parties + 1):
            exponents = [_lagrange(self.delta, first, i, at=j) for i in first]
            left = bigint.powmod(self.verification[j - 1], self.delta, N)
            chosen = [self.verification[i - 1] for i in first]
            if left != _signed_product(chosen, exponents, N):
                return False
        return True

    def combine(self, partials: Mapping[int, Sequence[int]]) -> list[int]:
        """The plaintexts behind t or more verified partials (the t lowest indices are used).

        Args:
            partials: party index (1..l) -> its partials, one per ciphertext, all verified.

        Raises:
            ConfigurationError: if fewer than t parties are there or their lengths differ.
            NotAPlaintext: if the combination is no power of 1+n.
        """
        chosen = sorted(partials)[: self.threshold]
        if len(chosen) < self.threshold or not set(chosen) <= set(range(1, self.parties + 1)):
            raise ConfigurationError(
                f"{self.threshold} of {self.parties} partials are needed, found {sorted(partials)}"
            )
        if len({len(partials[i]) for i in chosen}) != 1:
            raise ConfigurationError("parties sent partials for different numbers of ciphertexts")
        degree, delta = self.degree, self.delta
        exponents = [2 * _lagrange(delta, chosen, i, at=0) for i in chosen]
        scale = bigint.invert(4 * delta * delta, degree.plaintexts)
        plaintexts = []
        for row in zip(*(partials[i] for i in chosen), strict=True):
            opened = _signed_product(row, exponents, degree.modulus)
            if opened % degree.n != 1:
                raise NotAPlaintext("the partials do not combine to a plaintext: one is wrong")
            plaintexts.append(int(degree.log(opened) * scale % degree.plaintexts))
        return plaintexts

    def verify(
        self,
        index: int,
        ciphertexts: Sequence[int],
        partials: Sequence[int],
        proof: PartialProof,
        context: bytes,
    ) -> bool:
        """Whether party ``index`` made these partials of these ciphertexts with its share.

        Args:
            index: 1..l.
            ciphertexts: what was to be opened.
            partials: what the party sent; False unless all are units modulo n^(s+1).
            proof: its proof.
            context: session, round and contributor list: what the proof must be bound to.
        """
        if not 1 <= index <= self.parties or len(partials) != len(ciphertexts) or not ciphertexts:
            return False
        degree = self.degree
        if not are_ciphertexts(partials, degree):
            return False
        N, v_i = degree.modulus, self.verification[index - 1]
        if not 0 <= proof.response < 1 << (_nonce_bits(self) + 1):
            return False
        seed, base, image = _batch(self, index, ciphertexts, partials, context)
        minus = proof.challenge
        a = bigint.powmod(base, proof.response, N) * bigint.invert(
            bigint.powmod(image, minus, N), N
        )
        b = bigint.powmod(self.v, proof.response, N) * bigint.invert(
            bigint.powmod(v_i, minus, N), N
        )
        return _challenge(self, seed, (base, image, a % N, b % N)) == proof.challenge

    def __repr__(self) -> str:
        return (
            f"ThresholdPublicKey({self.threshold} of {self.parties}, {self.public.bits} bits, "
            f"s={self.s}, key_id={self.key_id.hex()[:16]}...)"
        )


class KeyShare:
    """One party's share of a threshold key: t of them read everything.

    It cannot be pickled or copied and its repr shows nothing.

    Attributes:
        index: 1..l.
        public: the threshold public key.

    Raises:
        ConfigurationError: if the share does not belong to the key's v_i.
    """

    __slots__ = ("_value", "index", "public")

    def __init__(self, index: int, value: int, public: ThresholdPublicKey) -> None:
        if not 1 <= index <= public.parties:
            raise ConfigurationError(f"a share index must be in 1..{public.parties}, found {index}")
        self.index, self.public = index, public
        self._value = bigint.integer(value)
        N = public.degree.modulus
        exponent = public.delta * self._value
        if (
            value <= 0
            or bigint.powmod_secret(public.v, exponent, N) != (public.verification[index - 1])
        ):
            raise ConfigurationError(
                f"share {index} does not belong to this key: ask the dealer for it again"
            )

    def partial(self, ciphertexts: Sequence[int], *, threads: int = 1) -> tuple[int, ...]:
        """Partials c^(2 Delta s_i), one per ciphertext; what may be opened is not its matter.

        Args:
            ciphertexts: checked by :func:`~.block.are_ciphertexts` beforehand.
            threads: how many work side by side; worth it with gmpy2 only.
        """
        exponent = 2 * self.public.delta * self._value
        N = self.public.degree.modulus
        return tuple(
            bigint.map_in_threads(
                lambda c: int(bigint.powmod_secret(c, exponent, N)), ciphertexts, threads
            )
        )

    def partial_with_proof(
        self,
        ciphertexts: Sequence[int],
        context: bytes,
        *,
        threads: int = 1,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> tuple[tuple[int, ...], PartialProof]:
        """Partials and one proof for all of them.

        Args:
            ciphertexts: checked by :func:`~.block.are_ciphertexts` beforehand.
            context: session, round and contributor list.
            threads: as in :meth:`partial`.
            random_bytes: source of the secret nonce.
        """
        partials = self.partial(ciphertexts, threads=threads)
        public, N = self.public, self.public.degree.modulus
        seed, base, image = _batch(public, self.index, ciphertexts, partials, context)
        r = 1 + bigint.random_bits(_nonce_bits(public), random_bytes)
        a = bigint.powmod_secret(base, r, N)
        b = bigint.powmod_secret(public.v, r, N)
        challenge = _challenge(public, seed, (base, image, a, b))
        response = r + challenge * public.delta * self._value
        return partials, PartialProof(challenge=challenge, response=int(response))

    def to_secret_bytes(self) -> bytes:
        """Canonical bytes *with the share*: store them encrypted or with mode 0600."""
        length = -(-int(self._value).bit_length() // 8)
        return (
            _SHARE.pack(_MAGIC_SHARE, 1, self.index, length)
            + self.public.key_id
            + bigint.to_bytes(self._value, length)
        )

    @classmethod
    def from_bytes(cls, data: bytes, public: ThresholdPublicKey) -> KeyShare:
        """Reads :meth:`to_secret_bytes` and checks the share against the public key.

        Raises:
            WireError: on malformed bytes.
            ConfigurationError: if the share belongs to another key or is wrong.
        """
        start = _SHARE.size + 32
        if len(data) < start or data[:4] != _MAGIC_SHARE:
            raise WireError("this is not a share of a threshold Paillier key")
        _, version, index, length = _SHARE.unpack_from(data)
        if version != 1 or len(data) != start + length or not length or not data[start]:
            raise WireError("a share of a threshold Paillier key is malformed")
        if data[_SHARE.size : start] != public.key_id:
            raise ConfigurationError("this share belongs to another threshold key")
        return cls(index, int.from_bytes(data[start:], "big"), public)

    def __repr__(self) -> str:
        return f"KeyShare({self.index} of {self.public.parties}, <secret>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KeyShare cannot be pickled or copied")

    def __getstate__(self) -> NoReturn:
        self.__reduce__()


def deal(
    *,
    threshold: int,
    parties: int,
    bits: int = DEFAULT_BITS,
    s: int = 1,
    random_bytes: Callable[[int], bytes] = os.urandom,
    min_bits: int = MIN_BITS,
) -> tuple[ThresholdPublicKey, list[KeyShare]]:
    """The trusted dealer: makes a key, its shares, and forgets the rest.

    The caller hands each share to its holder over a confidential channel and keeps none.

    Args:
        threshold: t, at least 2.
        parties: l, at most 255.
        bits: length of the modulus.
        s: degree; 1 unless uplinks are very slow.
        random_bytes: source of randomness; only tests give another one.
        min_bits: below 2048 only in tests.

    Returns:
        The public key and l shares, in index order.

    Raises:
        ConfigurationError: on impossible numbers.
    """
    _check_parties(threshold, parties)
    secret = generate_keypair(bits, primes="safe", random_bytes=random_bytes, min_bits=min_bits)
    p, q = secret.primes()
    order = (p - 1) // 2 * ((q - 1) // 2)
    degree = secret.public.degree(s)
    modulus = degree.plaintexts * order
    # d = 0 mod p'q' and d = 1 mod n^s.
    d = order * bigint.invert(order, degree.plaintexts) % modulus
    coefficients = [d, *(bigint.random_below(modulus, random_bytes) for _ in range(threshold - 1))]
    values = [
        sum(a * i**k for k, a in enumerate(coefficients)) % modulus for i in range(1, parties + 1)
    ]
    v = _generator(degree, order, random_bytes)
    delta = factorial(parties)
    public = ThresholdPublicKey(
        public=secret.public,
        s=s,
        threshold=threshold,
        parties=parties,
        v=int(v),
        verification=tuple(int(bigint.powmod_secret(v, delta * x, degree.modulus)) for x in values),
    )
    return public, [KeyShare(i, int(x), public) for i, x in enumerate(values, start=1)]


def _generator(degree: Degree, order: Integer, random_bytes: Callable[[int], bytes]) -> Integer:
    """A random generator of the squares modulo n^(s+1), a cyclic group of order n^s p'q'."""
    n, N = degree.n, degree.modulus
    while True:
        y = bigint.random_below(N, random_bytes)
        v = bigint.integer(y) * y % N
        if bigint.gcd(y, n) != 1 or bigint.gcd(v - 1, n) != 1:
            continue
        lifted = bigint.powmod_secret(v, order, N)
        if bigint.gcd((lifted - 1) // n % n, n) == 1:
            return v


def _check_parties(threshold: int, parties: int) -> None:
    for name, value in (("threshold", threshold), ("parties", parties)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigurationError(f"{name} must be an integer, found {value!r}")
    if not 2 <= threshold <= parties <= MAX_PARTIES:
        raise ConfigurationError(
            f"a threshold key needs 2 <= t <= l <= {MAX_PARTIES}, found t = {threshold}, "
            f"l = {parties}"
        )


def _lagrange(delta: int, chosen: Sequence[int], i: int, *, at: int) -> int:
    """Delta times the Lagrange coefficient of i over ``chosen`` at a point: an exact integer."""
    others = [j for j in chosen if j != i]
    numerator, denominator = delta * prod(at - j for j in others), prod(i - j for j in others)
    quotient, rest = divmod(numerator, denominator)
    if rest:  # Delta = l! is divisible for every subset of 1..l
        raise ConfigurationError("indices of share holders are not distinct numbers in 1..l")
    return quotient


def _signed_product(bases: Sequence[Integer], exponents: Sequence[int], N: Integer) -> Integer:
    """The product of bases to public, possibly negative powers, with one inversion."""
    parts = {sign: [
        (base, abs(e)) for base, e in zip(bases, exponents, strict=True) if (e > 0) == (sign > 0)
    ] for sign in (1, -1)}  # fmt: skip
    up, down = (
        multi_power([b for b, _ in parts[sign]], [e for _, e in parts[sign]], N) for sign in (1, -1)
    )
    return up * bigint.invert(down, N) % N


def _nonce_bits(key: ThresholdPublicKey) -> int:
    """Length of r: |Delta s_i| plus the challenge plus 128 bits of hiding."""
    return key.public.bits * (key.s + 1) + key.delta.bit_length() + 256


def _statement(
    key: ThresholdPublicKey,
    index: int,
    ciphertexts: Sequence[int],
    partials: Sequence[int],
    context: bytes,
) -> bytes:
    W = key.degree.ciphertext_bytes
    return derive(
        "securefl/paillier/partial-batch/v1",
        key.key_id,
        index,
        context,
        b"".join(bigint.to_bytes(x, W) for x in ciphertexts),
        b"".join(bigint.to_bytes(x, W) for x in partials),
        length=32,
    )


def _batch(
    key: ThresholdPublicKey,
    index: int,
    ciphertexts: Sequence[int],
    partials: Sequence[int],
    context: bytes,
) -> tuple[bytes, Integer, Integer]:
    """The statement's digest, (prod c_j^(rho_j))^4 and (prod c_ij^(rho_j))^2, 128-bit rho_j."""
    N = key.degree.modulus
    seed = _statement(key, index, ciphertexts, partials, context)
    stream = derive("securefl/paillier/partial-rho/v1", seed, length=16 * len(ciphertexts))
    rho = [int.from_bytes(stream[i : i + 16], "big") for i in range(0, len(stream), 16)]
    base = bigint.powmod(multi_power(ciphertexts, rho, N), 4, N)
    image = bigint.powmod(multi_power(partials, rho, N), 2, N)
    return seed, base, image


def _challenge(key: ThresholdPublicKey, statement: bytes, values: Sequence[Integer]) -> int:
    """128 bits over the statement (key, party, context, ciphertexts, partials) and the values."""
    W = key.degree.ciphertext_bytes
    digest = derive(
        "securefl/paillier/partial-proof/v1",
        statement,
        *(bigint.to_bytes(x, W) for x in values),
        length=_CHALLENGE_BYTES,
    )
    return int.from_bytes(digest, "big")
