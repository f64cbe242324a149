"""Fixed-base tables: powers of one base with a random exponent, at one product per digit.

The base is hs = h^(n^s) mod N with N = n^(s+1), h hashed from n. An exponent of E bits is written
in D = ceil(E / f) digits from 1 to 2^f (not from 0: the entry 1, whose product is visibly faster,
never occurs; this shifts the exponent by a public constant). Row i holds hs^(2^(f i) k) for
k = 1..2^f, so a power is the product of one entry per row.

The *split* table stores every entry T as T = t (1+n)^tau with 1 <= t < n: t is T mod n as an
integer, and T / t, being 1 modulo n, is a power of 1+n (Damgard, Jurik 2001, section 3). A product
of entries is then a product of half-size numbers and a plain sum of the tau. It is the same group
element, so security does not change; the work per digit grows linearly in s, not quadratically.

Tables are secret-free (they depend on the public key only) but must never be loaded from outside:
one poisoned entry removes all hiding. Look-ups are not constant-time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from securefl.primitives import bigint
from securefl.primitives.bigint import Integer
from securefl.primitives.paillier.algebra import Degree

__all__ = ["Digits", "PlainTable", "SplitTable", "Table", "cached_table", "has_table", "table"]


@dataclass(frozen=True, slots=True)
class Digits:
    """How exponents are drawn: ``count`` digits of ``window`` bits, each from 1 to 2^window."""

    count: int
    window: int

    def draw(self, random_bytes: Callable[[int], bytes]) -> bytes:
        """Secret digits minus one, one per byte, uniform; window at most 8."""
        raw = random_bytes(self.count)
        if self.window == 8:
            return raw
        mask = (1 << self.window) - 1
        return bytes(x & mask for x in raw)

    def exponent(self, digits: bytes) -> int:
        """The exponent a = sum of digit_i 2^(f i), from what :meth:`draw` gave."""
        if self.window == 8:
            return int.from_bytes(digits, "little") + ((1 << 8 * self.count) - 1) // 255
        return sum((x + 1) << (self.window * i) for i, x in enumerate(digits))

    @property
    def bound(self) -> int:
        """Every exponent is below this public number."""
        return 1 << (self.window * self.count + 1)


class _FixedBase(ABC):
    """What both tables can do: the base to any public power, and the base's next row."""

    degree: Degree
    digits: Digits
    top: Integer
    """The base to the power 2^(window * count): where the rows end."""

    @abstractmethod
    def entry(self, row: int, digit: int) -> Integer:
        """The base to the power digit * 2^(window * row), digit in 1..2^window."""

    def public_power(self, exponent: int) -> Integer:
        """The base to a *public* power >= 0, modulo N: time depends on the exponent."""
        modulus, window = self.degree.modulus, self.digits.window
        total = bigint.powmod(self.top, exponent >> (window * self.digits.count), modulus)
        mask = (1 << window) - 1
        for row in range(self.digits.count):
            digit = exponent >> (window * row) & mask
            if digit:
                total = total * self.entry(row, digit) % modulus
        return total


class PlainTable(_FixedBase):
    """Rows of the powers themselves: quick to build, for few ciphertexts."""

    def __init__(self, degree: Degree, base: Integer, digits: Digits) -> None:
        self.degree, self.digits = degree, digits
        self._rows = [row for row, _ in _rows(degree.modulus, base, digits)]
        self.top = self._rows[-1][-1]

    def entry(self, row: int, digit: int) -> Integer:
        """See the base class."""
        return self._rows[row][digit - 1]

    def power(self, digits: bytes) -> Integer:
        """The base to the power of the digits, modulo N."""
        modulus = self.degree.modulus
        total = bigint.integer(1)
        for row, digit in zip(self._rows, digits, strict=True):
            total = total * row[digit] % modulus
        return total

    def blind(self, m: Integer, digits: bytes) -> Integer:
        """The ciphertext (1+n)^m times the power."""
        return self.degree.one_plus_n(m) * self.power(digits) % self.degree.modulus


