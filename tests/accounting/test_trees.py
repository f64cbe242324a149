"""The squared sensitivity of a tree against every admissible set, and what an epsilon says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import Adjacency, BoundKind, Compose, Gaussian, Method, Repeat, Tree, epsilon, trees
from accounting.accountant import gaussian_epsilon
from accounting.curves import rdp_at
from accounting.trees import tree_squared_sensitivity

ZERO = Adjacency.ZERO_OUT


def worth(leaves: tuple[int, ...], steps: int) -> int:
    """The sum over all complete nodes of the squared number of leaves below, node by node."""
    nodes = (
        range(start, start + size)
        for size in (1 << h for h in range(steps.bit_length()))
        for start in range(0, steps - size + 1, size)
    )
    return sum(sum(leaf in node for leaf in leaves) ** 2 for node in nodes)


def by_enumeration(steps: int) -> dict[tuple[int, int], int]:
    """V for every (participations, min_sep) with these steps: all sets of leaves, one by one."""
    found: dict[tuple[int, int], int] = {}
    for size in range(1, steps + 1):
        for leaves in itertools.combinations(range(steps), size):
            apart = min((b - a for a, b in itertools.pairwise(leaves)), default=steps)
            value = worth(leaves, steps)
            for min_sep in range(1, apart + 1):
                for k in range(size, (steps - 1) // min_sep + 2):
                    found[k, min_sep] = max(found.get((k, min_sep), 0), value)
    return found


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing remembered from other limits, before and after."""
    tree_squared_sensitivity.cache_clear()
    yield
    tree_squared_sensitivity.cache_clear()


def search(steps: int, participations: int, min_sep: int, *, known: int = 0) -> int:
    """The exact search alone; with nothing known beforehand nothing is left out of it."""
    found = trees._Search(
        steps=steps, participations=participations, min_sep=min_sep, known=known
    ).improve(None)
    return int(found)


@pytest.mark.parametrize("steps", [*range(1, 15), pytest.param(17, marks=pytest.mark.long)])
def test_v_is_the_largest_over_all_admissible_sets(steps: int) -> None:
    for (participations, min_sep), exact in by_enumeration(steps).items():
        found = tree_squared_sensitivity(steps, participations, min_sep)
        assert found.exact
        assert found.squared == exact, (participations, min_sep)
        assert search(steps, participations, min_sep) == exact, (participations, min_sep)


