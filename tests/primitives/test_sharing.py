"""Shamir sharing against plain integer arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import WireError
from securefl.primitives.sharing import (
    PRIME,
    Unreconstructable,
    inverse,
    lagrange_at_zero,
    multipliers,
    parse_share_words,
    reconstruct,
    residue,
    share,
    uniform,
    weights_at_zero,
    word_count,
)


def script(blocks: list[list[int]]) -> Callable[[int], bytes]:
    """A source of randomness that returns these words, one block per request."""
    source = iter(blocks)

    def random_bytes(n: int) -> bytes:
        words = next(source)
        assert n == 4 * len(words)
        return b"".join(word.to_bytes(4, "little") for word in words)

    return random_bytes


def stream(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def points(n: int) -> np.ndarray:
    return np.arange(1, n + 1, dtype=np.uint64)


@given(st.sampled_from([16, 32]), st.integers(1, 12), st.data())
def test_any_t_shares_give_the_secret_back(size: int, t: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(t, 14))
    secret = data.draw(st.binary(min_size=size, max_size=size))
    shares = share(secret, t=t, points=points(n), random_bytes=stream(t * n))
    assert shares.shape == (n, word_count(size))
    rows = sorted(data.draw(st.permutations(range(n)))[:t])
    weights = lagrange_at_zero(tuple(r + 1 for r in rows))
    assert reconstruct(shares[rows], weights, size) == secret


def test_shares_are_the_polynomials_values() -> None:
    t, n, secret = 4, 6, bytes(range(100, 116))
    rows = [[(7919 * (5 * i + j) + 3) % PRIME for j in range(5)] for i in range(t - 1)]
    flat = [c for row in rows for c in row]
    shares = share(secret, t=t, points=points(n), random_bytes=script([flat]))
    number = int.from_bytes(secret, "little")
    for x in range(1, n + 1):
        for j in range(5):
            word = number >> (30 * j) & (2**30 - 1)
            expected = (word + sum(rows[i][j] * x ** (i + 1) for i in range(t - 1))) % PRIME
            assert int(shares[x - 1, j]) == expected


def test_the_largest_threshold_does_not_overflow() -> None:
    n = t = 3000
    secret = bytes([255] * 32)
    shares = share(
        secret, t=t, points=points(n), random_bytes=lambda k: b"\xfe\xff\xff\xff" * (k // 4)
    )
    assert int(shares.max()) < PRIME
    assert reconstruct(shares, lagrange_at_zero(tuple(range(1, n + 1))), 32) == secret


def test_high_points_do_not_overflow() -> None:
    x = np.array([(1 << 30) - 1 - i for i in range(5)], dtype=np.uint64)
    shares = share(bytes(range(32)), t=5, points=x, random_bytes=stream(3))
    assert reconstruct(shares, lagrange_at_zero(tuple(x.tolist())), 32) == bytes(range(32))


@given(st.integers(0, (1 << 64) - 1))
def test_reduction_is_the_remainder(value: int) -> None:
    assert int(residue(np.array([value], dtype=np.uint64))[0]) == value % PRIME


def test_reduction_at_the_borders() -> None:
    values = [0, 1, PRIME - 1, PRIME, PRIME + 1, 2 * PRIME, 1 << 31, (1 << 62), (1 << 64) - 1]
    values += [k * PRIME for k in (3, 1 << 31, (1 << 33) - 1)]
    found = residue(np.array(values, dtype=np.uint64)).tolist()
    assert found == [v % PRIME for v in values]


def test_the_one_value_that_is_no_field_element_is_redrawn_after_the_block() -> None:
    found = uniform(2, 2, script([[PRIME, 5, PRIME + (1 << 31), 7], [PRIME, 9], [8]]))
    # Place 0 draws p again, place 2 (p with the unused top bit set) draws 9, then place 0 draws 8.
    assert found.tolist() == [[8, 5], [9, 7]]


@given(st.sets(st.integers(1, 60), min_size=1, max_size=9))
def test_weights_are_lagranges(chosen: set[int]) -> None:
    xs = sorted(chosen)
    for x, weight in zip(xs, lagrange_at_zero(tuple(xs)).tolist(), strict=True):
        exact = Fraction(1)
        for other in xs:
            if other != x:
                exact *= Fraction(other, other - x)
        assert weight == exact.numerator * pow(exact.denominator, -1, PRIME) % PRIME


@given(st.lists(st.sets(st.integers(1, 60), min_size=5, max_size=5), min_size=1, max_size=4))
def test_multipliers_of_many_sets_at_once_are_those_of_each(sets: list[set[int]]) -> None:
    x = np.array([sorted(chosen) for chosen in sets], dtype=np.uint64)
    found = multipliers(x)
    for points_, row in zip(x.tolist(), found.tolist(), strict=True):
        for i, xi in enumerate(points_):
            product = 1
            for j, xj in enumerate(points_):
                product = product * (xi - xj if i != j else 1) % PRIME
            assert row[i] * product % PRIME == 1
    weights = weights_at_zero(x, inverse(x), found)
    assert weights.tolist() == [lagrange_at_zero(tuple(row)).tolist() for row in x.tolist()]


def test_the_arithmetic_holds_at_the_largest_points() -> None:
    xs = [1, 2, (1 << 30) - 2, (1 << 30) - 1]
    found = multipliers(np.array(xs, dtype=np.uint64)).tolist()
    for i, v in enumerate(found):
        product = 1
        for j, x in enumerate(xs):
            product = product * (xs[i] - x if i != j else 1) % PRIME
        assert v * product % PRIME == 1
    assert inverse(np.array([1, PRIME - 1], dtype=np.uint64)).tolist() == [1, PRIME - 1]


@given(st.integers(1, PRIME - 1))
def test_inverses_are_inverses(x: int) -> None:
    assert int(inverse(np.array([x], dtype=np.uint64))[0]) * x % PRIME == 1


def test_fewer_than_t_shares_say_nothing() -> None:
    """For every guess of the secret there are coefficients that explain t - 1 = 2 shares."""
    shares = share(b"\5" + bytes(15), t=3, points=points(2), random_bytes=stream(1))
    a, b = (int(v) for v in shares[:, 0])
    for guess in (0, 5, 123456):
        # guess + c1 + c2 = a; guess + 2 c1 + 4 c2 = b
        c2 = (b - 2 * a + guess) * pow(2, -1, PRIME) % PRIME
        c1 = (a - guess - c2) % PRIME
        assert (guess + c1 + c2) % PRIME == a
        assert (guess + 2 * c1 + 4 * c2) % PRIME == b


def test_a_wrong_share_gives_another_secret_or_none() -> None:
    secret = bytes(range(16))
    shares = share(secret, t=3, points=points(3), random_bytes=stream(9))
    weights = lagrange_at_zero((1, 2, 3))
    refused = 0
    for row, column in itertools.product(range(3), range(5)):
        wrong = shares.copy()
        wrong[row, column] = (int(wrong[row, column]) + 1 + (1 << 30)) % PRIME
        try:
            assert reconstruct(wrong, weights, 16) != secret
        except Unreconstructable:
            refused += 1
    assert refused > 3


def test_words_beyond_the_secret_are_refused() -> None:
    weights = np.array([1], dtype=np.uint64)
    with pytest.raises(Unreconstructable, match="30 bits"):
        reconstruct(np.array([[1 << 30, 0, 0, 0, 0]], dtype=np.uint32), weights, 16)
    with pytest.raises(Unreconstructable, match="too long"):
        reconstruct(np.array([[0, 0, 0, 0, 1 << 8]], dtype=np.uint32), weights, 16)
    top = np.array([[0, 0, 0, 0, (1 << 8) - 1]], dtype=np.uint32)
    assert reconstruct(top, weights, 16) == bytes(15) + b"\xff"


def test_share_words_must_be_field_elements() -> None:
    assert parse_share_words((PRIME - 1).to_bytes(4, "little")).tolist() == [PRIME - 1]
    for value in (PRIME, PRIME + 1, (1 << 32) - 1):
        with pytest.raises(WireError, match="not below"):
            parse_share_words(bytes(4) + value.to_bytes(4, "little"))


def test_share_sizes_are_the_documented_ones() -> None:
    assert (4 * word_count(16), 4 * word_count(32)) == (20, 36)
