"""The secret coins: right distributions, exact thresholds, no generator with a seed."""

import math
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy import stats

from securefl.errors import ConfigurationError
from securefl.training.randomness import poisson_sample, standard_normal


def words(*values):
    """A source that returns these 64-bit words and nothing more."""
    raw = struct.pack(f"<{len(values)}Q", *values)

    def source(count):
        assert count == len(raw)
        return raw

    return source


def test_a_record_is_sampled_exactly_if_its_bits_are_below_the_threshold():
    threshold = 1 << 62  # rate 1/4
    source = words(0, threshold - 1, threshold, 2**64 - 1, 5)
    assert poisson_sample(5, 0.25, source).tolist() == [0, 1, 4]


@given(st.floats(1e-18, 1.0, exclude_max=True))
def test_the_sampling_probability_never_exceeds_the_rate(rate):
    # Bisection for the number of words below the threshold, through the public function.
    low, high = 0, 1 << 64
    while high - low > 1:
        middle = (low + high) // 2
        sampled = len(poisson_sample(1, rate, words(middle - 1))) == 1
        low, high = (middle, high) if sampled else (low, middle)
    mp.prec = 200
    probability = mpf(low) / mpf(2) ** 64
    assert probability <= mpf(rate)
    assert probability > mpf(rate) - mpf(2) ** -64


def test_rate_one_takes_every_record():
    assert poisson_sample(3, 1.0, words(0, 2**64 - 1, 7)).tolist() == [0, 1, 2]


def test_no_records_give_an_empty_sample():
    assert poisson_sample(0, 0.5, words()).tolist() == []


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(ConfigurationError, match="sampling rate"):
        poisson_sample(3, rate, os.urandom)


@pytest.mark.parametrize("rate", [0.02, 0.178, 0.9])
def test_sample_sizes_and_records_follow_the_poisson_sampling_law(rate):
    n, draws = 60, 4000
    rng = np.random.default_rng(11)
    hits = np.zeros((draws, n), dtype=bool)
    for i in range(draws):
        hits[i, poisson_sample(n, rate, rng.bytes)] = True
    # Fixed seed. Each of the three p-values below would fall under 1e-6 once in 10^6 fresh runs.
    sizes = np.bincount(hits.sum(axis=1), minlength=n + 1)
    expected = stats.binom.pmf(np.arange(n + 1), n, rate) * draws
    keep = expected >= 5
    observed = np.append(sizes[keep], sizes[~keep].sum())
    predicted = np.append(expected[keep], expected[~keep].sum())
    assert stats.chisquare(observed, predicted).pvalue > 1e-6
    per_record = hits.sum(axis=0)
    statistic = ((per_record - draws * rate) ** 2 / (draws * rate * (1 - rate))).sum()
    assert stats.chi2.sf(statistic, n) > 1e-6
    together = (hits[:, 0] & hits[:, 1]).sum()
    assert stats.binomtest(int(together), draws, rate**2).pvalue > 1e-6


def test_normals_follow_the_normal_law():
    sample = standard_normal(200_000, np.random.default_rng(3).bytes)
    # Fixed seed; with fresh coins each line would fail once in 10^6 runs.
    assert stats.kstest(sample, "norm").pvalue > 1e-6
    assert abs(sample.mean()) < 4.9 / math.sqrt(len(sample))
    spread = (sample**2).sum()
    assert 1e-6 < stats.chi2.cdf(spread, len(sample)) < 1 - 1e-6
    lag = float(np.dot(sample[:-1], sample[1:])) / len(sample)
    assert abs(lag) < 4.9 / math.sqrt(len(sample))
    beyond = int((np.abs(sample) > 3).sum())
    assert stats.binomtest(beyond, len(sample), 2 * stats.norm.sf(3)).pvalue > 1e-6


def test_each_normal_is_the_quantile_of_its_bits():
    mp.prec = 120
    for word in (0, 1, 2, 2**64 - 1, 2**63, 0x0123456789ABCDEF):
        (value,) = standard_normal(1, words(word))
        tail = (mpf(word >> 1) + 1) / mpf(2) ** 64
        magnitude = -mp.sqrt(2) * mp.erfinv(2 * tail - 1)
        expected = magnitude if word & 1 == 0 else -magnitude
        assert float(expected) == pytest.approx(value, rel=1e-12, abs=1e-15)


def test_the_largest_normal_is_finite():
    assert standard_normal(2, words(0, 1)).tolist() == pytest.approx([9.08, -9.08], abs=0.01)


@pytest.mark.parametrize(
    "sampler", [lambda s: poisson_sample(4, 0.5, s), lambda s: standard_normal(4, s)]
)
def test_a_source_that_runs_dry_is_noticed(sampler):
    with pytest.raises(ConfigurationError, match="returned 3 bytes where 32"):
        sampler(lambda n: b"abc")


def test_no_generator_state_is_read_or_changed():
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = standard_normal(100, os.urandom), poisson_sample(1000, 0.5, os.urandom)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    torch.manual_seed(5)
    np.random.seed(5)
    second = standard_normal(100, os.urandom), poisson_sample(1000, 0.5, os.urandom)
    assert not np.array_equal(first[0], second[0])
    assert not np.array_equal(first[1], second[1])
