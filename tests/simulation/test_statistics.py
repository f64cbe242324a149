"""Federated statistics through real secure sums equal the pooled ones, dropouts included."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accounting
from securefl.encoding import NoisySpec, noisy
from securefl.errors import BelowThreshold, ConfigurationError
from securefl.simulation import statistics
from securefl.simulation.statistics import (
    StatisticPrivacy,
    SumSettings,
    federated_histogram,
    federated_mean,
    federated_moments,
    private_statistic,
)
from securefl.training.data import load
from securefl.training.statistics import (
    Bounds,
    HistogramQuery,
    MeanQuery,
    MomentsQuery,
    TooFewRecords,
)

LOW, HIGH = np.array([-2.0, 0.0]), np.array([2.0, 50.0])
BOUNDS = Bounds.of(LOW, HIGH)
RELEASE = {
    "dimension": 6,
    "clip_norm": 2.0,
    "noise_multiplier": 3.0,
    "honest_shares": 4,
    "max_clients": 8,
    "contribution": "records",
    "units": 240.0,
}
FINE = NoisySpec.plan(**RELEASE)


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


def test_peers_without_a_server_find_the_same_mean():
    data = tables(0, 5)
    found = federated_mean(
        data, bounds=BOUNDS, max_records=30, settings=SumSettings(protocol="peersum")
    )
    pooled = np.clip(np.concatenate(list(data.values())), LOW, HIGH)
    assert found.value.mean == pytest.approx(np.nanmean(pooled, axis=0), abs=1e-3)


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


# ---------------------------------------------------------------- with differential privacy


def private(data, privacy, **settings):
    return federated_moments(
        data,
        bounds=BOUNDS,
        max_records=30,
        privacy=privacy,
        settings=SumSettings(**settings),
    )


@pytest.mark.parametrize("gone", [0, 1])
def test_a_private_release_costs_its_target_at_the_fewest_survivors_and_less_with_more(gone):
    data = tables(1, 6)
    dropped = list(data)[:gone]
    found = private(
        data,
        StatisticPrivacy(epsilon=2.0, delta=1e-6),
        threshold=5,
        drop={"masked_input_collection": dropped},
    )
    assert len(found.survivors) == 6 - gone
    spent = accounting.epsilon(found.event, delta=1e-6, adjacency="zero-out")
    assert spent.value <= 2.0
    if gone:
        assert spent.value > 1.99  # at the fewest survivors: what was calibrated
    else:
        assert spent.value < 1.9


def test_colluders_noise_does_not_count():
    """Of 5 survivors 2 tell their shares: the other 3 must bring all of the noise by themselves."""
    data = tables(1, 5)
    stds = [
        private(data, StatisticPrivacy(epsilon=2.0, colluding=colluding), threshold=5).error
        for colluding in (0, 2)
    ]
    assert stds[1] / stds[0] == pytest.approx(np.sqrt(5 / 3), rel=0.02)


def test_private_sums_are_the_pooled_sums_plus_noise_of_the_stated_deviation():
    """40 releases of 6 sums: the mean square is within 5 sigma; a false alarm in 10^6 runs."""
    data = tables(2, 4)
    exact = sum(MomentsQuery(bounds=BOUNDS).total(t) for t in data.values())
    noise = []
    for _ in range(40):
        found = federated_mean(
            data, bounds=BOUNDS, max_records=30, privacy=StatisticPrivacy(epsilon=20.0)
        )
        u = (2 * found.value.mean - LOW - HIGH) / (HIGH - LOW)
        noise.append(np.concatenate([found.value.count, u * found.value.count]) - exact[:4])
        std = found.error
    squares = (np.array(noise) / std) ** 2
    assert squares.mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / squares.size))
    assert std < 2.0  # the noise leaves an answer


def ledger_at(path, epsilon):
    header = accounting.LedgerHeader(
        population="test",
        unit="record",
        adjacency="zero-out",
        epsilon=epsilon,
        delta=1e-5,
        delta_reserve=1e-9,
        order=8.0,
        plan="0" * 64,
    )
    return accounting.Ledger.create(path, header)


def test_the_ledger_pays_before_anything_is_read_and_settles_what_came_about(tmp_path):
    data = tables(3, 6)
    with ledger_at(tmp_path / "l.sqlite", 5.0) as ledger:
        privacy = StatisticPrivacy(epsilon=2.0, ledger=ledger)
        found = private(data, privacy)
        states = [entry.kind for entry in ledger.entries()]
        assert states[-2:] == ["reserve", "settle"]
        assert ledger.reserved == 0
        assert ledger.spent > 0
        realised = accounting.epsilon(found.event, delta=1e-5, adjacency="zero-out").value
        assert realised <= ledger.epsilon().value < 3.0
        while True:
            try:
                private(data, privacy)
            except accounting.BudgetExceeded:
                break
        # The next one is refused before a record is read: reading these would be an error.
        with pytest.raises(accounting.BudgetExceeded):
            private(dict.fromkeys(range(6), "unreadable"), privacy)


def test_what_left_stays_charged_and_what_did_not_returns(tmp_path):
    data = tables(4, 6)
    with ledger_at(tmp_path / "l.sqlite", 9.0) as ledger:
        privacy = StatisticPrivacy(epsilon=1.0, ledger=ledger)
        with pytest.raises(ConfigurationError, match="client 12"):
            private(data | {12: np.zeros((99, 2))}, privacy)
        assert ledger.spent == ledger.reserved == 0
        with pytest.raises(BelowThreshold):
            private(data, privacy, drop={"unmasking": [10, 11, 12, 13]})
        assert ledger.spent > 0


@pytest.mark.parametrize("protocol", ["secagg+", "paillier", "lightsecagg", "peersum"])
def test_private_statistics_work_in_every_ring(small_keys, protocol):
    """Modulo a power of two, or the prime 2^31 - 1 of the protocols that sum in a field."""
    data = tables(5, 8)
    found = private(data, StatisticPrivacy(epsilon=8.0), protocol=protocol, degree=None)
    pooled = np.clip(np.concatenate(list(data.values())), LOW, HIGH)
    assert found.value.mean == pytest.approx(np.nanmean(pooled, axis=0), abs=0.2 * 50)
    assert found.event != accounting.NonPrivate()


def test_private_statistics_refuse_what_they_cannot_promise():
    data = tables(6, 4)
    for privacy, how, message in (
        (StatisticPrivacy(epsilon=1.0, colluding=3), {}, "colluding < 3"),
        (StatisticPrivacy(epsilon=1.0, colluding=-1), {}, "found -1"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            private(data, privacy, **how)


@pytest.mark.parametrize(
    ("protocol", "units", "fits"),
    [
        ("lightsecagg", 240.0, True),
        ("peersum", 240.0, True),
        ("peersum", 8e7, False),
        ("lightsecagg", 8e7, False),
        ("paillier", 8e7, True),
        ("paillier", 2.0**40, True),
        ("secagg", 2.0**40, True),
    ],
)
def test_a_statistic_that_needs_a_larger_ring_is_refused_with_the_bits(protocol, units, fits):
    settings, spec = SumSettings(protocol=protocol), NoisySpec.plan(**RELEASE | {"units": units})
    if fits:
        ring = settings.in_ring(spec, 8)
        assert (ring.modulus == 2**31 - 1) == (protocol in ("lightsecagg", "peersum"))
        assert replace(ring, modulus=spec.modulus) == spec
        return
    with pytest.raises(ConfigurationError, match=f'"{protocol}" carries 31 .*; lower max_records'):
        settings.in_ring(spec, 8)


def test_numbers_too_long_for_a_slot_are_refused():
    wide = replace(FINE, modulus=1 << 60)
    with pytest.raises(ConfigurationError, match='60 bits, "paillier" carries 58'):
        SumSettings(protocol="paillier").in_ring(wide, 8)


def test_a_ring_that_is_a_hair_too_small_is_refused():
    """A sum that needs between 2^31 - 1 and 2^31 has 31 bits, and does not fit the field."""
    low, high = 1.0, 2.0**24
    for _ in range(200):
        middle = (low + high) / 2
        try:
            replace(FINE, units=24_000.0, resolution=middle, modulus=1 << 31)
            low = middle
        except ConfigurationError:
            high = middle
    edge = replace(FINE, units=24_000.0, resolution=low, modulus=1 << 31)
    assert edge.bits == 31
    with pytest.raises(ConfigurationError, match="needs sums of 31 bits"):
        SumSettings(protocol="peersum").in_ring(edge, 8)


def test_no_entry_of_a_plain_number_can_wrap():
    """A Paillier slot adds numbers: how many clients' entries wrapped would show in their sum."""
    wide = NoisySpec.plan(**RELEASE | {"dimension": 600})
    ring = SumSettings(protocol="paillier").in_ring(wide, 8)
    assert 2 * ring.reach < ring.modulus
    assert 2 * wide.reach >= wide.modulus
    # Residues may wrap: nobody sees them unreduced.
    for protocol in ("secagg", "secagg+"):
        assert SumSettings(protocol=protocol).in_ring(wide, 8) == wide