class SplitTable(_FixedBase):
    """Rows of (t, tau) with T = t (1+n)^tau: about a third faster for s = 1, twice for s = 2."""

    def __init__(self, degree: Degree, base: Integer, digits: Digits) -> None:
        self.degree, self.digits = degree, digits
        self._t: list[list[Integer]] = []
        self._tau: list[list[Integer]] = []
        for row, last in _rows(degree.modulus, base, digits):
            t, tau = _split(degree, row)
            self._t.append(t)
            self._tau.append(tau)
            self.top = last

    def entry(self, row: int, digit: int) -> Integer:
        """See the base class."""
        t, tau = self._t[row][digit - 1], self._tau[row][digit - 1]
        return self.degree.one_plus_n(tau) * t % self.degree.modulus

    def _product(self, digits: bytes) -> tuple[Integer, Integer]:
        modulus = self.degree.modulus
        total, shift = bigint.integer(1), bigint.integer(0)
        for t, tau, digit in zip(self._t, self._tau, digits, strict=True):
            total = total * t[digit] % modulus
            shift += tau[digit]
        return total, shift

    def power(self, digits: bytes) -> Integer:
        """The base to the power of the digits, modulo N."""
        return self.blind(bigint.integer(0), digits)

    def blind(self, m: Integer, digits: bytes) -> Integer:
        """The ciphertext (1+n)^m times the power: one correction for message and split at once."""
        degree = self.degree
        total, shift = self._product(digits)
        return degree.one_plus_n((m + shift) % degree.plaintexts) * total % degree.modulus


Table = PlainTable | SplitTable


def _rows(
    modulus: Integer, base: Integer, digits: Digits
) -> Iterator[tuple[list[Integer], Integer]]:
    """Each row with its last entry, which is the next row's base."""
    for _ in range(digits.count):
        row = [base]
        for _ in range((1 << digits.window) - 1):
            row.append(row[-1] * base % modulus)
        base = row[-1]
        yield row, base


def _split(degree: Degree, row: Sequence[Integer]) -> tuple[list[Integer], list[Integer]]:
    n, plaintexts = degree.n, degree.plaintexts
    t = [T % n for T in row]
    tau = []
    for T, small, inverse in zip(row, t, _invert_all(t, plaintexts), strict=True):
        g = (T - small) // n * inverse % plaintexts
        tau.append(g if degree.s == 1 else degree.log(1 + n * g))
    return t, tau


def _invert_all(values: Sequence[Integer], modulus: Integer) -> list[Integer]:
    """All inverses with one inversion (Montgomery's trick: prefix products, then walk back)."""
    prefix = [bigint.integer(1)]
    for value in values:
        prefix.append(prefix[-1] * value % modulus)
    running = bigint.invert(prefix[-1], modulus)
    inverses = []
    for before, value in zip(reversed(prefix[:-1]), reversed(values), strict=True):
        inverses.append(before * running % modulus)
        running = running * value % modulus
    return inverses[::-1]


_BUILT: set[tuple[int, int, Digits, bool, str]] = set()


def table(n: int, h: int, s: int, digits: Digits, *, split: bool) -> Table:
    """The table of one public key, built at the first call and kept in memory.

    Args:
        n: modulus.
        h: base, a square modulo n derived from n.
        s: degree.
        digits: exponent length and window.
        split: a split table, else a plain one.
    """
    return cached_table(n, h, s, digits, split, bigint.backend_name())


def has_table(n: int, s: int, digits: Digits, *, split: bool) -> bool:
    """Whether :func:`table` has built this one in this process."""
    return (n, s, digits, split, bigint.backend_name()) in _BUILT


@lru_cache(maxsize=4)
def cached_table(n: int, h: int, s: int, digits: Digits, split: bool, backend: str) -> Table:
    """As :func:`table`; at most four stay in memory (38 MB each at 3072 bits, s = 1, f = 8)."""
    degree = Degree(n, s)
    base = bigint.powmod(h, degree.plaintexts, degree.modulus)
    made: Table = (SplitTable if split else PlainTable)(degree, base, digits)
    _BUILT.add((n, s, digits, split, backend))
    return made
