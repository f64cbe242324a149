"""Every partition is disjoint, complete, large enough, and a function of its seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.training.partition import (
    Partition,
    PartitionKind,
    dirichlet,
    iid,
    natural,
    quantity,
    shards,
)

LABELS = st.integers(20, 200).flatmap(
    lambda n: st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).integers(0, 5, n))
)


def deal(kind, labels, clients, seed, min_size=1):
    n = len(labels)
    if kind == "iid":
        return iid(n, clients=clients, seed=seed, min_size=min_size)
    if kind == "dirichlet":
        return dirichlet(labels, clients=clients, alpha=1.0, seed=seed, min_size=min_size)
    if kind == "shards":
        return shards(labels, clients=clients, per_client=2, seed=seed, min_size=min_size)
    if kind == "quantity":
        return quantity(n, clients=clients, alpha=1.0, seed=seed, min_size=min_size)
    return natural(labels, min_size=min_size)


@given(
    kind=st.sampled_from([k.value for k in PartitionKind]),
    labels=LABELS,
    clients=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_every_record_goes_to_exactly_one_client(kind, labels, clients, seed):
    partition = deal(kind, labels, clients, seed)
    expected = len(np.unique(labels)) if kind == "natural" else clients
    assert len(partition.indices) == expected
    together = np.concatenate(partition.indices)
    assert len(together) == len(labels)
    assert set(together.tolist()) == set(range(len(labels)))
    assert sum(partition.sizes) == len(labels)
    for part in partition.indices:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


@given(
    kind=st.sampled_from(["iid", "dirichlet", "shards", "quantity"]),
    labels=LABELS,
    seed=st.integers(0, 2**31),
)
def test_every_client_has_the_minimum_size(kind, labels, seed):
    assert min(deal(kind, labels, 3, seed, min_size=4).sizes) >= 4


@given(
    kind=st.sampled_from(["iid", "dirichlet", "shards", "quantity"]),
    labels=LABELS,
    seed=st.integers(0, 2**31),
)
def test_the_same_seed_deals_the_same_hands(kind, labels, seed):
    first, again, other = (deal(kind, labels, 4, s) for s in (seed, seed, seed + 1))
    for a, b in zip(first.indices, again.indices, strict=True):
        assert np.array_equal(a, b)
    assert first.digest() == again.digest()
    assert first.digest() != other.digest()
    assert len(first.digest()) == 32


def test_the_digest_tells_partitions_apart():
    a = Partition(indices=(np.array([0, 1]), np.array([2])), kind=PartitionKind.NATURAL, seed=0)
    b = Partition(indices=(np.array([0]), np.array([1, 2])), kind=PartitionKind.NATURAL, seed=0)
    c = Partition(indices=(np.array([0, 1]), np.array([2])), kind=PartitionKind.IID, seed=0)
    assert len({a.digest(), b.digest(), c.digest()}) == 3


def test_iid_sizes_differ_by_at_most_one():
    assert sorted(iid(1437, clients=10, seed=0).sizes) == [143] * 3 + [144] * 7


def test_a_small_alpha_concentrates_classes_and_a_large_one_spreads_them():
    labels = np.repeat(np.arange(10), 200)

    def largest_share(alpha):
        partition = dirichlet(labels, clients=10, alpha=alpha, seed=1, min_size=10)
        counts = [np.bincount(labels[part], minlength=10) for part in partition.indices]
        return np.mean([c.max() / c.sum() for c in counts])

    assert largest_share(0.1) > 0.45
    assert largest_share(1000.0) < 0.13


def test_two_shards_hold_few_classes():
    labels = np.tile(np.arange(10), 60)
    partition = shards(labels, clients=30, per_client=2, seed=0)
    assert max(len(np.unique(labels[part])) for part in partition.indices) <= 2


def test_quantity_skews_sizes_and_keeps_contents_iid():
    partition = quantity(5000, clients=5, alpha=0.5, seed=3)
    assert max(partition.sizes) > 2 * min(partition.sizes)
    labels = np.tile(np.arange(2), 2500)
    big = max(partition.indices, key=len)
    assert abs(labels[big].mean() - 0.5) < 0.05


def test_natural_follows_the_groups():
    partition = natural(np.array([3, 1, 3, 7, 1]))
    assert [part.tolist() for part in partition.indices] == [[1, 4], [0, 2], [3]]


@pytest.mark.parametrize("indices", [([0, 1], [1, 2]), ([0, 1], [3]), ([0], [2, 3]), ([1, 2],), ()])
def test_what_is_no_partition_is_refused(indices):
    with pytest.raises(ConfigurationError, match=r"disjoint|at least one"):
        Partition(indices=tuple(map(np.array, indices)), kind=PartitionKind.IID, seed=0)


def test_impossible_requests_are_refused():
    labels = np.zeros(10, dtype=np.int64)
    for call in (
        lambda: iid(10, clients=11, seed=0),
        lambda: iid(10, clients=0, seed=0),
        lambda: iid(10, clients=2, seed=-1),
        lambda: iid(10, clients=5, seed=0, min_size=3),
        lambda: dirichlet(labels, clients=2, alpha=0.0, seed=0),
        lambda: dirichlet(labels, clients=2, alpha=float("nan"), seed=0),
        lambda: dirichlet(labels, clients=5, alpha=1e-3, seed=0, min_size=2),
        lambda: shards(labels, clients=6, per_client=2, seed=0),
        lambda: shards(labels, clients=2, per_client=0, seed=0),
        lambda: shards(labels, clients=5, per_client=2, seed=0, min_size=3),
        lambda: quantity(10, clients=2, alpha=-1.0, seed=0),
        lambda: natural(labels[:0]),
        lambda: natural(np.array([0, 0, 1]), min_size=2),
    ):
        with pytest.raises(ConfigurationError):
            call()
