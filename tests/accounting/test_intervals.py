"""Intervals: the reference values, exact small cases in between, and what has no interval."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from accounting import (
    Adjacency,
    BoundKind,
    Compose,
    Event,
    FixedSize,
    Gaussian,
    Hierarchical,
    InvalidParameter,
    Laplace,
    Poisson,
    Repeat,
    Shuffled,
    UnsupportedEvent,
    epsilon,
    interval,
)
from accounting.intervals import on_grid, rounds_epsilon

ADD, ZERO, REPLACE = Adjacency.ADD_REMOVE, Adjacency.ZERO_OUT, Adjacency.REPLACE_ONE


def gaussian(z: float) -> Gaussian:
    return Gaussian(noise_multiplier=z)


def shuffled(z: float, batches: int, epochs: int = 1, *, reshuffle: bool = True) -> Shuffled:
    return Shuffled(batches=batches, epochs=epochs, event=gaussian(z), reshuffle=reshuffle)


def clients(p: float, q: float, steps: int, z: float, rounds: int) -> Event:
    inner = Poisson(sample_rate=q, event=gaussian(z)) if q < 1 else gaussian(z)
    return Repeat(event=Hierarchical(p_client=p, steps=steps, event=inner), count=rounds)


def cohort(n: int, m: int, z: float, rounds: int) -> Event:
    event = FixedSize(population=n, cohort=m, event=gaussian(z))
    return Repeat(event=event, count=rounds)


def test_shuffled_batches_cost_what_the_reference_says() -> None:
    one = interval(shuffled(0.4, 10_000), 1e-6, adjacency=ZERO)
    assert one.lower.value >= 14.45
    two = interval(shuffled(1.0, 1000), 1e-5, adjacency=ZERO)
    assert two.lower.value == pytest.approx(2.88, abs=5e-3)
    assert two.upper.value == pytest.approx(4.377, abs=1e-3)
    assert (two.lower.kind, two.upper.kind) == (BoundKind.LOWER, BoundKind.UPPER)
    replaced = interval(shuffled(1.0, 1000), 1e-5, adjacency=REPLACE)
    assert replaced.lower.value == two.lower.value
    assert replaced.upper.value == pytest.approx(9.997, abs=1e-3)


def test_a_persistent_order_repeats_the_same_batch() -> None:
    persistent = interval(shuffled(2.0, 100, 4, reshuffle=False), 1e-5, adjacency=ZERO)
    once = interval(shuffled(1.0, 100), 1e-5, adjacency=ZERO)
    assert persistent.lower.value == pytest.approx(once.lower.value, rel=1e-9)
    assert persistent.upper.value == pytest.approx(once.upper.value, rel=1e-9)
    fresh = interval(shuffled(2.0, 100, 4), 1e-5, adjacency=ZERO)
    assert fresh.lower.value < persistent.lower.value


@pytest.mark.parametrize("value", [0.0, 0.5, 2.0])
def test_the_shuffled_lower_bound_is_not_above_an_exact_case_with_two_batches(value: float) -> None:
    """The unit is in one of two batches, the others at -1: delta by quadrature in the plane."""
    from accounting.intervals import shuffled_delta

    s = 1.0
    x = np.linspace(-10, 12, 1500)
    h = x[1] - x[0]
    here, there, far = (norm.pdf(x, c, s) for c in (2.0, 1.0, 0.0))
    p = (np.outer(here, far) + np.outer(far, here)) / 2
    q = (np.outer(there, far) + np.outer(far, there)) / 2
    exact = float(np.maximum(p - math.exp(value) * q, 0).sum() * h * h)
    assert shuffled_delta(value, s, 2) <= exact * (1 + 1e-6)
    assert shuffled_delta(value, s, 2) >= 0.3 * exact


def test_clients_and_their_records_cost_what_the_reference_says() -> None:
    found = interval(clients(0.1, 0.05, 20, 1.0, 100), 1e-5, adjacency=ADD)
    assert found.lower.value == pytest.approx(1.322, abs=2e-3)
    assert found.lower.value <= 1.332
    assert found.upper.value == pytest.approx(5.27, abs=0.015)
    rdp = epsilon(clients(0.1, 0.05, 20, 1.0, 100), 1e-5, adjacency=ADD, method="rdp")
    assert found.upper.value < rdp.value


@pytest.mark.long
def test_the_large_reference_intervals() -> None:
    found = interval(clients(0.01, 0.1, 10, 1.0, 1000), 1e-6, adjacency=ADD)
    assert 0.605 <= found.lower.value <= 0.665
    assert found.upper.value == pytest.approx(9.18, abs=0.02)
    rounds = interval(cohort(4_000_000, 20_000, 0.8, 2000), 1 / 4e6, adjacency=REPLACE)
    assert 3.50 <= rounds.lower.value <= 3.524
    assert rounds.upper.value == pytest.approx(64.957312, abs=1e-5)


def hockey_stick(p: np.ndarray, q: np.ndarray, delta: float) -> float:
    low, high = 0.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2
        if np.maximum(p - math.exp(middle) * q, 0).sum() > delta:
            low = middle
        else:
            high = middle
    return low


@pytest.mark.parametrize("adjacency", [ZERO, REPLACE])
@pytest.mark.parametrize(("m", "z"), [(100, 0.8), (300, 2.0)])
def test_a_fixed_cohort_brackets_the_case_of_zeros(m: int, z: float, adjacency: Adjacency) -> None:
    found = interval(cohort(1000, m, z, 1), 1e-5, adjacency=adjacency)
    x = np.linspace(-9 * z - 1, 9 * z + 1, 400_001)
    h, g = x[1] - x[0], m / 1000
    other = -1.0 if adjacency is REPLACE else 0.0
    p = ((1 - g) * norm.pdf(x, 0, z) + g * norm.pdf(x, 1, z)) * h
    q = ((1 - g) * norm.pdf(x, 0, z) + g * norm.pdf(x, other, z)) * h
    exact = max(hockey_stick(p, q, 1e-5), hockey_stick(q, p, 1e-5))
    assert found.lower.value <= exact <= found.upper.value
    assert found.lower.value >= 0.99 * exact - 2e-3


@pytest.mark.parametrize(("p", "steps", "rounds"), [(0.3, 1, 1), (0.2, 3, 1), (1.0, 4, 5)])
def test_clients_without_sampled_records_bracket_both_extreme_cases(
    p: float, steps: int, rounds: int
) -> None:
    """All steps are one Gaussian: R = Q is its Poisson sample, R disjoint a coin before it."""
    found = interval(clients(p, 1.0, steps, 3.0, rounds), 1e-4, adjacency=ADD)
    z = 3.0 / math.sqrt(steps)
    if p == 1:
        exact = epsilon(Repeat(event=gaussian(z), count=rounds), 1e-4, adjacency=ADD).value
        assert found.lower.value <= exact <= found.upper.value
        assert found.upper.value - found.lower.value <= 0.02 * exact
        return
    x = np.linspace(-9 * z - 1, 9 * z + 1, 400_001)
    h = x[1] - x[0]
    still, moved = norm.pdf(x, 0, z) * h, norm.pdf(x, 1, z) * h
    mixture = (1 - p) * still + p * moved
    best = max(hockey_stick(mixture, still, 1e-4), hockey_stick(still, mixture, 1e-4))
    worst = hockey_stick(p * moved, p * still, 1e-4)
    assert found.lower.value <= best * (1 + 1e-6)
    assert found.lower.value >= 0.99 * best - 2e-3
    assert found.upper.value >= worst * (1 - 1e-6)
    assert found.upper.value <= 1.01 * worst + 2e-3


# --- brute force over finite mechanisms ---------------------------------------------------------


def one_client_round(
    p: np.ndarray, q: np.ndarray, steps: int, chance: float, absent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both laws of one round, outcome by outcome: all steps, and one outcome that nothing else has.

    ``absent``: the law R of a client that stays out, whatever its other records are.
    """
    taking_part = []
    for law in (p, q):
        whole = np.array([1.0])
        for _ in range(steps):
            whole = np.outer(whole, law).ravel()
        taking_part.append(np.append(whole, 0.0))
    first, second = ((1 - chance) * absent + chance * law for law in taking_part)
    return first, second


