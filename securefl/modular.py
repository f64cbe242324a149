"""Integers modulo m: the one type that crosses the border between encoding and masking.

The encoding side knows floats and clip norms, the protocol side knows masks and keys; both know
:class:`RingVector` and nothing of each other. Values are held in the narrowest native word, so
that for a power-of-two modulus the wrap-around of unsigned arithmetic *is* the ring's addition up
to a final mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError

__all__ = ["MAX_MODULUS", "RingVector", "Words", "reduce_in_place", "ring_dtype"]

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""Native words of a ring: uint32 for moduli up to 2^32, uint64 above."""

MAX_MODULUS = 1 << 64


def ring_dtype(modulus: int) -> type[np.unsignedinteger[Any]]:
    """The native word of Z_m: ``uint32`` for m <= 2^32, else ``uint64``.

    Raises:
        ConfigurationError: unless 2 <= modulus <= 2^64.
    """
    if isinstance(modulus, bool) or not isinstance(modulus, int):
        raise ConfigurationError(f"modulus must be an int, found {type(modulus).__name__}")
    if not 2 <= modulus <= MAX_MODULUS:
        raise ConfigurationError(f"modulus must be in 2..2^64, found {modulus}")
    return np.uint32 if modulus <= 1 << 32 else np.uint64


def reduce_in_place(words: Words, modulus: int) -> None:
    """Reduces native words modulo ``modulus`` in place (a mask if it is a power of two)."""
    if modulus & (modulus - 1) == 0:
        if modulus - 1 != int(np.iinfo(words.dtype).max):
            np.bitwise_and(words, words.dtype.type(modulus - 1), out=words)
    else:
        np.remainder(words, words.dtype.type(modulus), out=words)


@dataclass(frozen=True, slots=True, eq=False)
class RingVector:
    """A vector over Z_m.

    Attributes:
        values: uint32[d] (m <= 2^32) or uint64[d], every value in [0, m).
        modulus: m, 2 <= m <= 2^64.

    Raises:
        ConfigurationError: on a wrong dtype or shape, or a value outside [0, m).

    >>> a = RingVector.from_signed([1, -1], modulus=16)
    >>> b = RingVector.from_signed([2, -3], modulus=16)
    >>> (a + b).centred().tolist()
    [3, -4]
    """

    values: Words
    modulus: int

    def __post_init__(self) -> None:
        dtype = ring_dtype(self.modulus)
        # No subclass: a masked array, for one, would leave its masked entries without a mask.
        if type(self.values) is not np.ndarray or self.values.dtype != dtype:
            found = type(self.values).__name__
            found = f"{self.values.dtype} array" if found == "ndarray" else found
            raise ConfigurationError(
                f"values modulo {self.modulus} must be {dtype.__name__}, found {found}"
            )
        if self.values.ndim != 1:
            raise ConfigurationError(f"values must have one axis, found shape {self.values.shape}")
        if self.values.size and int(self.values.max()) >= self.modulus:
            raise ConfigurationError(
                f"values must be below the modulus {self.modulus}, found {int(self.values.max())}"
            )

    @classmethod
    def zeros(cls, length: int, modulus: int) -> RingVector:
        """The zero vector of ``length`` entries."""
        return cls(np.zeros(length, dtype=ring_dtype(modulus)), modulus)

    @classmethod
    def from_signed(cls, integers: Sequence[int] | NDArray[np.int64], modulus: int) -> RingVector:
        """Signed integers in [-m/2, m/2) as ring elements.

        Raises:
            ConfigurationError: if an integer lies outside [-m/2, m/2): it would wrap.
        """
        given = np.asarray(integers)
        if given.size and given.dtype.kind not in "iu":
            raise ConfigurationError(
                f"expected integers within 64 bits, found {given.dtype}; encode floats first"
            )
        if given.dtype.kind == "u" and given.size and int(given.max()) > np.iinfo(np.int64).max:
            raise ConfigurationError(
                f"integers up to {int(given.max())} do not fit modulus {modulus}"
            )
        signed = given.astype(np.int64)
        if signed.size:
            low, high = int(signed.min()), int(signed.max())
            if low < -(modulus // 2) or high >= modulus - modulus // 2:
                raise ConfigurationError(
                    f"integers in [{low}, {high}] do not fit modulus {modulus}: "
                    f"they must lie in [{-(modulus // 2)}, {modulus - modulus // 2 - 1}]"
                )
        if modulus & (modulus - 1) == 0:
            words = signed.view(np.uint64).astype(ring_dtype(modulus))
            reduce_in_place(words, modulus)
            return cls(words, modulus)
        if modulus > 1 << 63:
            raise ConfigurationError(
                f"signed encoding needs a power of two or a modulus up to 2^63, found {modulus}"
            )
        return cls(np.mod(signed, np.int64(modulus)).astype(ring_dtype(modulus)), modulus)

    def centred(self) -> NDArray[np.int64]:
        """The representatives in [-m/2, m/2) as int64[d]."""
        if self.modulus == MAX_MODULUS:
            return self.values.view(np.int64).copy()
        half = self.modulus - self.modulus // 2
        wide = self.values.astype(np.uint64)
        negative = wide >= np.uint64(half)
        signed = wide.view(np.int64)
        # Two's complement: subtracting m modulo 2^64 is right whatever the sign bit of m.
        signed[negative] -= np.uint64(self.modulus).view(np.int64)
        return signed

    def __add__(self, other: RingVector) -> RingVector:
        """The sum in the ring.

        Raises:
            ConfigurationError: if moduli or lengths differ.
        """
        if self.modulus != other.modulus or self.values.shape != other.values.shape:
            raise ConfigurationError(
                f"cannot add {self.values.size} entries mod {self.modulus} and "
                f"{other.values.size} entries mod {other.modulus}"
            )
        if self.modulus & (self.modulus - 1) == 0:
            words = self.values + other.values
            reduce_in_place(words, self.modulus)
            return RingVector(words, self.modulus)
        # a + b may exceed the word: add b - m instead wherever a >= m - b.
        limit = self.values.dtype.type(self.modulus - 1) - other.values + 1
        wraps = (self.values >= limit) & (other.values > 0)
        words = np.where(wraps, self.values - limit, self.values + other.values)
        return RingVector(words.astype(self.values.dtype), self.modulus)

    def __len__(self) -> int:
        return int(self.values.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RingVector):
            return NotImplemented
        return self.modulus == other.modulus and np.array_equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]  # arrays are mutable; mypy wants the object signature