@pytest.mark.parametrize("protocol", ["secagg", "lightsecagg", "peersum"])
def test_what_is_opened_is_a_residue_of_the_codecs_own_ring(protocol, monkeypatch):
    """Not the number of clients whose entry was negative, which nobody paid for."""
    seen = []
    real = statistics.secure_sum

    def watched(vectors, **arguments):
        result = real(vectors, **arguments)
        seen.append((arguments["modulus"], arguments["bits"], result, vectors))
        return result

    monkeypatch.setattr(statistics, "secure_sum", watched)
    found = private(tables(9, 6), StatisticPrivacy(epsilon=8.0), protocol=protocol)
    ((modulus, bits, result, vectors),) = seen
    assert bits is None
    assert modulus == 2**31 - 1 or modulus & (modulus - 1) == 0
    assert int(result.sum.max()) < modulus
    total = sum(np.array(vectors[c], dtype=object) for c in found.survivors)
    assert (total % modulus == result.sum).all()
    assert (total >= modulus).any()  # so an unreduced sum would have told more


def test_an_infinite_cell_is_a_missing_one_where_a_refusal_would_tell_of_it():
    data = tables(8, 6)
    spoilt = {client: table.copy() for client, table in data.items()}
    spoilt[11][0, :] = [np.inf, -np.inf]
    data[11][0, :] = np.nan
    query = MeanQuery(bounds=BOUNDS)
    sums = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noisy, "draw", lambda table, count, source: np.zeros(count, np.int64))
        patch.setattr(MeanQuery, "result", lambda self, opened, min_count: sums.append(opened))
        for records in (data, spoilt):
            privacy = StatisticPrivacy(epsilon=20.0)
            private_statistic(query, records, privacy=privacy, max_records=30, min_count=1)
    assert np.abs(sums[0] - sums[1]).max() < 0.9  # roundings of both, below one record
    with pytest.raises(ConfigurationError, match="client 11: records contain infinity"):
        federated_mean(spoilt, bounds=BOUNDS, max_records=30)


def test_a_statistic_without_noise_says_so():
    found = federated_mean(tables(0, 4), bounds=BOUNDS, max_records=30)
    assert found.event == accounting.NonPrivate()
