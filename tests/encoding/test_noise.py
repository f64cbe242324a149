"""Noise is drawn from its exact law, held against samplers and sums that share no code with it.

Statistical tests use fixed seeds; a right sampler fails each with probability 1e-9 or less.
"""

import bisect
import itertools
import math
import os
import random
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from securefl.encoding import tables
from securefl.encoding.noise import draw
from securefl.encoding.tables import MAX_DISTANCE, MAX_TICKS, TICKS, Mechanism, noise_table
from securefl.errors import ConfigurationError
from securefl.primitives.prg import SecureRandom

FALSE_ALARM = 1e-9
LAWS = st.tuples(
    st.sampled_from(Mechanism),
    st.one_of(st.integers(1, 4 * TICKS), st.integers(1, 5000 * TICKS)),
)


def cumulative(table):
    """The table's 128-bit numbers as Python integers."""
    return [(int(h) << 64) | int(v) for h, v in zip(table.high[:-1], table.low, strict=True)]


def probabilities(table):
    """{k: 2^128 P[X = k]}."""
    numbers = [0, *cumulative(table), 1 << 128]
    return {k - table.bound: b - a for k, (a, b) in enumerate(itertools.pairwise(numbers))}


def seeded(seed):
    """Bytes for tests that must repeat."""
    return np.random.default_rng(seed).bytes


def chi_square(samples, law):
    """P-value of integer samples against {k: probability}; rare values share a bin."""
    counts = {k: int(c) for k, c in zip(*np.unique(samples, return_counts=True), strict=True)}
    n = len(samples)
    common = [k for k, p in law.items() if p * n >= 20]
    observed = [counts.pop(k, 0) for k in common]
    expected = [law[k] * n for k in common]
    observed.append(sum(counts.values()))
    expected.append(n - sum(expected))
    if expected[-1] < 20:  # too little left for a bin of its own
        observed[0] += observed.pop()
        expected[0] += expected.pop()
    return stats.chisquare(observed, expected).pvalue


def skellam_by_convolution(mu, reach):
    """Difference of two Poisson variables of mean mu/2, summed in 60 digits."""
    with mpmath.workdps(60):
        half = mpmath.mpf(mu.numerator) / mu.denominator / 2
        poisson = [mpmath.exp(-half) * half**k / mpmath.factorial(k) for k in range(6 * reach + 80)]
        return {
            k: mpmath.fsum(a * b for a, b in zip(poisson[abs(k) :], poisson, strict=False))
            for k in range(-reach, reach + 1)
        }


def gaussian_by_definition(variance, reach):
    with mpmath.workdps(60):
        v = mpmath.mpf(variance.numerator) / variance.denominator
        weights = {k: mpmath.exp(-k * k / (2 * v)) for k in range(-40 * reach, 40 * reach + 1)}
        total = mpmath.fsum(weights.values())
        return {k: weights[k] / total for k in range(-reach, reach + 1)}


