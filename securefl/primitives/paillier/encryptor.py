"""Encryption with blinding from a fixed base (Damgard, Jurik, Nielsen 2010), s = 1, 2, 3.

A ciphertext is c = (1+n)^m hs^a mod n^(s+1), hs = h^(n^s), h hashed from n (see ``keys``).

What hides m, by :class:`Randomness`:

* ``FULL``, exponents of |n| + 128 bits: for safe-prime n the decisional composite residuosity
  assumption (DCR) alone. For other n the base may generate a subgroup of small index, and
  residuosity is assumed there.
* ``HALF`` (default), |n| / 2 bits: besides, that powers of h with half-length exponents are
  pseudorandom (follows from factoring by Goldreich, Rosen 2003, with h modelled as random; the
  exact conditions on n and h have not been re-checked by us).
* ``CLASSIC``, r^(n^s) with uniform r: DCR for any n. The baseline and interoperability; protocol
  clients refuse it because they must prove knowledge of a.

Nothing here returns an unblinded (1+n)^m. This module does not know who may open what.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NoReturn

from securefl.errors import ConfigurationError
from securefl.primitives import bigint
from securefl.primitives.bigint import Integer
from securefl.primitives.paillier.keys import PublicKey
from securefl.primitives.paillier.table import Digits, Table, has_table, table

__all__ = ["Encryptor", "RandomizerPool", "Randomness", "Sealed"]

WINDOW = 8
_QUICK_WINDOW = 4
_FEW = 8
"""Below this many ciphertexts a small plain table is cheaper than building the split one."""

CHUNK = 64
"""Ciphertexts per task handed to a process."""


class Randomness(StrEnum):
    """How long the blinding exponent is; the assumptions are in the module's docstring."""

    HALF = "half"
    FULL = "full"
    CLASSIC = "classic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """Ciphertexts together with what only their author may know.

    Attributes:
        ciphertexts: in [1, n^(s+1)), in the order of the plaintexts.
        exponents: the blinding exponents a, secret; None under ``CLASSIC``.
    """

    ciphertexts: tuple[int, ...]
    exponents: tuple[int, ...] | None = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Sealed holds secret exponents and cannot be pickled or copied")


class Encryptor:
    """Encrypts under one public key and degree.

    Args:
        public: whose key; it decides who can read, so it must come from a source you trust.
        s: degree of the ciphertexts, 1, 2 or 3.
        randomness: see :class:`Randomness`.
        window: digit width of the fixed-base table, 1..8 bits; 0 picks: 4 bits for fewer than 8
            ciphertexts if no larger table exists yet, else 8.
        split: whether tables are split (faster; same ciphertexts for the same randomness).
        random_bytes: source of secret randomness; only tests and vectors give another one. Which
            ciphertexts follow from given bytes depends on the window, so fix that too.

    Raises:
        ConfigurationError: on an impossible degree, mode or window.
    """

    def __init__(
        self,
        public: PublicKey,
        s: int = 1,
        *,
        randomness: Randomness | str = Randomness.HALF,
        window: int = 0,
        split: bool = True,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        try:
            self.randomness = Randomness(randomness)
        except ValueError:
            known = ", ".join(Randomness)
            raise ConfigurationError(
                f"randomness must be one of {known}, found {randomness!r}"
            ) from None
        if isinstance(window, bool) or not isinstance(window, int) or not 0 <= window <= WINDOW:
            raise ConfigurationError(f"window must be 0 (automatic) or 1..{WINDOW}, found {window}")
        self.public = public
        self.degree = public.degree(s)
        self._window = window
        self._split = split
        self._random_bytes = random_bytes

    @property
    def exponent_bits(self) -> int:
        """E: length of the blinding exponents before the public shift."""
        bits = self.public.bits
        return bits + 128 if self.randomness is Randomness.FULL else bits // 2

    @property
    def exponent_bound(self) -> int:
        """A public power of two that no exponent reaches, whatever the window."""
        return exponent_bound(self.public, self.randomness)

    def _digits(self, window: int) -> Digits:
        return Digits(count=-(-self.exponent_bits // window), window=window)

    def table(self, count: int) -> Table:
        """The table that ``count`` ciphertexts use, built if need be."""
        window, split = self._window or WINDOW, self._split
        if not self._window and count < _FEW:
            large = has_table(self.public.n, self.degree.s, self._digits(WINDOW), split=split)
            window, split = (WINDOW, split) if large else (_QUICK_WINDOW, False)
        digits = self._digits(window)
        return table(self.public.n, self.public.base, self.degree.s, digits, split=split)

    def encrypt(
        self,
        plaintexts: Sequence[int],
        *,
        executor: Executor | None = None,
        pool: RandomizerPool | None = None,
    ) -> Sealed:
        """Encrypts each plaintext under fresh randomness.

        Args:
            plaintexts: in [0, n^s).
            executor: a process pool to spread the work over; worth it from a few hundred on. The
                workers build the table once each and draw from the operating system.
            pool: blinding prepared beforehand by this encryptor; each entry is used once.

        Raises:
            ConfigurationError: if a plaintext is out of range, the pool belongs to another
                encryptor or runs dry, or an executor is combined with injected randomness.
        """
        if any(not 0 <= m < self.degree.plaintexts for m in plaintexts):
            raise ConfigurationError("a plaintext is outside [0, n^s)")
        if pool is not None:
            return self._encrypt_from(pool, plaintexts)
        if self.randomness is Randomness.CLASSIC:
            return Sealed(ciphertexts=tuple(map(self._classic, plaintexts)), exponents=None)
        if executor is None:
            pairs = self._encrypt_here(plaintexts)
        else:
            pairs = self._encrypt_there(plaintexts, executor)
        return Sealed(ciphertexts=tuple(c for c, _ in pairs), exponents=tuple(a for _, a in pairs))

    def _encrypt_here(self, plaintexts: Sequence[int]) -> list[tuple[int, int]]:
        chosen = self.table(len(plaintexts))
        pairs = []
        for m in plaintexts:
            digits = chosen.digits.draw(self._random_bytes)
            c = chosen.blind(bigint.integer(m), digits)
            pairs.append((int(c), chosen.digits.exponent(digits)))
        return pairs

    def _encrypt_there(
        self, plaintexts: Sequence[int], executor: Executor
    ) -> list[tuple[int, int]]:
        if self._random_bytes is not os.urandom:
            raise ConfigurationError(
                "injected randomness cannot be shared among processes: encrypt without an executor"
            )
        parts = [plaintexts[i : i + CHUNK] for i in range(0, len(plaintexts), CHUNK)]
        settings = (self.public.n, self.degree.s, str(self.randomness), self._window, self._split)
        results = [executor.submit(_encrypt_part, settings, list(part)) for part in parts]
        return [pair for result in results for pair in result.result()]

    def _encrypt_from(self, pool: RandomizerPool, plaintexts: Sequence[int]) -> Sealed:
        if pool.encryptor is not self:
            raise ConfigurationError("this pool was filled for another encryptor")
        degree, ciphertexts, exponents = self.degree, [], []
        for m in plaintexts:
            blinding, exponent = pool.take()
            c = degree.one_plus_n(bigint.integer(m)) * blinding % degree.modulus
            ciphertexts.append(int(c))
            exponents.append(exponent)
        return Sealed(ciphertexts=tuple(ciphertexts), exponents=tuple(exponents))

    def _classic(self, m: int) -> int:
        degree = self.degree
        while True:
            r = bigint.random_below(self.public.n, self._random_bytes)
            if bigint.gcd(r, self.public.n) == 1:
                break
        blinding = bigint.powmod(r, degree.plaintexts, degree.modulus)
        return int(degree.one_plus_n(bigint.integer(m)) * blinding % degree.modulus)

    def blinding(self, count: int) -> list[tuple[Integer, int]]:
        """``count`` fresh pairs (hs^a mod N, a), secret, each good for one ciphertext.

        Raises:
            ConfigurationError: under ``CLASSIC``, which has no exponent.
        """
        if self.randomness is Randomness.CLASSIC:
            raise ConfigurationError("classic randomness has no exponent and cannot be pooled")
        chosen = self.table(count)
        drawn = [chosen.digits.draw(self._random_bytes) for _ in range(count)]
        return [(chosen.power(digits), chosen.digits.exponent(digits)) for digits in drawn]


def exponent_bound(public: PublicKey, randomness: Randomness) -> int:
    """The bound A_0 = 2^(E + 8): no blinding exponent of this mode reaches it.

    Eight bits above E cover every window (E rounded up to whole digits, and the shifted digits).
    """
    bits = public.bits + 128 if randomness is Randomness.FULL else public.bits // 2
    return 1 << (bits + WINDOW)


def _encrypt_part(
    settings: tuple[int, int, str, int, bool], plaintexts: list[int]
) -> list[tuple[int, int]]:
    n, s, randomness, window, split = settings
    # The parent checked the key; only integers cross the border between processes.
    encryptor = Encryptor(
        PublicKey(n), s, randomness=randomness, window=window or WINDOW, split=split
    )
    return encryptor._encrypt_here(plaintexts)


class RandomizerPool:
    """Blinding computed ahead of time, so that encryption costs one product.

    Every entry is handed out once: two ciphertexts under one blinding reveal the difference of
    their messages. The pool is in memory only, cannot be pickled or copied, and a child process
    that inherits it by ``fork`` finds it empty.
    """

    __slots__ = ("_entries", "_pid", "encryptor")

    def __init__(self, encryptor: Encryptor) -> None:
        self.encryptor = encryptor
        self._entries: list[tuple[Integer, int]] = []
        self._pid = os.getpid()

    def _own(self) -> list[tuple[Integer, int]]:
        if self._pid != os.getpid():
            self._entries, self._pid = [], os.getpid()
        return self._entries

    def fill(self, count: int) -> None:
        """Prepares ``count`` more entries."""
        self._own().extend(self.encryptor.blinding(count))

    def take(self) -> tuple[Integer, int]:
        """One entry (hs^a mod N, a), removed before it is returned.

        Raises:
            ConfigurationError: if the pool is empty.
        """
        entries = self._own()
        if not entries:
            raise ConfigurationError("the pool of blinding is empty: fill it before encrypting")
        return entries.pop()

    def __len__(self) -> int:
        return len(self._own())

    def __repr__(self) -> str:
        return f"RandomizerPool(<{len(self)} secret entries>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a RandomizerPool cannot be pickled or copied: the copy would reuse it")

    def __getstate__(self) -> NoReturn:
        self.__reduce__()