def rounds_of(law: np.ndarray, rounds: int) -> np.ndarray:
    whole = np.array([1.0])
    for _ in range(rounds):
        whole = np.outer(whole, law).ravel()
    return whole


@pytest.mark.parametrize("seed", range(12))
def test_clients_brackets_hold_for_finite_mechanisms_and_any_absent_client(seed: int) -> None:
    """Upper: not below any R. Lower: not above R = Q. Every outcome listed; no Gaussian, no FFT."""
    rng = np.random.default_rng(seed)
    outcomes, steps, rounds = int(rng.integers(2, 5)), int(rng.integers(1, 3)), 2
    p, q = rng.dirichlet(np.ones(outcomes), size=2) * 0.9 + 0.1 / outcomes
    chance, delta, h = float(rng.uniform(0.1, 0.9)), 10 ** float(rng.uniform(-4, -1)), 1e-4
    size = outcomes**steps

    def end(*, up: bool) -> float:
        found = []
        for forward, (one, other) in ((True, (p, q)), (False, (q, p))):
            found.append(
                rounds_epsilon(
                    on_grid(np.log(one / other), one, h, up=up),
                    (0.0, 1.001 * h),
                    steps=steps,
                    p=chance,
                    rounds=rounds,
                    delta=delta,
                    h=h,
                    forward=forward,
                    up=up,
                )
            )
        return max(found)

    upper, lower = end(up=True), end(up=False)
    assert lower <= upper

    def exact(absent: np.ndarray) -> float:
        pair = [rounds_of(law, rounds) for law in one_client_round(p, q, steps, chance, absent)]
        return max(hockey_stick(pair[0], pair[1], delta), hockey_stick(pair[1], pair[0], delta))

    disjoint = np.append(np.zeros(size), 1.0)
    same = one_client_round(p, q, steps, 1.0, disjoint)
    absents = [disjoint, *same, *(rng.dirichlet(np.ones(size + 1) * c) for c in (0.1, 1.0, 10.0))]
    absents += [np.eye(size + 1)[int(rng.integers(size))] for _ in range(3)]
    for absent in absents:
        assert exact(absent) <= upper + 1e-9
    # Both ends are the value of one R, and no further away than the grid.
    cells = 2 * rounds * (steps + 1) * h + 1e-6
    assert upper <= exact(disjoint) + cells
    assert exact(same[1]) - 10 * cells <= lower <= exact(same[1]) + 1e-9


