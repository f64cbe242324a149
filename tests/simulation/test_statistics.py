"""Federated statistics through real secure sums equal the pooled ones, dropouts included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import BelowThreshold, ConfigurationError
from securefl.simulation.statistics import (
    SumSettings,
    federated_histogram,
    federated_mean,
    federated_moments,
)
from securefl.training.data import load
from securefl.training.statistics import Bounds, HistogramQuery, TooFewRecords

LOW, HIGH = np.array([-2.0, 0.0]), np.array([2.0, 50.0])
BOUNDS = Bounds.of(LOW, HIGH)


def tables(seed, clients):
    rng = np.random.default_rng(seed)
    made = {}
    for client in range(10, 10 + clients):
        table = rng.normal([0, 25], [1, 20], (int(rng.integers(1, 30)), 2))
        table[rng.random(table.shape) < 0.1] = np.nan
        made[client] = table
    return made


@settings(max_examples=8)
@given(
    seed=st.integers(0, 999),
    clients=st.integers(4, 8),
    protocol=st.sampled_from(["secagg", "secagg+", "lightsecagg"]),
    gone=st.integers(0, 1),
)
def test_the_opened_moments_are_those_of_the_survivors_records(seed, clients, protocol, gone):
    data = tables(seed, clients)
    dropped = list(data)[:gone]
    found = federated_moments(
        data,
        bounds=BOUNDS,
        max_records=30,
        settings=SumSettings(
            protocol=protocol,
            degree=2 if protocol == "secagg+" and clients < 6 else None,
            drop={"masked_input_collection": dropped} if protocol != "secagg+" else None,
        ),
    )
    kept = [c for c in data if protocol == "secagg+" or c not in dropped]
    assert found.survivors == tuple(kept)
    pooled = np.clip(np.concatenate([data[c] for c in kept]), LOW, HIGH)
    count = (~np.isnan(pooled)).sum(axis=0)
    # counts to the nearest step; means and variances to the rounding of their sums
    assert found.value.count == pytest.approx(count, abs=found.error)
    slack = 4 * found.error / count.min() * 25.0
    assert found.value.mean == pytest.approx(np.nanmean(pooled, axis=0), abs=slack + 1e-9)
    assert found.value.variance == pytest.approx(np.nanvar(pooled, axis=0), abs=100 * slack + 1e-6)
    assert found.error < (1e-2 if protocol == "lightsecagg" else 1e-8)


def test_one_hidden_sum_needs_one_upload_per_client():
    data = tables(0, 5)
    found = federated_mean(data, bounds=BOUNDS, max_records=30)
    assert found.bytes_up > 0
    assert found.bytes_down > 0
    pooled = np.clip(np.concatenate(list(data.values())), LOW, HIGH)
    assert found.value.mean == pytest.approx(np.nanmean(pooled, axis=0), abs=1e-6)


@pytest.mark.data
def test_the_hospitals_standardise_as_if_their_records_were_pooled():
    train, _ = load("heart-disease")
    columns = [train.feature_names.index(name) for name in ("age", "oldpeak")]
    site = {k: train.x[train.groups == k][:, columns] for k in range(4)}
    found = federated_moments(site, bounds=Bounds.of([-1, -1], [1, 1]), max_records=500).value
    pooled = train.x[:, columns].astype(np.float64)
    assert found.mean == pytest.approx(pooled.mean(axis=0), abs=1e-7)
    assert found.variance == pytest.approx(pooled.var(axis=0), abs=1e-7)
    together = np.concatenate([found.standardise(site[k]) for k in range(4)]).astype(np.float64)
    assert together.mean(axis=0) == pytest.approx([0, 0], abs=1e-5)
    assert together.std(axis=0) == pytest.approx([1, 1], abs=1e-5)


def test_a_histogram_counts_the_survivors():
    rng = np.random.default_rng(3)
    data = {c: rng.normal(0, 1, 20) for c in range(6)}
    found = federated_histogram(
        data,
        query=HistogramQuery.even(-3, 3, 12),
        max_records=20,
        settings=SumSettings(adversary="active", drop={"unmasking": [5]}),
    )
    pooled = np.clip(np.concatenate(list(data.values())), -3, 3)
    assert found.value.counts.tolist() == np.histogram(pooled, 12, (-3, 3))[0].tolist()


def test_thin_statistics_and_lost_rounds_are_errors():
    data = {c: np.full((2, 2), np.nan) for c in range(4)}
    data[0][:] = 1.0
    with pytest.raises(TooFewRecords, match="2 records, at least 3"):
        federated_mean(data, bounds=BOUNDS, max_records=2, min_count=3)
    with pytest.raises(BelowThreshold):
        federated_mean(
            data,
            bounds=BOUNDS,
            max_records=2,
            settings=SumSettings(drop={"masked_input_collection": [0, 1]}),
        )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros((4, 2)), "client 2 has 4 records, the public max_records is 3"),
        (np.full((1, 2), np.inf), "client 2: records contain infinity"),
        (np.zeros((1, 3)), r"client 2: records must have shape \[n, 2\]"),
        (np.zeros((1, 2), dtype=int), "client 2: records must be an array of floats"),
        ([[0.0, 0.0]], "client 2: records must be an array of floats, found list"),
    ],
)
def test_a_client_refuses_what_it_cannot_send(table, message):
    data = {c: np.zeros((3, 2)) for c in range(4)} | {2: table}
    with pytest.raises(ConfigurationError, match=message):
        federated_mean(data, bounds=BOUNDS, max_records=3)


def test_numbers_that_do_not_fit_the_protocol_are_refused():
    data = {c: np.zeros((3, 2)) for c in range(4)}
    with pytest.raises(ConfigurationError, match="carries 29; lower max_records"):
        federated_mean(
            data,
            bounds=BOUNDS,
            max_records=1 << 24,
            settings=SumSettings(protocol="lightsecagg"),
        )
    with pytest.raises(ConfigurationError, match="max_records"):
        federated_mean(data, bounds=BOUNDS, max_records=0)