@pytest.mark.parametrize("ticks", [1, TICKS // 3, TICKS, 5 * TICKS + 1, 60 * TICKS])
@pytest.mark.parametrize("mechanism", Mechanism)
def test_the_table_agrees_with_an_independent_sum_to_36_digits(mechanism, ticks):
    law = skellam_by_convolution if mechanism == "skellam" else gaussian_by_definition
    found = probabilities(noise_table(mechanism, ticks))
    with mpmath.workdps(60):
        for k, p in law(Fraction(ticks, TICKS), 12).items():
            assert abs(found[k] - p * 2**128) <= 2


@settings(max_examples=20)
@given(LAWS)
def test_a_table_is_a_symmetric_law_with_the_stated_variance(parameters):
    mechanism, ticks = parameters
    table = noise_table(mechanism, ticks)
    mass = probabilities(table)
    assert min(mass.values()) >= 0
    assert sum(mass.values()) == 1 << 128
    assert table.distance <= MAX_DISTANCE
    assert all(abs(mass[k] - mass[-k]) <= 2 for k in range(1, table.bound + 1))
    variance = Fraction(sum(k * k * p for k, p in mass.items()), 1 << 128)
    if mechanism == "skellam":
        assert abs(variance - Fraction(ticks, TICKS)) < Fraction(1, 1 << 90)
    else:  # slightly below its parameter: Canonne, Kamath, Steinke 2020, corollary 9
        assert variance < Fraction(ticks, TICKS) + Fraction(1, 1 << 90)


@pytest.mark.parametrize("mechanism", Mechanism)
def test_large_tables_agree_with_bessel_functions_and_exponentials(mechanism):
    ticks = 3_000 * TICKS + 12_345
    mass = probabilities(noise_table(mechanism, ticks))
    with mpmath.workdps(60):
        v = mpmath.mpf(ticks) / TICKS
        for k in (0, 1, 50, 200, 500):
            if mechanism == "skellam":
                p = mpmath.exp(-v) * mpmath.besseli(k, v)
            else:  # the sum over all integers is sqrt(2 pi v), up to e^(-2 pi^2 v)
                p = mpmath.exp(-k * k / (2 * v)) / mpmath.sqrt(2 * mpmath.pi * v)
            assert abs(mass[k] - p * 2**128) <= 2


@pytest.mark.parametrize("ticks", [1, TICKS // 3, 400 * TICKS])
def test_true_weights_lie_between_their_integer_bounds(ticks):
    """In 90 digits, at every fourth place: the distance is computed from these bounds."""
    bound = 300
    with mpmath.workdps(90):
        v = mpmath.mpf(ticks) / TICKS
        lower, upper, beyond = tables._skellam_weights(ticks, bound)
        for k in range(0, bound + 1, 4):
            assert lower[k] <= 2**192 * mpmath.besseli(k, v) / mpmath.besseli(0, v) <= upper[k]
            assert upper[k] - lower[k] <= lower[k] * 2.0**-8 + 2 * bound
        tail = mpmath.fsum(mpmath.besseli(k, v) for k in range(bound + 1, bound + 400))
        assert 2**192 * tail / mpmath.besseli(0, v) <= beyond
        lower, upper, beyond = tables._gaussian_weights(ticks, bound)
        for k in range(0, bound + 1, 4):
            assert lower[k] <= 2**192 * mpmath.exp(-k * k / (2 * v)) <= upper[k]
            assert upper[k] - lower[k] <= 4 * bound * bound
        tail = mpmath.fsum(mpmath.exp(-k * k / (2 * v)) for k in range(bound + 1, bound + 400))
        assert 2**192 * tail <= beyond


def test_the_recursion_keeps_its_bounds_apart_where_they_start_far_apart():
    """With the start a few steps from the end, the bounds are wide and still hold on both sides."""
    ticks = 10_000 * TICKS
    with mpmath.workdps(90):
        v = mpmath.mpf(ticks) / TICKS
        for bound in (1, 2, 3, 10):
            lower, upper, _ = tables._skellam_weights(ticks, bound)
            for k in range(1, bound + 1):
                exact = (
                    2**192
                    * mpmath.besseli(k, v, maxterms=10**6)
                    / mpmath.besseli(0, v, maxterms=10**6)
                )
                assert lower[k] < exact < upper[k]


def test_a_table_with_too_few_digits_is_refused(monkeypatch):
    monkeypatch.setattr(tables, "_P", 100)
    monkeypatch.setattr(tables, "_ONE", 1 << 100)
    for mechanism in Mechanism:
        with pytest.raises(ConfigurationError, match=r"expected 2\^-106"):
            tables.noise_table.__wrapped__(mechanism, 1000 * TICKS)


def test_the_stated_distance_covers_what_is_cut_off(monkeypatch):
    """With tables of a quarter of their width the tail shows up in the distance."""

    def narrow(ticks, bound):
        lower, upper, beyond = WEIGHTS(ticks, bound // 4)
        true = 1 - float(
            sum(mpmath.besseli(k, 400) for k in range(-bound // 4, bound // 4 + 1))
            * mpmath.exp(-400)
        )
        stated = (2 * sum(upper) - upper[0] + 2 * beyond) / (2 * sum(lower) - lower[0]) - 1
        assert stated >= true > stated / 3
        return lower, upper, beyond

    WEIGHTS = tables._skellam_weights
    monkeypatch.setattr(tables, "_skellam_weights", narrow)
    with pytest.raises(ConfigurationError, match=r"expected 2\^-106"):
        tables.noise_table.__wrapped__(Mechanism.SKELLAM, 400 * TICKS)


@pytest.mark.parametrize("ticks", [0, -1, MAX_TICKS + 1, 1.0, True])
def test_a_variance_out_of_range_is_refused(ticks):
    with pytest.raises(ConfigurationError, match=r"multiple of 2\^-20"):
        noise_table(Mechanism.SKELLAM, ticks)


class Script:
    """A source of bytes that gives prepared words first to last."""

    def __init__(self, words):
        self.words = list(words)

    def __call__(self, n):
        taken, self.words = self.words[: n // 8], self.words[n // 8 :]
        return b"".join(int(w).to_bytes(8, "little") for w in taken)


@given(LAWS, st.integers(0, 2**32), st.data())
def test_a_draw_is_the_inverse_of_the_table_also_at_every_boundary(parameters, seed, data):
    """Words at, below and above table entries; ties are decided by 64 more bits."""
    table = noise_table(*parameters)
    numbers = cumulative(table)
    rng = random.Random(seed)
    picked = [data.draw(st.sampled_from(numbers)) for _ in range(3)] + rng.choices(numbers, k=20)
    words = [rng.getrandbits(64) for _ in range(50)] + [0, 2**64 - 1]
    for number in picked:
        words += [max(0, min(2**64 - 1, (number >> 64) + d)) for d in (-1, 0, 1)]
    boundary = {n >> 64 for n in numbers}
    lows = {n >> 64: n & (2**64 - 1) for n in picked}
    rests = [
        max(0, min(2**64 - 1, lows.get(w, rng.getrandbits(64)) + rng.choice((-1, 0, 1))))
        for w in words
        if w in boundary or w == 2**64 - 1
    ]
    script = Script(words + rests)
    found = draw(table, len(words), script)
    assert script.words == []
    remaining = iter(rests)
    for word, x in zip(words, found, strict=True):
        tied = word in boundary or word == 2**64 - 1
        u = (word << 64) | (next(remaining) if tied else 0)
        assert x == bisect.bisect_right(numbers, u) - table.bound


def test_draws_over_several_chunks_are_those_of_one():
    table = noise_table(Mechanism.SKELLAM, 9 * TICKS)
    n = 100_000
    raw = seeded(1)(8 * n)
    where = [0]

    def source(size):
        where[0] += size
        return raw[where[0] - size : where[0]]

    found = draw(table, n, source)
    assert where[0] == len(raw)
    numbers = cumulative(table)
    words = np.frombuffer(raw, dtype="<u8")
    for i in [0, 32767, 32768, 65535, 65536, n - 1]:
        assert found[i] == bisect.bisect_right(numbers, int(words[i]) << 64) - table.bound


@pytest.mark.parametrize("size", [-1, 1])
def test_a_source_that_returns_another_number_of_bytes_is_refused(size):
    table = noise_table(Mechanism.SKELLAM, TICKS)
    with pytest.raises(ConfigurationError, match="bytes where 80 were asked for"):
        draw(table, 10, lambda n: bytes(n + size))


@pytest.mark.parametrize("ticks", [TICKS // 5, 3 * TICKS, 900 * TICKS])
def test_skellam_draws_pass_a_chi_square_test_against_the_difference_of_poissons(ticks):
    samples = draw(noise_table(Mechanism.SKELLAM, ticks), 200_000, seeded(11))
    mu = ticks / TICKS
    reach = int(8 * math.sqrt(mu)) + 10
    law = {k: stats.skellam.pmf(k, mu / 2, mu / 2) for k in range(-reach, reach + 1)}
    assert chi_square(samples, law) > FALSE_ALARM


def canonne_kamath_steinke(variance, rng):
    """Algorithms 1 to 3 of "The discrete Gaussian for differential privacy" (2020), in integers."""

    def coin(p):
        return rng.randrange(p.denominator) < p.numerator

    def coin_exp(x):  # Bernoulli(exp(-x))
        while x > 1:
            if not coin_exp(Fraction(1)):
                return False
            x -= 1
        k = 1
        while coin(x / k):
            k += 1
        return k % 2 == 1

    t = math.isqrt(math.floor(variance)) + 1
    while True:
        u = rng.randrange(t)
        if not coin_exp(Fraction(u, t)):
            continue
        v = 0
        while coin_exp(Fraction(1)):
            v += 1
        y, negative = u + t * v, rng.random() < 0.5
        if negative and y == 0:
            continue
        if coin_exp((y - variance / t) ** 2 / (2 * variance)):
            return -y if negative else y


def test_discrete_gaussian_draws_have_the_law_of_exact_rejection_sampling():
    """Two-sample chi-square against an implementation in integers."""
    variance = Fraction(17, 2)
    rng = random.Random(5)
    exact = [canonne_kamath_steinke(variance, rng) for _ in range(15_000)]
    ours = draw(noise_table(Mechanism.DISCRETE_GAUSSIAN, int(variance * TICKS)), 60_000, seeded(5))
    edges = np.arange(-9, 11) - 0.5
    table = np.array([np.histogram(np.clip(s, -9, 9), edges)[0] for s in (exact, ours)])
    assert stats.chi2_contingency(table).pvalue > FALSE_ALARM


@pytest.mark.parametrize("mechanism", Mechanism)
def test_moments_and_correlations_are_those_of_independent_noise(mechanism):
    """Means, variances and all correlations within 6.2 standard errors (false alarm 6e-10 each)."""
    n, std = 1 << 17, 97.3
    table = noise_table(mechanism, int(std**2 * TICKS))
    first, second = (draw(table, n, seeded(s)).astype(float) / std for s in (1, 2))
    assert abs(first.mean()) < 6.2 / math.sqrt(n)
    assert abs(first.var() - 1) < 6.2 * math.sqrt(2 / n)
    assert abs((first**4).mean() - 3) < 6.2 * math.sqrt(96 / n) + 3 / std**2
    neighbours = [np.mean(first[lag:] * first[:-lag]) for lag in (1, 2, 16, 1 << 15)]
    neighbours += [np.mean(first * second), np.mean(first**2 * second**2) - 1]
    for c in neighbours[:-1]:
        assert abs(c) < 6.2 / math.sqrt(n - (1 << 15))
    assert abs(neighbours[-1]) < 6.2 * math.sqrt(8 / n)


@pytest.mark.parametrize("shares", [2, 7])
def test_skellam_shares_add_up_to_the_central_law(shares):
    """The sum of n shares of variance mu/n, against the law of variance mu."""
    ticks = 30 * TICKS
    table = noise_table(Mechanism.SKELLAM, ticks // shares)
    total = sum(draw(table, 100_000, seeded(100 + s)) for s in range(shares))
    mu = (ticks // shares) * shares / TICKS
    law = {k: stats.skellam.pmf(k, mu / 2, mu / 2) for k in range(-60, 61)}
    assert chi_square(total, law) > FALSE_ALARM
    assert chi_square(total, {k: stats.skellam.pmf(k, mu * 0.55, mu * 0.55) for k in law}) < 1e-30


def test_a_forked_child_does_not_repeat_its_parents_noise():
    table = noise_table(Mechanism.SKELLAM, 10**6 * TICKS)
    for source in (os.urandom, SecureRandom().random_bytes):
        draw(table, 10, source)  # a stream that has begun
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover  # another process
            os.write(writing, draw(table, 200, source).tobytes())
            os._exit(0)
        os.waitpid(child, 0)
        theirs = np.frombuffer(os.read(reading, 1600), dtype=np.int64)
        os.close(reading)
        os.close(writing)
        ours = draw(table, 200, source)
        # Values coincide one by one with probability 1/3500: 20 of 200 never do.
        assert np.count_nonzero(ours == theirs) < 20


def test_seeding_other_generators_alike_does_not_repeat_noise():
    table = noise_table(Mechanism.DISCRETE_GAUSSIAN, 10**6 * TICKS)
    drawn = []
    for _ in range(2):
        np.random.seed(0)
        random.seed(0)
        drawn.append(draw(table, 200, SecureRandom().random_bytes))
    assert np.count_nonzero(drawn[0] == drawn[1]) < 20
