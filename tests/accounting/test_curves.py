"""RDP curves against 50-digit arithmetic, closed forms, and the properties they must have."""

from __future__ import annotations

import math
import random

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting import (
    Adjacency,
    Compose,
    Gaussian,
    InvalidParameter,
    NonPrivate,
    Poisson,
    Repeat,
    UnsupportedEvent,
)
from accounting.curves import DEFAULT_ORDERS, Orders, best_order, rdp, rdp_at
from accounting.events import Event

ADD, ZERO, REPLACE = Adjacency.ADD_REMOVE, Adjacency.ZERO_OUT, Adjacency.REPLACE_ONE
GRID = Orders.of(DEFAULT_ORDERS)

noises = st.floats(0.2, 100)
rates = st.floats(1e-8, 0.999)
orders = st.floats(1.01, 1024)


def sampled(q: float, z: float) -> Poisson:
    return Poisson(sample_rate=q, event=Gaussian(noise_multiplier=z))


def exact_at_whole_order(q: float, z: float, a: int) -> mp.mpf:
    """The binomial sum of Mironov, Talwar, Zhang 2019, term by term, 60 digits."""
    with mp.workdps(60):
        q_, s = mp.mpf(q), mp.mpf(z)
        terms = [
            mp.binomial(a, k) * (1 - q_) ** (a - k) * q_**k * mp.expm1(k * (k - 1) / (2 * s * s))
            for k in range(2, a + 1)
        ]
        return mp.log1p(mp.fsum(terms)) / (a - 1)


def exact_at_real_order(q: float, z: float, a: float) -> mp.mpf:
    """The defining expectation by tanh-sinh quadrature on pieces, 40 digits."""
    with mp.workdps(40):
        q_, s, a_ = mp.mpf(q), mp.mpf(z), mp.mpf(a)

        def integrand(w: mp.mpf) -> mp.mpf:
            g = mp.log(1 - q_ + q_ * mp.exp((2 * w - 1) / (2 * s * s)))
            density = mp.exp(-w * w / (2 * s * s)) / (s * mp.sqrt(2 * mp.pi))
            return (mp.expm1(a_ * g) - a_ * mp.expm1(g)) * density

        turn = mp.mpf(1) / 2 + s * s * mp.log((1 - q_) / q_)
        points = {-14 * s, -4 * s, mp.mpf(0), 4 * s, turn, turn - s, turn + s}
        points |= {a_ + k * s for k in (-6, -2, 0, 2, 6, 14)} | {max(turn, a_) + 14 * s}
        inside = sorted(p for p in points if p >= -14 * s)
        return mp.log1p(mp.quad(integrand, inside)) / (a_ - 1)


def off(found: float, exact: mp.mpf) -> float:
    return float(abs(mp.mpf(found) / exact - 1))


@pytest.mark.parametrize("seed", range(40))
def test_whole_orders_agree_with_the_binomial_sum_to_1e_12(seed: int) -> None:
    rng = random.Random(seed)
    q = 10 ** rng.uniform(-8, math.log10(0.999))
    z = 10 ** rng.uniform(math.log10(0.2), 2)
    a = rng.choice([2, 3, 5, 10, 17, 63, 64, 65, 128, 200, 256, 511])
    found = rdp_at(sampled(q, z), float(a), ADD)
    assert off(found, exact_at_whole_order(q, z, a)) < 1e-12, (q, z, a)


@pytest.mark.parametrize(
    ("q", "z"), [(1e-8, 0.2), (1e-8, 100), (0.999, 0.2), (0.999, 100), (0.01, 4), (1e-4, 9.3)]
)
@pytest.mark.parametrize("a", [2, 64, 1024])
def test_the_corners_of_the_box_agree_at_whole_orders(q: float, z: float, a: int) -> None:
    found = rdp_at(sampled(q, z), float(a), ADD)
    exact = min(exact_at_whole_order(q, z, a), mp.mpf(a) / (2 * mp.mpf(z) ** 2))
    assert off(found, exact) < 1e-12


@pytest.mark.parametrize("seed", range(12))
def test_real_orders_agree_with_the_defining_integral_to_1e_9(seed: int) -> None:
    rng = random.Random(1000 + seed)
    q = 10 ** rng.uniform(-8, math.log10(0.999))
    z = 10 ** rng.uniform(math.log10(0.2), 2)
    a = rng.choice([1.01, 1.05, 1.5, 2.5, 7.3, 10.9, 33.3, 200.5])
    assert off(rdp_at(sampled(q, z), a, ADD), exact_at_real_order(q, z, a)) < 1e-9, (q, z, a)


@pytest.mark.parametrize(
    ("q", "z", "a"),
    [
        (1e-8, 20, 1.01),
        (1e-8, 0.2, 1.01),
        (1e-8, 100, 1023.5),
        (0.999, 0.2, 1.01),
        (0.999, 100, 1023.5),
        (0.5, 0.2, 3.7),
    ],
)
def test_the_corners_of_the_box_agree_at_real_orders(q: float, z: float, a: float) -> None:
    exact = min(exact_at_real_order(q, z, a), mp.mpf(a) / (2 * mp.mpf(z) ** 2))
    assert off(rdp_at(sampled(q, z), a, ADD), exact) < 1e-9