def quantised(centre: float, z: float, ends: np.ndarray) -> np.ndarray:
    return np.diff(norm.cdf(np.concatenate([[-np.inf], ends, [np.inf]]), centre, z))


@pytest.mark.parametrize(("chance", "q", "z"), [(0.3, 0.5, 1.0), (0.7, 0.2, 0.6), (0.1, 1.0, 2.0)])
def test_no_rounded_gaussian_beats_the_upper_end_whoever_is_absent(
    chance: float, q: float, z: float
) -> None:
    """Two steps and two rounds of a sampled Gaussian that is rounded to four outcomes."""
    rng = np.random.default_rng(3)
    found = interval(clients(chance, q, 2, z, 2), 1e-3, adjacency=ZERO)
    for ends in (np.array([-1.0, 0.5, 2.0]), np.array([0.5, 1.5, 3.0])):
        still = quantised(0.0, z, ends)
        moved = (1 - q) * still + q * quantised(1.0, z, ends)
        absents = [np.append(np.zeros(16), 1.0), np.append(np.outer(still, still).ravel(), 0.0)]
        absents += list(rng.dirichlet(np.full(17, 0.3), size=4))
        for absent in absents:
            one, other = (
                rounds_of(law, 2) for law in one_client_round(moved, still, 2, chance, absent)
            )
            assert hockey_stick(one, other, 1e-3) <= found.upper.value
            assert hockey_stick(other, one, 1e-3) <= found.upper.value


