"""The bytes of a vector of ciphertexts, and what is accepted as a ciphertext.

    key_id 32 | mode u8 | s u8 | width u8 | bound u64 | dimension u32 | count u32 | terms u32
    count x W

All big-endian, W = bytes of n^(s+1). ``terms`` says how many vectors are summed inside: 1 in a
submission, K in the product of K submissions. A header whose terms could overflow its slots is
refused, when it is made and when it is read. There is no exponent, no decimal and no field that
depends on the values: two vectors of one shape have equal length and equal headers.

The header is a statement of whoever wrote it. Deciders hold it against the list of signed
submissions, and offsets are removed with the length of that list.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from securefl.errors import ConfigurationError, WireError
from securefl.primitives import bigint
from securefl.primitives.paillier.algebra import MAX_DEGREE, Degree

__all__ = ["HEADER_BYTES", "Block", "BlockMode", "are_ciphertexts"]

_HEADER = struct.Struct(">32sBBBQIII")
HEADER_BYTES = _HEADER.size


class BlockMode(IntEnum):
    """What the plaintexts are."""

    PACKED = 1
    HYBRID = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A vector of ciphertexts with the shape of what is inside.

    Attributes:
        key_id: 32 bytes, whose key.
        mode: what the plaintexts are.
        s: degree.
        width: slot width w in bits.
        bound: B, the values' bound.
        dimension: how many values are packed.
        terms: how many vectors are summed inside, at least 1.
        ciphertexts: ceil(dimension / slots) of them, each in (0, n^(s+1)).

    Raises:
        ConfigurationError: if there is no term, or sums of so many could leave their slots.
    """

    key_id: bytes
    mode: BlockMode
    s: int
    width: int
    bound: int
    dimension: int
    terms: int
    ciphertexts: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.terms < 1 or (2 * self.bound * self.terms) >> self.width:
            most = ((1 << self.width) - 1) // (2 * max(1, self.bound))
            raise ConfigurationError(
                f"slots of {self.width} bits hold sums of 1 to {most} values up to {self.bound}, "
                f"found {self.terms}: add up fewer vectors, or size the slots for more"
            )

    @property
    def shape(self) -> tuple[bytes, int, int, int, int, int, int, int]:
        """Everything but the ciphertexts: equal for all submissions of a round."""
        return (
            self.key_id, self.mode, self.s, self.width, self.bound, self.dimension,
            len(self.ciphertexts), self.terms,
        )  # fmt: skip

    def to_bytes(self, degree: Degree) -> bytes:
        """The block's only encoding."""
        W = degree.ciphertext_bytes
        header = _HEADER.pack(*self.shape)
        return header + b"".join(bigint.to_bytes(c, W) for c in self.ciphertexts)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, degree: Degree) -> Block:
        """Reads :meth:`to_bytes` and checks every ciphertext (:func:`are_ciphertexts`).

        Raises:
            WireError: on malformed bytes, another degree, a wrong length, more terms than the slots
                hold, or a number that is no ciphertext. The message holds no value: it could be a
                factor of n.
        """
        if len(data) < HEADER_BYTES:
            raise WireError(f"a block has at least {HEADER_BYTES} bytes, found {len(data)}")
        key_id, mode, s, width, bound, dimension, count, terms = _HEADER.unpack_from(data)
        if mode not in set(BlockMode):
            raise WireError(f"unknown block mode {mode}")
        if s != degree.s or not 1 <= s <= MAX_DEGREE:
            raise WireError(f"expected ciphertexts of degree {degree.s}, found {s}")
        W = degree.ciphertext_bytes
        if len(data) != HEADER_BYTES + count * W:
            raise WireError(
                f"a block of {count} ciphertexts has {HEADER_BYTES + count * W} bytes, "
                f"found {len(data)}"
            )
        body = bytes(data[HEADER_BYTES:])
        numbers = tuple(int.from_bytes(body[i : i + W], "big") for i in range(0, len(body), W))
        if not are_ciphertexts(numbers, degree):
            raise WireError("a block holds a number that is no ciphertext under this key")
        try:
            return cls(
                key_id=key_id,
                mode=BlockMode(mode),
                s=s,
                width=width,
                bound=bound,
                dimension=dimension,
                terms=terms,
                ciphertexts=numbers,
            )
        except ConfigurationError as error:
            raise WireError(f"a block announces an impossible sum: {error}") from None


def are_ciphertexts(numbers: Sequence[int], degree: Degree) -> bool:
    """Whether all are units modulo n^(s+1) in (0, n^(s+1)): one gcd of their product with n."""
    if not all(0 < c < degree.modulus for c in numbers):
        return False
    return bool(bigint.gcd(bigint.product_mod(numbers, degree.n), degree.n) == 1)
