"""Big integers: gmpy2 when it is installed, Python's own otherwise, with identical results.

Everything that computes modulo a large number goes through this module, so that one place decides
which library does it and which powers are computed in constant time. It knows no cryptosystem.

Powers with a *secret* exponent go through :func:`powmod_secret`: GMP's ``mpz_powm_sec``, whose
time and memory access do not depend on the exponent. Python's integers have no such function; the
first secret power without gmpy2 warns once. Products, table look-ups and conversions are not
constant-time in either library, and neither can wipe memory: see the limitations page.
"""

from __future__ import annotations

import importlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias

from securefl.errors import ConfigurationError

__all__ = [
    "Integer",
    "available",
    "backend_name",
    "gcd",
    "integer",
    "invert",
    "is_perfect_power",
    "is_prime",
    "jacobi",
    "map_in_threads",
    "powmod",
    "powmod_secret",
    "product_mod",
    "random_below",
    "random_bits",
    "to_bytes",
    "usable_threads",
    "using",
]

Integer: TypeAlias = Any
"""An ``int`` or a ``gmpy2.mpz``. Never leaves ``primitives``: public values are plain ``int``."""

ROUNDS = 40
"""Miller-Rabin rounds: a composite passes with probability at most 4^-40."""

_GMP_FREE_ROUNDS = 24
"""GMP counts its Baillie-PSW test as 24 of the rounds that it is asked for, so it does fewer."""

SMALL_PRIME_LIMIT = 1 << 16

MOST_THREADS = 256


def _find_gmpy2() -> ModuleType | None:
    try:
        return importlib.import_module("gmpy2")
    except ImportError:  # the extra `paillier` is not installed
        return None


_gmpy2 = _find_gmpy2()
_active = _gmpy2
_warned = False


def available() -> tuple[str, ...]:
    """Names of the back ends that can be used here, the default one first."""
    return ("python",) if _gmpy2 is None else ("gmpy2", "python")


def backend_name() -> str:
    """``"gmpy2"`` or ``"python"``: what computes now."""
    return "python" if _active is None else "gmpy2"


@contextmanager
def using(name: str) -> Iterator[None]:
    """Computes with the named back end inside the block (tests and benchmarks).

    Raises:
        ValueError: if that back end is not installed.
    """
    global _active  # noqa: PLW0603  (one process-wide choice, restored on exit)
    if name not in available():
        raise ValueError(f"back end {name!r} is not one of the installed {available()}")
    before = _active
    _active = _gmpy2 if name == "gmpy2" else None
    try:
        yield
    finally:
        _active = before


def integer(value: Integer) -> Integer:
    """The value in the back end's own type, on which ``*``, ``%`` and ``+`` are fastest."""
    return int(value) if _active is None else _active.mpz(value)


def usable_threads(threads: int | None = None) -> int:
    """How many threads :func:`map_in_threads` should get.

    Args:
        threads: what somebody asked for; None: one per processor that this process may use, or 1
            without gmpy2, where threads only take turns.

    Raises:
        ConfigurationError: unless it is None or a number from 1 to 256.
    """
    if threads is None:
        return 1 if _active is None else min(MOST_THREADS, _processors())
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if not whole or not 1 <= threads <= MOST_THREADS:
        raise ConfigurationError(
            f"threads must be a number from 1 to {MOST_THREADS}, or None for one per processor, "
            f"found {threads!r}"
        )
    return threads


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux; it knows what a scheduler or taskset allows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_threads(
    function: Callable[[Integer], Integer], values: Sequence[Integer], threads: int
) -> list[Integer]:
    """The function of every value, in order, in several threads.

    GMP's powers run beside each other because each worker tells gmpy2 to let go of the
    interpreter lock; with Python's integers the threads take turns and nothing is gained. There are
    never more threads than values.
    """
    threads = min(threads, len(values))
    if threads <= 1:
        return [function(value) for value in values]

    def prepare() -> None:
        if _active is not None:
            _active.get_context().allow_release_gil = True

    with ThreadPoolExecutor(threads, initializer=prepare) as executor:
        return list(executor.map(function, values))


def to_bytes(value: Integer, length: int) -> bytes:
    """Big-endian bytes of a value below 256^length."""
    return int(value).to_bytes(length, "big")


def powmod(base: Integer, exponent: Integer, modulus: Integer) -> Integer:
    """base^exponent mod modulus for a *public* exponent >= 0; time depends on the exponent."""
    if _active is None:
        return pow(int(base), int(exponent), int(modulus))
    return _active.powmod(base, exponent, modulus)


def powmod_secret(base: Integer, exponent: Integer, modulus: Integer) -> Integer:
    """base^exponent mod modulus for a *secret* exponent > 0 and an odd modulus.

    Constant-time with gmpy2. Without it Python's variable-time power is used, with one warning.
    """
    if _active is None:
        _warn_once()
        return pow(int(base), int(exponent), int(modulus))
    return _active.powmod_sec(base, exponent, modulus)