@pytest.mark.long
@pytest.mark.parametrize("seed", range(200))
def test_random_points_of_the_box_agree_with_exact_arithmetic(seed: int) -> None:
    rng = random.Random(5000 + seed)
    q = 10 ** rng.uniform(-8, math.log10(0.999))
    z = 10 ** rng.uniform(math.log10(0.2), 2)
    whole, real = rng.randint(2, 1024), rng.uniform(1.01, 1024)
    assert off(rdp_at(sampled(q, z), float(whole), ADD), exact_at_whole_order(q, z, whole)) < 1e-12
    assert off(rdp_at(sampled(q, z), real, ADD), exact_at_real_order(q, z, real)) < 1e-9


# The range of the promise, and then the edges of the wider box of the module.
RATES = (1e-8, 1e-6, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.9, 0.99, 0.999, 1 - 1e-6, 1.0)
NOISES = (0.3, 0.45, 0.7, 1.0, 1.6, 2.7, 5.0, 10.0, 23.0, 50.0)
WHOLE = (2, 3, 4, 6, 9, 17, 33, 63, 128, 255, 512, 1024)
REAL = (1.01, 1.5, 2.5, 7.3, 140.5)  # a quadrature in 40 digits takes seconds
FEW_NOISES = (0.3, 1.0, 5.0, 50.0)


def worst_point(q: float, noises: tuple[float, ...], *, whole: bool) -> tuple[float, float, float]:
    """(largest relative error, z, a) over noises and orders, printed: pytest -rP shows it."""
    found = []
    for z in noises:
        unsampled = 1 / (2 * mp.mpf(z) ** 2)
        for a in WHOLE if whole else REAL:
            exact = a * unsampled
            if q < 1:
                sum_or_integral = exact_at_whole_order if whole else exact_at_real_order
                exact = min(exact, sum_or_integral(q, z, a))  # type: ignore[operator]  # an int or a float, as each needs
            found.append((off(rdp_at(sampled(q, z), float(a), ADD), exact), z, a))
    worst = max(found)
    kind = "whole" if whole else "real"
    print(f"{kind} orders, q={q:g}: worst {worst[0]:.2g} at z={worst[1]:g}, a={worst[2]:g}")
    return worst


@pytest.mark.long
@pytest.mark.parametrize("q", RATES)
def test_the_worst_point_of_a_grid_of_whole_orders_is_within_1e_12(q: float) -> None:
    assert worst_point(q, NOISES, whole=True)[0] < 1e-12


@pytest.mark.long
@pytest.mark.parametrize("q", RATES)
def test_the_worst_point_of_a_grid_of_real_orders_is_within_1e_9(q: float) -> None:
    assert worst_point(q, FEW_NOISES, whole=False)[0] < 1e-9


@pytest.mark.long
@pytest.mark.parametrize("q", RATES)
def test_the_edges_of_the_wider_box_are_as_exact(q: float) -> None:
    assert worst_point(q, (0.2, 100.0), whole=True)[0] < 1e-12
    assert worst_point(q, (0.2, 100.0), whole=False)[0] < 1e-9


@given(noises, orders)
def test_the_gaussian_curve_is_a_over_two_z_squared(z: float, a: float) -> None:
    g = Gaussian(noise_multiplier=z)
    assert rdp_at(g, a, ADD) == rdp_at(g, a, ZERO) == pytest.approx(a / (2 * z * z), rel=1e-14)
    assert rdp_at(g, a, REPLACE) == pytest.approx(4 * a / (2 * z * z), rel=1e-14)


@given(rates, noises, orders)
def test_sampling_never_costs_more_than_no_sampling(q: float, z: float, a: float) -> None:
    unsampled = rdp_at(Gaussian(noise_multiplier=z), a, ADD)
    assert 0 < rdp_at(sampled(q, z), a, ADD) <= unsampled


@given(rates, noises, orders)
def test_under_replace_one_sampling_earns_nothing(q: float, z: float, a: float) -> None:
    g = Gaussian(noise_multiplier=z)
    assert rdp_at(sampled(q, z), a, REPLACE) == rdp_at(g, a, REPLACE)


@given(rates, noises, noises)
def test_more_noise_never_costs_more(q: float, z1: float, z2: float) -> None:
    low, high = sorted((z1, z2))
    more, less = rdp(sampled(q, low), GRID, ADD), rdp(sampled(q, high), GRID, ADD)
    assert np.all(less <= more * (1 + 1e-9))


@given(rates, rates, noises)
def test_a_larger_rate_never_costs_less(q1: float, q2: float, z: float) -> None:
    low, high = sorted((q1, q2))
    less, more = rdp(sampled(low, z), GRID, ADD), rdp(sampled(high, z), GRID, ADD)
    assert np.all(less <= more * (1 + 1e-9))


