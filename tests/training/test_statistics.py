"""Statistics from sums equal those of the pooled records."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.training.statistics import (
    LEAST_VARIANCE,
    Bounds,
    Histogram,
    HistogramQuery,
    MeanQuery,
    MomentsQuery,
    TooFewRecords,
)


def tables_of(seed, clients, features, missing):
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(clients):
        table = rng.normal(5, 8, (int(rng.integers(0, 30)), features))
        table[rng.random(table.shape) < missing] = np.nan
        tables.append(table)
    return tables


@given(
    seed=st.integers(0, 9999),
    clients=st.integers(1, 6),
    features=st.integers(1, 4),
    missing=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_moments_from_sums_are_those_of_the_pooled_clipped_records(
    seed, clients, features, missing
):
    tables = tables_of(seed, clients, features, missing)
    low, high = np.linspace(-10, 0, features), np.linspace(8, 20, features)
    bounds = Bounds.of(low, high)
    query = MomentsQuery(bounds=bounds)
    sums = sum(query.total(t) for t in tables)
    pooled = np.clip(np.concatenate(tables), low, high)
    count = (~np.isnan(pooled)).sum(axis=0)
    if count.min() < 2:
        with pytest.raises(TooFewRecords, match="at least 2 are needed"):
            query.result(sums, min_count=2)
        return
    found = query.result(sums, min_count=2)
    assert found.count.tolist() == count.tolist()
    assert found.mean == pytest.approx(np.nanmean(pooled, axis=0), rel=1e-9, abs=1e-9)
    floor = LEAST_VARIANCE * (0.5 * (high - low)) ** 2
    expected = np.maximum(np.nanvar(pooled, axis=0), floor)
    assert found.variance == pytest.approx(expected, rel=1e-6)
    means = MeanQuery(bounds=bounds)
    only = means.result(sum(means.total(t) for t in tables), min_count=2)
    assert only.mean == pytest.approx(found.mean, rel=1e-12)
    assert only.count.tolist() == count.tolist()


def test_standardised_records_have_mean_zero_and_variance_one_and_gaps_at_zero():
    rng = np.random.default_rng(0)
    table = rng.uniform(-3, 9, (500, 2))
    table[::7, 0] = np.nan
    query = MomentsQuery(bounds=Bounds.of([-3, -3], [9, 9]))
    found = query.result(query.total(table), min_count=2)
    z = found.standardise(table)
    assert z.dtype == np.float32
    assert (z[::7, 0] == 0).all()
    kept = z[~np.isnan(table[:, 0]), 0].astype(np.float64)
    assert kept.mean() == pytest.approx(0, abs=1e-6)
    assert kept.var() == pytest.approx(1, abs=1e-6)


def test_a_constant_feature_is_not_divided_by_zero():
    table = np.full((9, 1), 4.0)
    query = MomentsQuery(bounds=Bounds.of(0, 8))
    found = query.result(query.total(table), min_count=1)
    assert found.unit_variance.tolist() == [LEAST_VARIANCE]
    assert not query.bounds.unit(table).any()
    assert not found.standardise(table).any()


def test_noise_cannot_carry_moments_out_of_the_bounds():
    query = MomentsQuery(bounds=Bounds.of(0, 8))
    found = query.result(np.array([4.0, 9.0, 40.0]), min_count=1)
    assert (found.mean.tolist(), found.variance.tolist()) == ([8.0], [16 * LEAST_VARIANCE])
    low = query.result(np.array([4.0, -1.0, -3.0]), min_count=1)
    assert low.unit_variance.tolist() == [LEAST_VARIANCE]
    means = MeanQuery(bounds=Bounds.of(0, 8))
    assert means.result(np.array([4.0, -9.0]), min_count=1).mean.tolist() == [0.0]


@given(st.integers(0, 999), st.integers(1, 5))
def test_one_records_vector_stays_within_its_norm(seed, features):
    """What noise is scaled to: removing any record moves the sums by at most ``norm``."""
    rng = np.random.default_rng(seed)
    bounds = Bounds.of(np.full(features, -1.0), np.full(features, 1.0))
    table = rng.normal(0, 3, (8, features))
    table[rng.random(table.shape) < 0.2] = np.nan
    for query, data in (
        (MeanQuery(bounds=bounds), table),
        (MomentsQuery(bounds=bounds), table),
        (HistogramQuery.even(-1, 1, 7), table[:, 0]),
    ):
        for i in range(8):
            moved = query.total(data) - query.total(np.delete(data, i, axis=0))
            assert np.linalg.norm(moved) <= query.norm * (1 + 1e-12)
            assert np.abs(moved).max() <= 1 + 1e-12


@given(st.lists(st.floats(-2, 3, allow_nan=False), min_size=1, max_size=60), st.integers(1, 12))
def test_a_histogram_counts_like_numpy(values, bins):
    query = HistogramQuery.even(0, 1, bins)
    data = np.array([*values, np.nan])
    found = query.result(query.total(data), min_count=1)
    # numpy counts a value on the last edge into the last bin too
    expected, _ = np.histogram(np.clip(values, 0, 1), bins=query.edges)
    assert found.counts.tolist() == expected.tolist()


@given(st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_quantiles_and_tail_means_are_right_to_a_bin(values, share):
    query = HistogramQuery.even(0, 1, 50)
    data = np.sort(np.array(values))
    found = query.result(query.total(data), min_count=1)
    # every value with a rank next to the wanted one is an honest answer; a bin's width more
    wanted = share * len(data)
    near = data[max(0, int(np.floor(wanted)) - 1) : int(np.ceil(wanted)) + 1]
    assert (
        near.min() - found.width - 1e-9 <= found.quantile(share) <= near.max() + found.width + 1e-9
    )
    weights = np.clip(wanted - np.arange(len(data)), 0, 1)
    exact = float(weights @ data / weights.sum())
    assert found.mean_of_lowest(share) == pytest.approx(exact, abs=found.width / 2 + 1e-9)
    exact = float(weights @ data[::-1] / weights.sum())
    assert found.mean_of_highest(share) == pytest.approx(exact, abs=found.width / 2 + 1e-9)


def test_negative_noisy_counts_count_as_zero():
    found = Histogram(edges=np.arange(4.0), counts=np.array([-3.0, 2.0, -1.0]))
    assert found.median == 1.5
    assert (found.quantile(0.0), found.quantile(1.0)) == (1.0, 2.0)
    assert found.mean_of_lowest(0.5) == 1.5
    with pytest.raises(ConfigurationError, match="empty"):
        _ = Histogram(edges=np.arange(3.0), counts=np.array([-1.0, 0.0])).median
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigurationError, match="share"):
            found.quantile(share)
    with pytest.raises(ConfigurationError, match="share"):
        found.mean_of_lowest(0.0)


def test_too_few_records_are_no_statistic():
    query = MomentsQuery(bounds=Bounds.of([0, 0], [1, 1]))
    table = np.array([[0.5, np.nan], [0.25, 0.5]])
    with pytest.raises(TooFewRecords, match=r"feature 1 has a value in 1 records.*2 are") as caught:
        query.result(query.total(table), min_count=2)
    assert (caught.value.needed, caught.value.had) == (2, 1.0)
    bins = HistogramQuery.even(0, 1, 2)
    with pytest.raises(TooFewRecords, match="holds 1 values, at least 5"):
        bins.result(np.array([1.0, 0.0]), min_count=5)
    with pytest.raises(TooFewRecords):
        bins.result(np.array([np.nan, 0.0]), min_count=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bounds.of(1, 1), "low < high"),
        (lambda: Bounds.of([0, 2], [1, 1]), "feature 1"),
        (lambda: Bounds.of([0, 0], [1, np.inf]), "feature 1"),
        (lambda: Bounds.of([0, 0], [1]), "shapes"),
        (lambda: Bounds.of(0, 1).unit(np.zeros((3, 2))), r"\[n, 1\], found \(3, 2\)"),
        (lambda: Bounds.of(0, 1).unit(np.zeros(3)), r"found \(3,\)"),
        (lambda: HistogramQuery(edges=np.array([0.0, 0.0])), "strictly ascending"),
        (lambda: HistogramQuery(edges=np.array([0.0])), "at least two"),
        (lambda: HistogramQuery(edges=np.array([0.0, np.nan])), "finite"),
        (lambda: HistogramQuery.even(0, 1, 0), "bins"),
        (lambda: HistogramQuery.even(0, 1, 2).total(np.zeros((2, 2))), "shape"),
        (lambda: HistogramQuery.even(0, 1, 2).result(np.zeros(3), min_count=1), "2 counts"),
        (lambda: HistogramQuery.even(0, 1, 2).result(np.ones(2), min_count=0), "min_count"),
        (lambda: MeanQuery(bounds=Bounds.of(0, 1)).result(np.ones(3), min_count=1), "2 sums"),
        (lambda: MeanQuery(bounds=Bounds.of(0, 1)).result(np.ones(2), min_count=0), "min_count"),
    ],
)
def test_impossible_questions_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