def _warn_once() -> None:
    global _warned  # noqa: PLW0603  (one warning per process)
    if not _warned:
        _warned = True
        warnings.warn(
            "gmpy2 is not installed: powers with secret exponents are not constant-time and 8 "
            "times slower; install the extra 'paillier'",
            RuntimeWarning,
            stacklevel=3,
        )


def invert(value: Integer, modulus: Integer) -> Integer:
    """value^-1 mod modulus.

    Raises:
        ZeroDivisionError: if there is none. The message holds no value: for a Paillier modulus a
            value without an inverse reveals a factor.
    """
    if _active is None:
        try:
            return pow(int(value), -1, int(modulus))
        except ValueError:
            raise ZeroDivisionError("the value has no inverse") from None
    try:
        return _active.invert(value, modulus)
    except ZeroDivisionError:
        raise ZeroDivisionError("the value has no inverse") from None


def gcd(a: Integer, b: Integer) -> Integer:
    """Greatest common divisor."""
    return math.gcd(int(a), int(b)) if _active is None else _active.gcd(a, b)


def jacobi(a: Integer, n: Integer) -> int:
    """The Jacobi symbol (a / n), n odd and positive."""
    if _active is not None:
        return int(_active.jacobi(a, n))
    a, n, sign = int(a) % int(n), int(n), 1
    while a:
        twos = (a & -a).bit_length() - 1
        a >>= twos
        if twos & 1 and n % 8 in (3, 5):
            sign = -sign
        if a % 4 == 3 and n % 4 == 3:
            sign = -sign
        a, n = n % a, a
    return sign if n == 1 else 0


def is_prime(value: Integer) -> bool:
    """Whether the value is prime, but for an error of at most 4^-40 (Miller-Rabin, 40 rounds).

    Without gmpy2 the bases come from the operating system, so that nobody can choose a composite
    that fools them. GMP's bases can be foreseen; it runs a Baillie-PSW test besides, for which no
    composite is known that passes.
    """
    n = int(value)
    if n < SMALL_PRIME_LIMIT:
        return n > 1 and all(n % r for r in range(2, math.isqrt(n) + 1))
    if _active is not None:
        return bool(_active.is_prime(_active.mpz(n), ROUNDS + _GMP_FREE_ROUNDS))
    if any(n % r == 0 for r in small_primes()[:200]):
        return False
    twos = ((n - 1) & -(n - 1)).bit_length() - 1
    odd = (n - 1) >> twos
    return all(_is_witness_of_primality(n, odd, twos) for _ in range(ROUNDS))


def _is_witness_of_primality(n: int, odd: int, twos: int) -> bool:
    x = pow(2 + random_below(n - 3, os.urandom), odd, n)
    if x in (1, n - 1):
        return True
    for _ in range(twos - 1):
        x = x * x % n
        if x == n - 1:
            return True
    return False


def is_perfect_power(value: Integer) -> bool:
    """Whether value = b^k for some b and k >= 2."""
    if _active is not None:
        return bool(_active.is_power(_active.mpz(value)))
    n = int(value)
    return any(_root(n, k) ** k == n for k in range(2, n.bit_length() + 1))


def _root(n: int, k: int) -> int:
    """The integer part of the k-th root, by bisection."""
    low, high = 1, 1 << (-(-n.bit_length() // k) + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**k <= n else (low, middle)
    return low


_SMALL_PRIMES: list[int] = []


def small_primes() -> Sequence[int]:
    """All primes below 2^16."""
    if not _SMALL_PRIMES:
        sieve = bytearray([1]) * SMALL_PRIME_LIMIT
        for i in range(2, 1 << 8):
            if sieve[i]:
                sieve[i * i :: i] = bytes(len(range(i * i, SMALL_PRIME_LIMIT, i)))
        _SMALL_PRIMES.extend(i for i in range(2, SMALL_PRIME_LIMIT) if sieve[i])
    return _SMALL_PRIMES


def product_mod(values: Iterable[Integer], modulus: Integer) -> Integer:
    """The product of the values modulo ``modulus``; 1 mod modulus if there are none."""
    modulus = integer(modulus)
    total = integer(1) % modulus
    for value in values:
        total = total * value % modulus
    return total


def random_bits(bits: int, random_bytes: Callable[[int], bytes]) -> int:
    """A uniform integer in [0, 2^bits)."""
    length = -(-bits // 8)
    return int.from_bytes(random_bytes(length), "big") >> (8 * length - bits)


def random_below(limit: Integer, random_bytes: Callable[[int], bytes]) -> int:
    """A uniform integer in [0, limit), limit >= 1, by rejection (no value is favoured)."""
    top = int(limit)
    bits = (top - 1).bit_length()
    while True:
        value = random_bits(bits, random_bytes)
        if value < top:
            return value