@given(rates, noises)
def test_the_curve_rises_and_its_product_with_a_minus_one_is_convex(q: float, z: float) -> None:
    curve = rdp(sampled(q, z), GRID, ADD)
    a = GRID.values
    assert np.all(np.diff(curve) >= -1e-9 * curve[1:])
    product = (a - 1) * curve
    slopes = np.diff(np.append(0.0, product)) / np.diff(np.append(1.0, a))
    assert np.all(np.diff(slopes) >= -1e-8 * slopes[1:])


@given(noises, st.sampled_from([1.05, 2.0, 7.3, 64.0, 128.0]))
def test_a_rate_near_one_tends_to_no_sampling(z: float, a: float) -> None:
    near = rdp_at(sampled(1 - 1e-12, z), a, ADD)
    assert near == pytest.approx(rdp_at(Gaussian(noise_multiplier=z), a, ADD), rel=1e-6)
    assert rdp_at(sampled(1.0, z), a, ADD) == rdp_at(Gaussian(noise_multiplier=z), a, ADD)


@given(st.floats(1e-4, 0.2, exclude_max=True), rates, st.floats(1.01, 100))
def test_below_the_box_the_chord_is_an_upper_bound(z: float, q: float, a: float) -> None:
    """Between whole orders by the convexity of (a-1) eps(a); never above no sampling."""
    found = rdp_at(sampled(q, z), a, ADD)
    assert found <= rdp_at(Gaussian(noise_multiplier=z), a, ADD)
    below = rdp_at(sampled(q, z), math.floor(a), ADD) if a >= 2 else 0.0
    assert found >= below * (1 - 1e-9)


@pytest.mark.parametrize(("q", "z", "a"), [(0.01, 0.15, 1.5), (0.3, 0.1, 4.25), (1e-4, 0.19, 2.9)])
def test_below_the_box_the_bound_is_not_below_the_truth(q: float, z: float, a: float) -> None:
    exact = min(exact_at_real_order(q, z, a), mp.mpf(a) / (2 * mp.mpf(z) ** 2))
    assert rdp_at(sampled(q, z), a, ADD) >= float(exact) * (1 - 1e-12)


@given(
    st.floats(5e-324, 1.7e308),
    st.floats(5e-324, 1.0),
    st.sampled_from(list(Adjacency)),
)
def test_no_release_is_free_or_undefined_even_far_outside_the_box(
    z: float, q: float, adjacency: Adjacency
) -> None:
    for event in (Gaussian(noise_multiplier=z), sampled(q, z)):
        curve = rdp(event, GRID, adjacency)
        assert np.all(curve > 0)
        assert not np.any(np.isnan(curve))


def test_a_non_private_release_costs_infinity_in_every_tree() -> None:
    tree = Compose(events=(Gaussian(noise_multiplier=1), Repeat(event=NonPrivate(), count=2)))
    assert np.all(np.isinf(rdp(tree, GRID, ZERO)))


def test_repetition_multiplies_and_composition_adds() -> None:
    p, g = sampled(0.01, 1.0), Gaussian(noise_multiplier=3.0)
    tree = Compose(events=(Repeat(event=p, count=7), g))
    assert np.allclose(rdp(tree, GRID, ADD), 7 * rdp(p, GRID, ADD) + rdp(g, GRID, ADD), rtol=1e-15)


@pytest.mark.parametrize(
    "inner",
    [
        Repeat(event=Poisson(sample_rate=0.5, event=Gaussian(noise_multiplier=1)), count=2),
        Compose(events=(Gaussian(noise_multiplier=1), NonPrivate())),
        NonPrivate(),
    ],
)
def test_sampling_around_what_is_no_single_release_is_refused(inner: Event) -> None:
    event = Poisson(sample_rate=0.5, event=inner)
    for adjacency in Adjacency:
        with pytest.raises(UnsupportedEvent) as caught:
            rdp(Repeat(event=event, count=3), GRID, adjacency)
        assert caught.value.event == event


@pytest.mark.parametrize(
    "values",
    [(), (1.0,), (2.0, 2.0), (3.0, 2.0), (math.nan,), (math.inf,), (True,), ("2",), (70000,)],
)
def test_impossible_orders_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(InvalidParameter):
        Orders.of(values)


@given(rates, noises, st.integers(1, 10_000), st.floats(1e-12, 0.5))
def test_refining_only_lowers_and_names_the_order_that_gives_the_value(
    q: float, z: float, steps: int, delta: float
) -> None:
    event = Repeat(event=sampled(q, z), count=steps)
    value, order, index = best_order(lambda o: rdp(event, o, ADD), delta, grid=GRID)
    on_grid = GRID.to_epsilon(rdp(event, GRID, ADD), delta)
    assert value <= on_grid.min() == on_grid[index]
    at = Orders.of((order,))
    assert at.to_epsilon(rdp(event, at, ADD), delta)[0] == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_cached_curves_cannot_be_written_to() -> None:
    from accounting.curves import leaf_curve

    with pytest.raises(ValueError, match="read-only"):
        leaf_curve(sampled(0.1, 1.0), GRID, ADD)[0] = 0.0
