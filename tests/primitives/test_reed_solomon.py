"""Correction of wrong shares against a decoder that tries every subset."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.primitives.reed_solomon import TooManyErrors, decode, decode_secret
from securefl.primitives.sharing import PRIME, Unreconstructable, share


def value_at(xs: list[int], ys: list[int], z: int) -> int:
    """The interpolating polynomial's value at z, in plain integers (Lagrange)."""
    total = 0
    for i, x in enumerate(xs):
        top, bottom = ys[i], 1
        for j, other in enumerate(xs):
            if j != i:
                top = top * (z - other) % PRIME
                bottom = bottom * (x - other) % PRIME
        total += top * pow(bottom, -1, PRIME)
    return total % PRIME


def by_trying_all(column: list[int], xs: list[int], t: int) -> tuple[int, frozenset[int]] | None:
    """The only polynomial of degree < t that all but floor((M-t)/2) rows agree with, if any."""
    M = len(xs)
    for rows in itertools.combinations(range(M), t):
        own = [xs[i] for i in rows]
        ys = [column[i] for i in rows]
        wrong = frozenset(i for i in range(M) if value_at(own, ys, xs[i]) != column[i])
        if len(wrong) <= (M - t) // 2:
            return value_at(own, ys, 0), wrong
    return None


def polynomials(
    rng: np.random.Generator, xs: list[int], t: int, words: int
) -> tuple[list[int], np.ndarray]:
    """Random words and their shares, by Horner in plain integers."""
    coefficients = [[int(c) for c in rng.integers(0, PRIME, size=t)] for _ in range(words)]
    rows = [
        [sum(c * pow(x, i, PRIME) for i, c in enumerate(row)) % PRIME for row in coefficients]
        for x in xs
    ]
    return [row[0] for row in coefficients], np.array(rows, dtype=np.uint32)


def corrupt(rng: np.random.Generator, shares: np.ndarray, rows: list[int], columns: int) -> None:
    """Changes each row in some of the first ``columns`` words, in at least one."""
    for i in rows:
        hit = [c for c in range(columns) if rng.random() < 0.5] or [int(rng.integers(columns))]
        for c in hit:
            shares[i, c] = (int(shares[i, c]) + int(rng.integers(1, PRIME))) % PRIME


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(0, 14), st.integers(1, 6), st.data())
def test_every_pattern_within_the_radius_is_corrected_and_named(
    t: int, radius: int, words: int, data: st.DataObject
) -> None:
    M = t + 2 * radius + data.draw(st.integers(0, 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    xs = sorted(int(x) for x in rng.choice(np.arange(1, 4 * M + 1), size=M, replace=False))
    secret, shares = polynomials(rng, xs, t, words)
    count = data.draw(st.integers(0, radius))
    wrong = sorted(int(i) for i in rng.choice(M, size=count, replace=False))
    corrupt(rng, shares, wrong, words)
    found = decode(shares, points=xs, t=t)
    assert found.words.tolist() == secret
    assert found.words.dtype == np.uint32
    assert found.errors == tuple(wrong)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 8), st.integers(0, 2**32))
def test_the_answer_is_that_of_trying_every_subset_within_and_beyond_the_radius(
    t: int, extra: int, count: int, seed: int
) -> None:
    """One word at a time: the same answer, or TooManyErrors exactly where there is none."""
    M = t + extra
    rng = np.random.default_rng(seed)
    xs = sorted(int(x) for x in rng.choice(np.arange(1, 30), size=M, replace=False))
    _, shares = polynomials(rng, xs, t, 1)
    corrupt(rng, shares, [int(i) for i in rng.choice(M, size=min(count, M), replace=False)], 1)
    exact = by_trying_all(shares[:, 0].tolist(), xs, t)
    if exact is None:
        with pytest.raises(TooManyErrors) as raised:
            decode(shares, points=xs, t=t)
        assert (raised.value.shares, raised.value.radius) == (M, extra // 2)
    else:
        found = decode(shares, points=xs, t=t)
        assert (found.words.tolist(), set(found.errors)) == ([exact[0]], set(exact[1]))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 2**32))
