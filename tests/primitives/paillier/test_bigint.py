"""Both back ends of the big integers against each other and against Python's own functions."""

from __future__ import annotations

import math
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.primitives import bigint

pytestmark = pytest.mark.filterwarnings("ignore:gmpy2 is not installed:RuntimeWarning")

positive = st.integers(1, 1 << 300)
odd = st.integers(1, 1 << 300).map(lambda x: 2 * x + 1)


def with_every_backend(compute: object) -> list[object]:
    results = []
    for name in bigint.available():
        with bigint.using(name):
            results.append(compute())  # type: ignore[operator]  # a lambda without arguments
    return results


@given(positive, positive, odd)
def test_every_back_end_computes_the_same_powers(base: int, exponent: int, modulus: int) -> None:
    expected = pow(base, exponent, modulus)
    for power in (bigint.powmod, bigint.powmod_secret):
        assert set(
            map(int, with_every_backend(lambda power=power: power(base, exponent, modulus)))
        ) == {expected}


@given(positive, odd)
def test_every_back_end_inverts_or_refuses_without_showing_the_value(a: int, m: int) -> None:
    if math.gcd(a, m) == 1:
        for inverse in with_every_backend(lambda: bigint.invert(a, m)):
            assert int(inverse) * a % m == 1 % m  # type: ignore[call-overload]  # an integer
        return
    for name in bigint.available():
        with bigint.using(name), pytest.raises(ZeroDivisionError) as caught:
            bigint.invert(a, m)
        assert str(a) not in str(caught.value) or a < 10


@given(positive, odd)
def test_jacobi_symbols_agree_and_follow_eulers_criterion(a: int, n: int) -> None:
    symbols = set(with_every_backend(lambda: bigint.jacobi(a, n)))
    assert len(symbols) == 1
    if bigint.is_prime(n):
        euler = pow(a, (n - 1) // 2, n)
        assert symbols == {-1 if euler == n - 1 else euler}


@given(st.integers(0, 10_000))
def test_small_numbers_are_prime_exactly_when_nothing_divides_them(n: int) -> None:
    expected = n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))
    assert set(with_every_backend(lambda: bigint.is_prime(n))) == {expected}


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (2**521 - 1, True),
        ((2**127 - 1) * (2**89 - 1), False),
        # Carmichael numbers, and Arnault's composite that fools many fixed bases.
        (443372888629441, False),
        (3317044064679887385961981, False),
        (2**61 - 1, True),
    ],
)
def test_primality(n: int, expected: bool) -> None:
    assert set(with_every_backend(lambda: bigint.is_prime(n))) == {expected}


@given(st.integers(2, 1 << 60), st.integers(2, 6))
def test_powers_are_recognised(b: int, k: int) -> None:
    assert set(with_every_backend(lambda: bigint.is_perfect_power(b**k))) == {True}


@given(st.integers(1, 1 << 40))
def test_random_below_never_reaches_its_limit_and_rejects_instead_of_reducing(limit: int) -> None:
    bits = (limit - 1).bit_length()
    length = -(-bits // 8)
    source = iter([b"\xff" * length, bytes(length)])
    if limit & (limit - 1):
        # All ones is too large: it must be thrown away, not folded back.
        assert bigint.random_below(limit, lambda _: next(source)) == 0
    else:
        assert bigint.random_below(limit, lambda n: b"\xff" * n) == limit - 1


def test_a_secret_power_without_gmpy2_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bigint, "_warned", False)
    with bigint.using("python"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bigint.powmod_secret(2, 3, 7)
        bigint.powmod_secret(2, 3, 7)
    assert len(caught) == 1
    assert "constant-time" in str(caught[0].message)


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(ValueError, match="not one of the installed"), bigint.using("openssl"):
        pass


def test_gmp_is_asked_for_as_many_random_rounds_as_we_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the rounds asked for, GMP spends 24 on its Baillie-PSW test."""
    gmpy2 = pytest.importorskip("gmpy2")
    asked = []

    class Spy:
        mpz = gmpy2.mpz

        @staticmethod
        def is_prime(n: object, rounds: int) -> bool:
            asked.append(rounds)
            return bool(gmpy2.is_prime(n, rounds))

    with bigint.using("gmpy2"):
        monkeypatch.setattr(bigint, "_active", Spy)
        assert bigint.is_prime((1 << 127) - 1)
    assert asked == [bigint.ROUNDS + 24]


@pytest.mark.parametrize("name", bigint.available())
def test_unless_told_there_is_one_thread_per_processor_that_may_be_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bigint.using(name):
        for found in (1, 3, 1000):
            monkeypatch.setattr(bigint, "_processors", lambda found=found: found)
            expected = min(found, 256) if name == "gmpy2" else 1
            assert bigint.usable_threads() == expected
            assert bigint.usable_threads(7) == 7


def test_a_processor_that_the_scheduler_withholds_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bigint.os, "sched_getaffinity", lambda _: {0, 5, 9}, raising=False)
    assert bigint._processors() == 3
    monkeypatch.delattr(bigint.os, "sched_getaffinity")
    monkeypatch.setattr(bigint.os, "cpu_count", lambda: None)
    assert bigint._processors() == 1


@pytest.mark.parametrize("bad", [0, -1, 257, True, 2.0, "2"])
def test_impossible_numbers_of_threads_are_refused(bad: object) -> None:
    with pytest.raises(ConfigurationError, match="threads must be a number from 1 to 256"):
        bigint.usable_threads(bad)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("values", "threads", "most"), [(0, 4, 0), (1, 4, 0), (3, 8, 3), (9, 2, 2)]
)
def test_there_are_never_more_threads_than_values(
    monkeypatch: pytest.MonkeyPatch, values: int, threads: int, most: int
) -> None:
    made: list[int] = []
    pool = bigint.ThreadPoolExecutor

    def spy(count: int, **more: object) -> object:
        made.append(count)
        return pool(count, **more)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(bigint, "ThreadPoolExecutor", spy)
    numbers = list(range(values))
    assert bigint.map_in_threads(lambda x: x * x, numbers, threads) == [x * x for x in numbers]
    assert made == ([most] if most else [])