def test_a_fixed_cohort_of_two_out_of_three_is_bracketed_by_all_its_data_sets() -> None:
    """Every data set with contributions -1, 0, 1 and every replacement, by mixture densities."""
    z, delta = 1.5, 1e-4
    x = np.linspace(-16, 16, 4001)
    h = x[1] - x[0]

    def law(data: tuple[int, ...]) -> np.ndarray:
        pairs = ((0, 1), (0, 2), (1, 2))
        mixture: np.ndarray = sum(norm.pdf(x, data[i] + data[j], z) for i, j in pairs) / 3 * h
        return mixture

    values = (-1, 0, 1)
    worst = {ZERO: 0.0, REPLACE: 0.0}
    for a in values:
        for b in values:
            for old in values:
                for new in values:
                    cost = hockey_stick(law((a, b, old)), law((a, b, new)), delta)
                    worst[REPLACE] = max(worst[REPLACE], cost)
                    if 0 in (old, new):
                        worst[ZERO] = max(worst[ZERO], cost)
    for adjacency, exact in worst.items():
        found = interval(cohort(3, 2, z, 1), delta, adjacency=adjacency)
        assert found.lower.value <= exact * (1 + 1e-6) <= found.upper.value


@pytest.mark.parametrize("batches", [2, 3])
def test_a_shuffle_is_bracketed_by_all_data_sets_with_one_unit_per_batch(batches: int) -> None:
    """The unit zeroed; all others -1, 0 or 1; every order; cells of the batches' releases."""
    z, delta = 1.0, 1e-3
    found = interval(shuffled(z, batches), delta, adjacency=ZERO)
    ends = np.linspace(-4, 5, 23 if batches == 3 else 90)
    cells = {c: quantised(c, z, ends) for c in (-1, 0, 1)}
    worst = 0.0
    for others in itertools.combinations_with_replacement((-1, 0, 1), batches - 1):

        def law(unit: int, others: tuple[int, ...] = others) -> np.ndarray:
            total = np.array(0.0)
            orders = list(itertools.permutations((unit, *others)))
            for order in orders:
                one = cells[order[0]]
                for centre in order[1:]:
                    one = np.multiply.outer(one, cells[centre])
                total = total + one / len(orders)
            return total.ravel()

        for unit in (-1, 1):
            worst = max(
                worst,
                hockey_stick(law(unit), law(0), delta),
                hockey_stick(law(0), law(unit), delta),
            )
    assert worst <= found.upper.value
    # Rounding to cells only hides; what is left is still above the lower end.
    assert found.lower.value <= worst * 1.03


def test_the_upper_end_is_never_below_the_lower_end_over_a_grid() -> None:
    for delta in (1e-8, 1e-3):
        for event, adjacency in (
            (shuffled(0.7, 20, 3), ZERO),
            (clients(0.05, 0.3, 2, 1.5, 10), ZERO),
            (cohort(100, 7, 1.2, 10), REPLACE),
            (gaussian(1.0), ADD),
        ):
            found = interval(event, delta, adjacency=adjacency)
            assert 0 <= found.lower.value <= found.upper.value < math.inf


@pytest.mark.parametrize(
    ("event", "adjacency"),
    [
        (shuffled(1.0, 10), ADD),
        (Repeat(event=shuffled(1.0, 10), count=2), ZERO),
        (Shuffled(batches=3, epochs=1, event=Laplace(b=1), reshuffle=True), ZERO),
        (Compose(events=(shuffled(1.0, 10), gaussian(1.0))), ZERO),
        (Laplace(b=1.0), ADD),
        (FixedSize(population=9, cohort=2, event=Laplace(b=1)), REPLACE),
        (cohort(9, 2, 1.0, 1), ADD),
        (Hierarchical(p_client=0.1, steps=2, event=Laplace(b=1)), ADD),
        (clients(0.1, 0.1, 2, 1.0, 1), REPLACE),
    ],
)
def test_where_no_bounds_are_known_there_is_no_interval(event: Event, adjacency: Adjacency) -> None:
    with pytest.raises(UnsupportedEvent):
        interval(event, 1e-5, adjacency=adjacency)


def test_an_interval_is_no_method_of_epsilon() -> None:
    with pytest.raises(InvalidParameter, match=r"accounting\.interval"):
        epsilon(gaussian(1.0), 1e-5, adjacency=ADD, method="interval")