def test_several_words_succeed_exactly_if_all_do_with_few_enough_rows_together(
    t: int, extra: int, seed: int
) -> None:
    M, words = t + extra, 3
    rng = np.random.default_rng(seed)
    xs = list(range(1, M + 1))
    _, shares = polynomials(rng, xs, t, words)
    for c in range(words):
        for i in rng.choice(M, size=int(rng.integers(0, extra // 2 + 2)) % (M + 1), replace=False):
            shares[i, c] = (int(shares[i, c]) + int(rng.integers(1, PRIME))) % PRIME
    each = [by_trying_all(shares[:, c].tolist(), xs, t) for c in range(words)]
    together = frozenset().union(*(one[1] for one in each if one is not None))
    if None in each or len(together) > extra // 2:
        with pytest.raises(TooManyErrors):
            decode(shares, points=xs, t=t)
    else:
        found = decode(shares, points=xs, t=t)
        assert found.words.tolist() == [one[0] for one in each if one is not None]
        assert set(found.errors) == together


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 10), st.data())
def test_one_error_too_many_is_an_error_never_a_wrong_word(
    t: int, radius: int, data: st.DataObject
) -> None:
    """Random values beyond the radius land near another code word with chance below 2^-25."""
    odd = data.draw(st.integers(0, 1))
    M = t + 2 * radius + odd
    count = data.draw(st.integers(radius + 1, 2 * radius + odd))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    xs = list(range(1, M + 1))
    _, shares = polynomials(rng, xs, t, 1)
    corrupt(rng, shares, [int(i) for i in rng.choice(M, size=count, replace=False)], 1)
    with pytest.raises(TooManyErrors, match=f"more than {radius} of {M} shares"):
        decode(shares, points=xs, t=t)


def test_colluders_can_move_the_shares_to_another_polynomial_which_is_then_the_answer() -> None:
    """Why the caller compares with a commitment: M - radius agreeing liars are "correct"."""
    t, M = 3, 9
    rng = np.random.default_rng(5)
    xs = list(range(1, M + 1))
    _, truth = polynomials(rng, xs, t, 1)
    other, lies = polynomials(rng, xs, t, 1)
    lies[:3] = truth[:3]
    found = decode(lies, points=xs, t=t)
    assert found.words.tolist() == other
    assert found.errors == (0, 1, 2)


def test_redundancy_of_one_notices_and_does_not_guess() -> None:
    rng = np.random.default_rng(1)
    _, shares = polynomials(rng, [1, 2, 3, 4], 3, 2)
    decode(shares, points=[1, 2, 3, 4], t=3)
    shares[2, 1] ^= 1
    with pytest.raises(TooManyErrors, match="more than 0 of 4"):
        decode(shares, points=[1, 2, 3, 4], t=3)


@pytest.mark.parametrize("size", [16, 32])
def test_a_secret_shared_by_the_protocols_own_sharing_comes_back(size: int) -> None:
    rng = np.random.default_rng(size)
    M, t = 31, 11
    secret = rng.bytes(size)
    points = np.arange(1, M + 1, dtype=np.uint64)
    shares = share(secret, t=t, points=points, random_bytes=rng.bytes)
    wrong = sorted(int(i) for i in rng.choice(M, size=10, replace=False))
    corrupt(rng, shares, wrong, shares.shape[1])
    found = decode_secret(shares, points=range(1, M + 1), t=t, secret_bytes=size)
    assert found == (secret, tuple(wrong))


def test_corrected_words_that_are_no_secret_are_refused() -> None:
    shares = np.full((5, 5), 1 << 30, dtype=np.uint32)
    shares[1] = 7
    with pytest.raises(Unreconstructable, match="30 bits"):
        decode_secret(shares, points=range(1, 6), t=1, secret_bytes=16)


def test_the_extreme_values_do_not_overflow() -> None:
    xs = [(1 << 30) - 1 - i for i in range(12)]
    rng = np.random.default_rng(2)
    secret, shares = polynomials(rng, xs, 4, 2)
    shares[0] = PRIME - 1
    shares[11] = 0
    found = decode(shares, points=xs, t=4)
    assert found.words.tolist() == secret
    assert found.errors == (0, 11)
    same = np.full((5, 1), PRIME - 1, dtype=np.uint32)
    assert decode(same, points=range(1, 6), t=1).words.tolist() == [PRIME - 1]


def test_the_corrected_words_are_not_printed() -> None:
    same = np.full((5, 1), 123456789, dtype=np.uint32)
    assert "123456789" not in repr(decode(same, points=range(1, 6), t=1))


def test_arguments_outside_their_range_are_refused() -> None:
    shares = np.zeros((3, 1), dtype=np.uint32)
    for t in (0, 4):
        with pytest.raises(ConfigurationError, match=r"t must be in 1\.\.3"):
            decode(shares, points=[1, 2, 3], t=t)
    for points in ([1, 2, 2], [0, 1, 2], [1, 2, 1 << 30]):
        with pytest.raises(ConfigurationError, match="distinct and in"):
            decode(shares, points=points, t=2)
    with pytest.raises(ConfigurationError, match="rows"):
        decode(shares, points=[1, 2], t=2)
    shares[0] = PRIME
    with pytest.raises(ConfigurationError, match="not below"):
        decode(shares, points=[1, 2, 3], t=2)


def test_two_hundred_shares_are_corrected_in_a_moment() -> None:
    """CPU seconds for both secrets of a client, 50 of 200 holders lying in every word."""
    M, t = 200, 100
    rng = np.random.default_rng(3)
    secret, shares = polynomials(rng, list(range(1, M + 1)), t, 14)
    wrong = sorted(int(i) for i in rng.choice(M, size=50, replace=False))
    corrupt(rng, shares, wrong, 14)
    begin = time.process_time()
    found = decode(shares, points=range(1, M + 1), t=t)
    assert time.process_time() - begin < 1.0
    assert (found.words.tolist(), list(found.errors)) == (secret, wrong)
