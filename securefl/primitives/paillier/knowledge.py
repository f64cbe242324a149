"""A proof that a client knows what its ciphertexts contain, batched over a whole submission.

Without it the scheme's malleability breaks *confidentiality*: a server with one colluding client
submits a victim's ciphertext, shifted to other slots, as the colluder's own, and reads it in the
opened sum. The proof is Damgard and Jurik's (2001, section 4.2; a Schnorr proof in the group of
ciphertexts) for a random linear combination of the ciphertexts, made non-interactive by hashing
(Fiat, Shamir 1986) everything that it is about: key, session, round, client, header, ciphertexts.

    U = (1+n)^y hs^alpha;   e_j = hash(context, c_1..c_k, U);
    z = y + sum e_j m_j mod n^s;   zeta = alpha + sum e_j a_j in Z
    check: (1+n)^z hs^zeta = U prod c_j^(e_j)

It proves *knowledge*, not range: a client can still write any number it knows into any slot.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from securefl.errors import ConfigurationError, WireError
from securefl.primitives import bigint
from securefl.primitives.bigint import Integer
from securefl.primitives.paillier.algebra import derive
from securefl.primitives.paillier.encryptor import Encryptor, Randomness, Sealed

__all__ = ["KnowledgeProof", "multi_power", "prove_knowledge", "verify_knowledge"]

CHALLENGE_BYTES = 16
_SEED_BYTES = 32
_HIDING_BITS = 128
"""The response is within 2^-128 of a distribution that does not depend on the secrets."""

_HEADER = struct.Struct(">32sHH")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnowledgeProof:
    """What a client sends beside its ciphertexts.

    Attributes:
        seed: 32 bytes, from which the challenges follow.
        z: in [0, n^s).
        zeta: the response for the blinding exponents, below twice its public bound.
    """

    seed: bytes
    z: int
    zeta: int

    def to_bytes(self) -> bytes:
        """Seed, two lengths (u16), two big-endian numbers."""
        parts = [x.to_bytes(max(1, -(-x.bit_length() // 8)), "big") for x in (self.z, self.zeta)]
        return _HEADER.pack(self.seed, *map(len, parts)) + b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> KnowledgeProof:
        """Reads :meth:`to_bytes`.

        Raises:
            WireError: on wrong lengths, bytes left over or numbers that are not as short as they
                can be.
        """
        if len(data) < _HEADER.size:
            raise WireError(f"a proof has at least {_HEADER.size} bytes, found {len(data)}")
        seed, first, second = _HEADER.unpack_from(data)
        body = bytes(data[_HEADER.size :])
        if len(body) != first + second or not first or not second:
            raise WireError(f"a proof announces {first} + {second} bytes, found {len(body)}")
        z, zeta = int.from_bytes(body[:first], "big"), int.from_bytes(body[first:], "big")
        proof = cls(seed=seed, z=z, zeta=zeta)
        if proof.to_bytes() != bytes(data):
            raise WireError("a number of a proof is not written in its shortest form")
        return proof


def _mask_bits(count: int) -> int:
    """Bits of alpha above the table: challenge, hiding, one for the shifted digits, the count."""
    return 8 * CHALLENGE_BYTES + _HIDING_BITS + 1 + count.bit_length()


def _response_bound(encryptor: Encryptor, count: int) -> int:
    """No honest zeta reaches it: 2A with A = 2^(E + 8 + mask bits)."""
    return encryptor.exponent_bound << (_mask_bits(count) + 1)


def _challenges(seed: bytes, count: int) -> list[int]:
    stream = derive("securefl/paillier/challenge/v1", seed, length=CHALLENGE_BYTES * count)
    return [
        int.from_bytes(stream[i : i + CHALLENGE_BYTES], "big")
        for i in range(0, len(stream), CHALLENGE_BYTES)
    ]


def _seed(
    encryptor: Encryptor, context: bytes, ciphertexts: Sequence[int], commitment: Integer
) -> bytes:
    width = encryptor.degree.ciphertext_bytes
    return derive(
        "securefl/paillier/knowledge/v1",
        encryptor.public.to_bytes(),
        encryptor.degree.s,
        str(encryptor.randomness).encode(),
        context,
        b"".join(bigint.to_bytes(c, width) for c in ciphertexts),
        bigint.to_bytes(commitment, width),
        length=_SEED_BYTES,
    )


def prove_knowledge(
    encryptor: Encryptor,
    plaintexts: Sequence[int],
    sealed: Sealed,
    context: bytes,
    *,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> KnowledgeProof:
    """Proves knowledge of all plaintexts and exponents of ``sealed``.

    Args:
        encryptor: what encrypted them.
        plaintexts: in [0, n^s).
        sealed: their ciphertexts and exponents.
        context: session, round, client and header: everything the proof must be bound to.
        random_bytes: source of secret randomness.

    Raises:
        ConfigurationError: under ``CLASSIC`` randomness, or if the lengths differ.
    """
    exponents = sealed.exponents
    if exponents is None:
        raise ConfigurationError(
            "classic randomness has no exponent to prove knowledge of: use half or full"
        )
    if not len(plaintexts) == len(exponents) == len(sealed.ciphertexts):
        raise ConfigurationError("a proof needs one plaintext and one exponent per ciphertext")
    degree, count = encryptor.degree, len(exponents)
    y = bigint.random_below(degree.plaintexts, random_bytes)
    table = encryptor.table(count)
    digits = table.digits.draw(random_bytes)
    # alpha = digits + 2^(f D) high: the table does the low part, one short power the rest.
    high = 1 + bigint.random_bits(_mask_bits(count), random_bytes)
    reach = table.digits.window * table.digits.count
    alpha = table.digits.exponent(digits) + (high << reach)
    commitment = table.blind(bigint.integer(y), digits)
    commitment = commitment * bigint.powmod_secret(table.top, high, degree.modulus) % degree.modulus
    seed = _seed(encryptor, context, sealed.ciphertexts, commitment)
    challenges = _challenges(seed, count)
    z = y + sum(e * m for e, m in zip(challenges, plaintexts, strict=True))
    zeta = alpha + sum(e * a for e, a in zip(challenges, exponents, strict=True))
    return KnowledgeProof(seed=seed, z=int(z % degree.plaintexts), zeta=int(zeta))


def verify_knowledge(
    encryptor: Encryptor, ciphertexts: Sequence[int], proof: KnowledgeProof, context: bytes
) -> bool:
    """Whether the proof holds for these ciphertexts, in this context, under this key and mode.

    Args:
        encryptor: key, degree and mode the ciphertexts must be of.
        ciphertexts: checked by :func:`~.block.are_ciphertexts` beforehand.
        proof: what the client sent.
        context: the same bytes as the client's.
    """
    degree, count = encryptor.degree, len(ciphertexts)
    if encryptor.randomness is Randomness.CLASSIC or not count:
        return False
    in_range = 0 <= proof.z < degree.plaintexts
    if not in_range or not 0 <= proof.zeta < _response_bound(encryptor, count):
        return False
    product = multi_power(ciphertexts, _challenges(proof.seed, count), degree.modulus)
    if bigint.gcd(product, degree.n) != 1:
        return False
    claimed = degree.one_plus_n(bigint.integer(proof.z))
    claimed = claimed * encryptor.table(count).public_power(proof.zeta) % degree.modulus
    commitment = claimed * bigint.invert(product, degree.modulus) % degree.modulus
    return _seed(encryptor, context, ciphertexts, commitment) == proof.seed


def multi_power(bases: Sequence[Integer], exponents: Sequence[int], modulus: Integer) -> Integer:
    """The product of bases[j]^exponents[j], for *public* exponents, by buckets (Pippenger 1980).

    Args:
        bases: residues modulo ``modulus``.
        exponents: >= 0, of similar length; time depends on them.
        modulus: the modulus.
    """
    window = 8 if len(bases) > 200 else 4 if len(bases) > 8 else 2
    mask, length = (1 << window) - 1, max((e.bit_length() for e in exponents), default=0)
    numbers = [bigint.integer(b) for b in bases]
    total = bigint.integer(1)
    for place in range(-(-length // window) - 1, -1, -1):
        for _ in range(window):
            total = total * total % modulus
        buckets: list[Integer | None] = [None] * (mask + 1)
        for base, exponent in zip(numbers, exponents, strict=True):
            digit = exponent >> (window * place) & mask
            kept = buckets[digit]
            buckets[digit] = base if kept is None else kept * base % modulus
        total = total * _weighted(buckets, modulus) % modulus
    return total


def _weighted(buckets: Sequence[Integer | None], modulus: Integer) -> Integer:
    """The product of buckets[d]^d: running products from the highest digit down."""
    running, total = bigint.integer(1), bigint.integer(1)
    for kept in reversed(buckets[1:]):
        if kept is not None:
            running = running * kept % modulus
        total = total * running % modulus
    return total
