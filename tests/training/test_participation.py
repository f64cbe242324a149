"""Cohorts follow their rule; what several sums show about one client is found exactly."""

import os
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.training.participation import (
    BatchPartition,
    Everyone,
    Exposure,
    FixedCohort,
    PoissonCohort,
    planned_exposure,
)


def rank(rows):
    """Rank over the rationals by Gaussian elimination in exact fractions."""
    rows, found = [[Fraction(int(x)) for x in row] for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((i for i in range(found, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        for i in range(len(rows)):
            if i != found and rows[i][column]:
                factor = rows[i][column] / rows[found][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[found], strict=True)]
        found += 1
    return found


def in_row_space(matrix, client):
    unit = [int(i == client) for i in range(matrix.shape[1])]
    return rank([*matrix.tolist(), unit]) == rank(matrix.tolist())


@given(st.integers(1, 7), st.integers(0, 9), st.integers(0, 2**32), st.floats(0.1, 0.95))
def test_exposure_is_membership_in_the_row_space(clients, rounds, seed, density):
    matrix = (np.random.default_rng(seed).random((rounds, clients)) < density).astype(int)
    exposure, newly = Exposure(clients), []
    for seen in range(rounds):
        newly += exposure.add(np.flatnonzero(matrix[seen]))
        expected = [u for u in range(clients) if in_row_space(matrix[: seen + 1], u)]
        assert list(exposure.exposed) == expected
        assert sorted(newly) == expected  # each is reported once


def test_one_dropout_in_each_of_two_rounds_shows_nobody_and_a_full_round_shows_both():
    exposure = Exposure(5)
    assert exposure.add([0, 1, 2, 3]) == ()
    assert exposure.add([0, 1, 2, 4]) == ()
    assert exposure.add(range(5)) == (3, 4)


def test_a_lost_round_shows_nothing():
    exposure = Exposure(3)
    assert exposure.add([]) == ()
    assert exposure.add([0, 1, 2]) == ()
    assert exposure.exposed == ()


def test_a_hundred_rounds_of_many_clients_are_counted_in_bounded_numbers():
    """No overflow: the residues of a long elimination agree with a rank in float64."""
    rng = np.random.default_rng(5)
    matrix = rng.random((60, 80)) < 0.5
    exposure = Exposure(80)
    for row in matrix:
        exposure.add(np.flatnonzero(row))
    # Null space by singular values: e_u is in the row space iff it is orthogonal to all of it.
    _, s, vt = np.linalg.svd(matrix.astype(float))
    null = vt[int((s > 1e-9).sum()) :]
    expected = np.flatnonzero(np.abs(null).max(axis=0) < 1e-9)
    assert list(exposure.exposed) == expected.tolist()


def test_everyone_is_never_told_apart_and_single_clients_at_once():
    assert planned_exposure(Everyone(clients=6), rounds=50) == ()
    assert planned_exposure(FixedCohort(clients=6, size=1, seed=0), rounds=50) == tuple(range(6))


@given(
    clients=st.integers(2, 30),
    group_size=st.integers(2, 8),
    groups=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_batch_partition_never_exposes_a_client(clients, group_size, groups, seed):
    if group_size > clients or groups > clients // group_size:
        with pytest.raises(ConfigurationError):
            BatchPartition(
                clients=clients, group_size=group_size, groups_per_round=groups, seed=seed
            )
        return
    rule = BatchPartition(
        clients=clients, group_size=group_size, groups_per_round=groups, seed=seed
    )
    assert planned_exposure(rule, rounds=40) == ()
    assert sorted(c for group in rule.groups for c in group) == list(range(clients))
    for r in range(5):
        cohort = set(rule.cohort(r))
        for group in rule.groups:
            assert cohort.issuperset(group) or cohort.isdisjoint(group)


def test_a_group_whose_member_vanishes_alone_is_exposed():
    rule = BatchPartition(clients=6, group_size=3, groups_per_round=1, seed=0)
    exposure, group = Exposure(6), rule.groups[0]
    exposure.add(group)
    assert exposure.add(group[1:]) == (group[0],)


@given(clients=st.integers(1, 40), data=st.data(), seed=st.integers(0, 99))
def test_a_fixed_cohort_has_its_size_and_no_client_twice(clients, data, seed):
    size = data.draw(st.integers(1, clients))
    rule = FixedCohort(clients=clients, size=size, seed=seed)
    for r in range(3):
        cohort = rule.cohort(r)
        assert len(set(cohort)) == len(cohort) == size
        assert list(cohort) == sorted(cohort)
        assert set(cohort) <= set(range(clients))
        assert cohort == rule.cohort(r)


def test_only_secret_coins_may_be_accounted_as_poisson_sampling():
    assert Everyone(clients=9).sample_rate is None
    assert FixedCohort(clients=9, size=3).sample_rate is None
    assert BatchPartition(clients=9, group_size=3, groups_per_round=1).sample_rate is None
    assert PoissonCohort(clients=9, rate=0.3, seed=4).sample_rate is None
    assert PoissonCohort(clients=9, rate=0.3, random_bytes=os.urandom).sample_rate == 0.3


@pytest.mark.parametrize("secret", [False, True])
def test_every_client_falls_by_a_coin_of_its_own(secret):
    """Counts over 4000 rounds lie within 5.2 standard deviations: a false alarm in 10^6 runs."""

    stream = np.random.default_rng(8).bytes

    rule = PoissonCohort(clients=6, rate=0.3, seed=1, random_bytes=stream if secret else None)
    cohorts = [rule.cohort(r) for r in range(4000)]
    taken = np.array([[c in cohort for c in range(6)] for cohort in cohorts], dtype=float)
    bound = 5.2 * np.sqrt(0.3 * 0.7 / 4000)
    assert np.abs(taken.mean(axis=0) - 0.3).max() < bound
    correlation = np.corrcoef(taken.T) - np.eye(6)
    assert np.abs(correlation).max() < 5.2 / np.sqrt(4000)


def test_public_cohorts_are_reproducible_and_secret_ones_are_not_planned():
    rule = PoissonCohort(clients=50, rate=0.5, seed=3)
    assert rule.cohort(4) == rule.cohort(4) != rule.cohort(5)
    assert rule.cohort(4) != PoissonCohort(clients=50, rate=0.5, seed=4).cohort(4)
    with pytest.raises(ConfigurationError, match="secret coins cannot be planned"):
        planned_exposure(PoissonCohort(clients=5, rate=0.5, random_bytes=os.urandom), rounds=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Everyone(clients=0), "clients"),
        (lambda: PoissonCohort(clients=3, rate=0.0), "rate"),
        (lambda: PoissonCohort(clients=3, rate=float("nan")), "rate"),
        (lambda: PoissonCohort(clients=3, rate=0.5, seed=-1), "seed"),
        (lambda: FixedCohort(clients=3, size=4), r"1\.\.3"),
        (lambda: FixedCohort(clients=3, size=0), "found 0"),
        (lambda: BatchPartition(clients=4, group_size=1, groups_per_round=1), "seen alone"),
        (lambda: BatchPartition(clients=4, group_size=2, groups_per_round=3), r"1\.\.2"),
        (lambda: Exposure(3).add([3]), r"0\.\.2"),
        (lambda: Exposure(3).add([-1, 2]), "-1"),
    ],
)
def test_impossible_rules_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