def far_apart_by_enumeration(steps: int, min_sep: int) -> list[int]:
    """V for 1, 2, ... participations at least this far apart: few enough sets to see all."""
    best = [0] * ((steps - 1) // min_sep + 2)
    held = [[0] * (steps >> height) for height in range(steps.bit_length())]

    def add(start: int, size: int, value: int) -> None:
        best[size] = max(best[size], value)
        for leaf in range(start, steps):
            nodes = [(row, leaf >> height) for height, row in enumerate(held)]
            nodes = [(row, node) for row, node in nodes if node < len(row)]
            more = sum(2 * row[node] + 1 for row, node in nodes)
            for row, node in nodes:
                row[node] += 1
            add(leaf + min_sep, size + 1, value + more)
            for row, node in nodes:
                row[node] -= 1

    add(0, 0, 0)
    return list(itertools.accumulate(best, max))[1:]


@pytest.mark.parametrize(
    ("steps", "min_sep"), [(24, 3), (31, 5), (32, 5), (32, 6), (40, 7), (47, 9), (64, 13), (96, 25)]
)
def test_v_of_distant_participations_is_the_largest_over_all_sets(steps: int, min_sep: int) -> None:
    for most, exact in enumerate(far_apart_by_enumeration(steps, min_sep), start=1):
        assert search(steps, most, min_sep) == exact
        assert tree_squared_sensitivity(steps, most, min_sep).squared == exact


def test_the_smallest_known_trees_in_which_the_free_leaves_of_either_side_decide() -> None:
    """Found by breaking the recursion; the first value also by enumeration of all sets, once."""
    assert search(55, 9, 6) == 98
    assert search(147, 11, 13) == 237


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 600), st.data())
def test_what_the_search_leaves_out_is_never_the_best(steps: int, data: st.DataObject) -> None:
    min_sep = data.draw(st.integers(max(2, steps // 20), steps // 4))
    most = data.draw(st.integers(2, (steps - 1) // min_sep + 1))
    exact = search(steps, most, min_sep)
    assert tree_squared_sensitivity(steps, most, min_sep).squared == exact
    for known in (exact - 1, exact):
        assert search(steps, most, min_sep, known=known) == exact
    low = trees._densest_packing(steps, most, min_sep)
    assert low <= exact <= sum(trees._by_height(steps, most, min_sep))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_admissible_set_of_a_large_tree_is_worth_more(data: st.DataObject) -> None:
    steps = data.draw(st.integers(20, 5000))
    min_sep = data.draw(st.integers(max(1, steps // 40), steps))
    found = tree_squared_sensitivity(steps, (steps - 1) // min_sep + 1, min_sep)
    leaves, at = [], data.draw(st.integers(0, steps - 1))
    while at < steps:
        leaves.append(at)
        at += min_sep + data.draw(st.sampled_from([0, 0, 0, 1, min_sep // 2, min_sep]))
    # Node by node would be slow here: by the height at which two leaves still meet.
    value = sum(
        sum(1 for h in range(steps.bit_length()) if a >> h == b >> h and a >> h < steps >> h)
        for a in leaves
        for b in leaves
    )
    assert value <= found.squared


@pytest.mark.parametrize(
    ("steps", "participations", "min_sep", "squared"),
    [(2000, 20, 100, 425), (10_000, 50, 199, 3940), (100_000, 20, 4000, 851)],
)
def test_v_of_large_trees_is_below_the_bound_height_by_height(
    steps: int, participations: int, min_sep: int, squared: int
) -> None:
    found = tree_squared_sensitivity(steps, participations, min_sep)
    assert found.exact
    assert found.squared == squared < sum(trees._by_height(steps, participations, min_sep))


def test_v_rises_with_participations_and_falls_with_their_distance() -> None:
    for steps in (37, 64, 100):
        rows = [
            [tree_squared_sensitivity(steps, k, m).squared for k in range(1, 5)]
            for m in range(1, steps // 4)
        ]
        assert all(a < b for row in rows for a, b in itertools.pairwise(row))
        assert all(a >= b for rows in itertools.pairwise(rows) for a, b in zip(*rows, strict=True))


@pytest.mark.usefixtures("fresh")
def test_where_the_search_is_given_up_the_bound_says_that_it_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    event = Tree(noise_multiplier=30.0, steps=2000, participations=20, min_sep=100)
    exact = epsilon(event, 1e-5, adjacency=ZERO)
    assert (exact.kind, exact.method) == (BoundKind.EXACT, Method.EXACT)
    tree_squared_sensitivity.cache_clear()
    monkeypatch.setattr(trees, "MOST_WORK", 100)
    found = tree_squared_sensitivity(2000, 20, 100)
    assert not found.exact
    assert found.squared > 425
    upper = epsilon(event, 1e-5, adjacency=ZERO)
    assert (upper.kind, upper.method) == (BoundKind.UPPER, Method.EXACT)
    assert upper.value > exact.value
    both = epsilon(Compose(events=(Gaussian(noise_multiplier=9), event)), 1e-5, adjacency=ZERO)
    assert both.kind is BoundKind.UPPER


def test_counts_beyond_any_search_end_at_once_with_a_bound() -> None:
    for most, apart in ((1 << 53, 1), (1 << 30, 5), (50_000, 3)):
        found = tree_squared_sensitivity(1 << 53, most, apart)
        assert found.squared >= most
    # Neighbouring steps in one complete tree: the packing from the left meets the bound.
    everywhere = tree_squared_sensitivity(1 << 12, 1 << 12, 1)
    assert everywhere.exact
    assert everywhere.squared == sum((1 << 12 - h) * (1 << h) ** 2 for h in range(13))


def test_an_epsilon_of_a_tree_is_that_of_one_gaussian() -> None:
    event = Tree(noise_multiplier=10.0, steps=1000, participations=3, min_sep=200)
    v = tree_squared_sensitivity(1000, 3, 200).squared
    found = epsilon(Repeat(event=event, count=2), 1e-6, adjacency=ZERO)
    assert found.value == pytest.approx(gaussian_epsilon(math.sqrt(2 * v) / 10, 1e-6), rel=1e-12)
    assert found.value <= epsilon(event, 1e-6, adjacency=ZERO, method="rdp").value * 2


def test_a_unit_in_a_tree_once_costs_its_height() -> None:
    for steps in (1, 2, 3, 7, 8, 1000):
        event = Tree(noise_multiplier=2.0, steps=steps, participations=1, min_sep=1)
        height = math.ceil(math.log2(steps + 1))
        assert rdp_at(event, 5.0, ZERO) == pytest.approx(5 * height / 8)
    everywhere = Tree(noise_multiplier=1, steps=4, participations=4, min_sep=1)
    assert rdp_at(everywhere, 2.0, ZERO) == 4 * 1 + 2 * 4 + 16
