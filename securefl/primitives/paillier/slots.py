"""Packing: many small signed integers in one plaintext, so that sums cannot touch each other.

Offset encoding: a value q in [-B, B] is stored as u = q + B in a slot of w bits, and w is chosen
so that the sum of ``max_clients`` of them still fits. The sum of K submissions is then read back
as slot - K B. K is the number of *signed contributors*, never a number that a client states, and
the protocol refuses K > max_clients before it multiplies. This module knows no key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError, SecureFLError
from securefl.primitives.paillier.algebra import Degree

__all__ = ["BadPlaintext", "SlotLayout"]

MAX_WIDTH = 62
"""Slot sums must fit a signed 64-bit word with room for the offset."""


class BadPlaintext(SecureFLError):
    """An opened sum that no set of honest submissions can give: somebody wrote across slots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLayout:
    """How integers are packed.

    Attributes:
        bound: B; every value is in [-B, B].
        max_clients: most submissions that are ever summed.
        guard: spare bits per slot (they stay 0 in an honest sum, and are checked).

    Raises:
        ConfigurationError: if a slot would need more than 62 bits.

    >>> layout = SlotLayout(bound=32767, max_clients=100)
    >>> layout.width
    23
    """

    bound: int
    max_clients: int
    guard: int = 0

    def __post_init__(self) -> None:
        for name, least in (("bound", 1), ("max_clients", 1), ("guard", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(f"{name} must be an integer >= {least}, found {value!r}")
        if self.width > MAX_WIDTH:
            raise ConfigurationError(
                f"sums of {self.max_clients} values up to {self.bound} need slots of {self.width} "
                f"bits, at most {MAX_WIDTH} fit: lower the bound or the number of clients"
            )

    @property
    def width(self) -> int:
        """Bits per slot, w."""
        return (2 * self.bound * self.max_clients).bit_length() + self.guard

    def slots(self, degree: Degree) -> int:
        """Values per plaintext, L: the packed number stays below 2^(w L) < n^s.

        Raises:
            ConfigurationError: if not even one slot fits.
        """
        count = (int(degree.plaintexts).bit_length() - 1) // self.width
        if count < 1:
            raise ConfigurationError(
                f"a slot of {self.width} bits does not fit a plaintext of "
                f"{int(degree.plaintexts).bit_length() - 1} bits"
            )
        return count

    def ciphertexts(self, degree: Degree, dimension: int) -> int:
        """How many ciphertexts a vector of ``dimension`` values takes."""
        return -(-dimension // self.slots(degree))

    def pack(self, values: NDArray[np.int64], slots: int) -> list[int]:
        """Packs values, ``slots`` per number; unused slots of the last number hold 0.

        Args:
            values: int64[d], each in [-B, B].
            slots: L of :meth:`slots`.

        Returns:
            ceil(d / L) plaintexts below 2^(w L).

        Raises:
            ConfigurationError: on a wrong dtype or shape, or a value beyond the bound.
        """
        if type(values) is not np.ndarray or values.dtype != np.int64 or values.ndim != 1:
            raise ConfigurationError("values to pack must be an int64 array of one axis")
        if values.size and (int(values.min()) < -self.bound or int(values.max()) > self.bound):
            raise ConfigurationError(f"a value to pack is beyond the bound of {self.bound}")
        rows = -(-len(values) // slots)
        padded = np.zeros(rows * slots, dtype=np.uint64)
        padded[: len(values)] = (values + self.bound).astype(np.uint64)
        return _join(padded.reshape(rows, slots), self.width)

    def unpack(
        self, plaintexts: Sequence[int], *, count: int, dimension: int, slots: int
    ) -> NDArray[np.int64]:
        """The sums of ``count`` submissions.

        Args:
            plaintexts: opened sums, one per ciphertext.
            count: K, how many submissions were multiplied.
            dimension: d.
            slots: L.

        Returns:
            int64[d], each in [-K B, K B].

        Raises:
            ConfigurationError: if K or the number of plaintexts does not fit the layout.
            BadPlaintext: if a number is too long, an unused slot is not 0 or a slot exceeds 2 B K.
        """
        if not 1 <= count <= self.max_clients:
            raise ConfigurationError(
                f"slots are sized for 1 to {self.max_clients} submissions, found {count}"
            )
        if len(plaintexts) != -(-dimension // slots):
            raise ConfigurationError(
                f"{dimension} values in {slots} slots are {-(-dimension // slots)} plaintexts, "
                f"found {len(plaintexts)}"
            )
        if any(m >> (self.width * slots) for m in plaintexts):
            raise BadPlaintext("an opened sum is longer than its slots: a submission was malformed")
        flat = _cut(plaintexts, self.width, slots).reshape(-1)
        if flat[dimension:].any():
            raise BadPlaintext("an unused slot of an opened sum is not 0")
        sums = flat[:dimension]
        if sums.size and int(sums.max()) > 2 * self.bound * count:
            raise BadPlaintext(
                f"a slot of an opened sum exceeds {2 * self.bound * count}, the most that {count} "
                "submissions can give"
            )
        return sums.astype(np.int64) - count * self.bound


def _join(rows: NDArray[np.uint64], width: int) -> list[int]:
    """Each row of slots as one integer, slot 0 lowest."""
    if not len(rows):
        return []
    bits = np.unpackbits(
        rows.astype("<u8").view(np.uint8).reshape(*rows.shape, 8), axis=2, bitorder="little"
    )[:, :, :width]
    packed = np.packbits(bits.reshape(len(rows), -1), axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def _cut(numbers: Sequence[int], width: int, slots: int) -> NDArray[np.uint64]:
    """The inverse of :func:`_join`, uint64[len(numbers), slots]."""
    length = -(-width * slots // 8)
    if not numbers:
        return np.zeros((0, slots), dtype=np.uint64)
    raw = b"".join(int(m).to_bytes(length, "little") for m in numbers)
    bits = np.unpackbits(
        np.frombuffer(raw, dtype=np.uint8).reshape(len(numbers), length),
        axis=1,
        bitorder="little",
    )[:, : width * slots].reshape(len(numbers), slots, width)
    words = np.zeros((len(numbers), slots, 64), dtype=np.uint8)
    words[:, :, :width] = bits
    return np.packbits(words, axis=2, bitorder="little").view("<u8").reshape(len(numbers), slots)
