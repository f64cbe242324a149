"""Laws that hold for every event, whatever it is made of.

Where an event needs none of its own tests for that, it stands here: order, repetition, units,
samples of everybody, monotonicity in every field, and upper bounds above lower ones by any method.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import mpmath as mp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from accounting import (
    ZCDP,
    Adjacency,
    ApproxDP,
    BandedMF,
    Compose,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    Event,
    FixedSize,
    Gaussian,
    Group,
    Hierarchical,
    Laplace,
    NoiseShares,
    Poisson,
    PureDP,
    RDPAccountant,
    Repeat,
    Select,
    Shuffled,
    Skellam,
    Tree,
    UnsupportedEvent,
    dump,
    epsilon,
    interval,
    parse,
    rounded_sensitivity,
)
from accounting.closed_forms import share_sum_tau
from accounting.curves import DEFAULT_ORDERS, Orders, rdp, rdp_at

ADD, ZERO, REPLACE = Adjacency.ADD_REMOVE, Adjacency.ZERO_OUT, Adjacency.REPLACE_ONE
GRID = Orders.of(DEFAULT_ORDERS)
FEW = Orders.of([1.05, 1.5, 2.0, 2.7, 4.0, 8.5, 17.0, 33.0, 64.0, 256.0])

pytestmark = pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")

rates = st.floats(1e-4, 0.5)
few = st.integers(1, 5)
gaussians = st.builds(Gaussian, noise_multiplier=st.floats(0.4, 50))
# From share parameters of 2 on; below, a share more may cost more than its noise is worth.
shares_of_noise = st.builds(
    DistributedDiscreteGaussian,
    sigma_share=st.floats(2, 10),
    shares=st.integers(1, 50),
    l2=st.floats(1, 5),
    l1=st.floats(1, 20),
    dim=st.integers(1, 100),
)
skellams = st.builds(Skellam, mu=st.floats(4, 1e5), l2=st.floats(1, 5), l1=st.floats(1, 20))
integer_noise = st.one_of(
    skellams,
    st.builds(DiscreteGaussian, sigma=st.floats(1, 100), l2=st.floats(1, 5)),
    shares_of_noise,
)
noise = st.one_of(integer_noise, gaussians, st.builds(Laplace, b=st.floats(0.2, 100)))
single = st.one_of(
    noise,
    st.builds(PureDP, epsilon=st.floats(1e-3, 5), adjacency=st.just(ZERO)),
    st.builds(ZCDP, rho=st.floats(1e-4, 3), adjacency=st.just(ZERO)),
)
samples = st.builds(Poisson, sample_rate=rates, event=single)
trees = st.builds(
    Tree,
    noise_multiplier=st.floats(1, 50),
    steps=st.integers(100, 1000),
    participations=few,
    min_sep=st.integers(1, 20),
)
banded = st.builds(
    BandedMF,
    noise_multiplier=st.floats(1, 50),
    bands=st.integers(1, 10),
    steps=st.integers(50, 500),
    participations=few,
    sample_rate=st.none() | rates,
)


@st.composite
def left_over(draw: st.DrawFn) -> NoiseShares:
    inner = draw(st.one_of(gaussians, skellams, shares_of_noise))
    free = st.integers(1, 60)
    planned = inner.shares if isinstance(inner, DistributedDiscreteGaussian) else draw(free)
    survivors = draw(free)
    colluding = draw(st.integers(0, survivors - 1))
    if draw(st.booleans()):
        inner = Poisson(sample_rate=draw(rates), event=inner)
    return NoiseShares(event=inner, planned=planned, survivors=survivors, colluding=colluding)


one_event = st.one_of(
    single,
    samples,
    st.builds(ApproxDP, epsilon=st.floats(1e-3, 5), delta=st.just(0.0), adjacency=st.just(ZERO)),
    trees,
    banded,
    left_over(),
    st.builds(Hierarchical, p_client=rates, steps=few, event=single | samples),
    st.builds(Select, eta=st.floats(0, 3), gamma=st.floats(0.01, 1), event=single),
    st.builds(Select, poisson_mean=st.floats(0.1, 20), event=single),
    st.builds(
        FixedSize,
        population=st.integers(1000, 10**6),
        cohort=st.integers(1, 1000),
        event=noise,
    ),
    st.builds(Group, k=few, event=noise),
)
everything = st.one_of(
    one_event,
    st.builds(Repeat, event=one_event, count=few),
    st.builds(Compose, events=st.lists(one_event, min_size=1, max_size=3).map(tuple)),
)


# --- the shape of a curve -----------------------------------------------------------------------


@settings(max_examples=150)
@given(everything)
def test_every_curve_rises_is_positive_and_survives_json(event: Event) -> None:
    curve = rdp(event, GRID, ZERO)
    assert np.all(curve > 0)
    assert not np.any(np.isnan(curve))
    finite = np.isfinite(curve)
    assert np.all(np.diff(curve[finite]) >= -1e-9 * curve[finite][1:])
    assert np.array_equal(rdp(parse(dump(event)), GRID, ZERO), curve)


symmetric = st.one_of(
    gaussians,
    st.builds(Laplace, b=st.floats(0.2, 100)),
    st.builds(DiscreteGaussian, sigma=st.floats(1, 100), l2=st.floats(1, 5)),
)
one_formula = st.one_of(
    symmetric,
    st.builds(PureDP, epsilon=st.floats(1e-3, 5), adjacency=st.just(ZERO)),
    st.builds(ZCDP, rho=st.floats(1e-4, 3), adjacency=st.just(ZERO)),
)


@settings(max_examples=100)
@given(
    st.one_of(
        one_formula,
        trees,
        banded,
        st.builds(Poisson, sample_rate=rates, event=symmetric),
        st.builds(Hierarchical, p_client=rates, steps=few, event=one_formula),
        st.builds(
            Hierarchical,
            p_client=rates,
            steps=few,
            event=st.builds(Poisson, sample_rate=rates, event=gaussians),
        ),
        st.builds(Group, k=few, event=one_formula),
        st.builds(NoiseShares, planned=few, survivors=few, colluding=st.just(0), event=gaussians),
        st.builds(Repeat, event=one_formula, count=few),
        st.builds(Compose, events=st.tuples(one_formula, one_formula)),
    )
)
def test_a_minus_one_times_the_curve_is_convex(event: Event) -> None:
    """Every event whose curve is one formula that holds for all orders.

    A divergence has this property; a bound need not. M3's factor 3 begins at the third term, M4 and
    integer noise are the least of several formulas (below), a selection's bound is made monotone.
    """
    m3 = isinstance(event, Poisson) and not isinstance(event.event, Gaussian)
    fractions = [] if m3 else [1.5, 2.5, 4.5]
    orders = Orders.of(sorted([*fractions, 2, 3, 4, 5, 6, 8, 12, 16, 32, 48, 64]))
    a, curve = orders.values, rdp(event, orders, ZERO)
    if isinstance(event, Poisson) and m3:
        # From some order on no sampling is the better bound: another formula.
        first = np.argmin(np.append(curve < rdp(event.event, orders, ZERO) * (1 - 1e-12), False))
        a, curve = a[:first], curve[:first]
        assume(first > 2)
    slopes = np.diff(np.append(0.0, (a - 1) * curve)) / np.diff(np.append(1.0, a))
    assert np.all(np.diff(slopes) >= -1e-8 * slopes[1:])


@given(skellams, st.integers(2, 300))
def test_skellams_curve_is_the_less_of_two_formulas_that_are_convex_each(
    event: Skellam, a: int
) -> None:
    def formula(order: int) -> list[float]:
        first = order * event.l2**2 / (2 * event.mu)
        bends = (
            ((2 * order - 1) * event.l2**2 + 6 * event.l1) / (4 * event.mu**2),
            3 * event.l1 / (2 * event.mu),
        )
        return [first + bend for bend in bends]

    assert rdp_at(event, float(a), ZERO) == pytest.approx(min(formula(a)), rel=1e-12)
    around = [(n - 1) * np.array(formula(n)) for n in (a, a + 1, a + 2)]
    bend = around[0] - 2 * around[1] + around[2]
    assert np.all(bend >= -1e-9 * around[2])


@given(
    st.builds(
        DistributedDiscreteGaussian,
        sigma_share=st.floats(0.5, 10),
        shares=st.integers(1, 50),
        l2=st.floats(1, 5),
        l1=st.floats(1, 20),
        dim=st.integers(1, 100),
    ),
    st.floats(1.05, 300),
    st.sampled_from([ZERO, REPLACE]),
)
def test_the_curve_of_noise_shares_is_the_least_of_three_formulas(
    event: DistributedDiscreteGaussian, a: float, adjacency: Adjacency
) -> None:
    doubled = 2 if adjacency is REPLACE else 1
    l2, l1, dim = doubled * event.l2, doubled * event.l1, event.dim
    with mp.workdps(30):
        tau = mp.mpf(share_sum_tau(event.sigma_share, event.shares))
        total = mp.sqrt(event.shares) * event.sigma_share
        first = a * l2**2 / (2 * total**2) + tau * dim
        second = mp.mpf(a) / 2 * (l2**2 / total**2 + 2 * l1 * tau / total + tau**2 * dim)
        third = mp.mpf(a) / 2 * (l2 / total + mp.sqrt(dim) * tau) ** 2
    assert rdp_at(event, a, adjacency) == pytest.approx(float(min(first, second, third)), rel=1e-12)


# --- more is dearer -----------------------------------------------------------------------------


def _up(name: str) -> Callable[[Event, float, int], Event]:
    return lambda e, f, _n: replace(e, **{name: getattr(e, name) * f})  # type: ignore[type-var]  # every event is a dataclass


def _down(name: str, least: float = 0.0) -> Callable[[Event, float, int], Event]:
    return lambda e, f, _n: replace(e, **{name: max(least, getattr(e, name) / f)})  # type: ignore[type-var]  # as above


def _rate(name: str) -> Callable[[Event, float, int], Event]:
    def dearer(e: Event, f: float, _n: int) -> Event:
        old = getattr(e, name)
        return e if old is None else replace(e, **{name: min(1.0, old * f)})  # type: ignore[type-var]  # as above

    return dearer


def _count(
    name: str, sign: int = 1, *, limit: Callable[[Event], int] = lambda _e: 1 << 40
) -> Callable[[Event, float, int], Event]:
    def dearer(e: Event, _f: float, n: int) -> Event:
        moved = getattr(e, name) + sign * n
        moved = min(moved, limit(e)) if sign > 0 else max(moved, limit(e))
        return replace(e, **{name: moved})  # type: ignore[type-var]  # as above

    return dearer


def _as_shares(e: Event, _f: float, n: int) -> Event:
    """More planned shares: of discrete Gaussians that is another event inside."""
    inner = e.event.event if isinstance(e.event, Poisson) else e.event  # type: ignore[attr-defined]  # noise shares only
    if isinstance(inner, DistributedDiscreteGaussian):
        return e
    return replace(e, planned=e.planned + n)  # type: ignore[type-var, attr-defined]  # as above


DEARER: dict[type[Event], list[Callable[[Event, float, int], Event]]] = {
    Gaussian: [_down("noise_multiplier")],
    Laplace: [_down("b")],
    PureDP: [_up("epsilon")],
    ApproxDP: [_up("epsilon")],
    ZCDP: [_up("rho")],
    DiscreteGaussian: [_down("sigma"), _up("l2")],
    Skellam: [_down("mu"), _up("l2"), _up("l1")],
    DistributedDiscreteGaussian: [
        _down("sigma_share", 0.5),
        _up("l2"),
        _up("l1"),
        _count("dim"),
    ],
    Poisson: [_rate("sample_rate")],
    FixedSize: [
        _count("cohort", limit=lambda e: e.population),  # type: ignore[attr-defined]  # cohorts only
        _count("population", -1, limit=lambda e: e.cohort),  # type: ignore[attr-defined]  # as above
    ],
    Hierarchical: [_rate("p_client"), _count("steps")],
    Tree: [
        _down("noise_multiplier"),
        _count("steps"),
        _count("participations", limit=lambda e: (e.steps - 1) // e.min_sep + 1),  # type: ignore[attr-defined]  # trees only
        _count("min_sep", -1, limit=lambda _e: 1),
    ],
    BandedMF: [
        _down("noise_multiplier"),
        _count("steps"),
        _count("participations", limit=lambda e: (e.steps - 1) // e.bands + 1),  # type: ignore[attr-defined]  # banded only
        _count("bands", -1, limit=lambda _e: 1),
        _rate("sample_rate"),
    ],
    Select: [
        lambda e, f, _n: e if e.gamma is None else replace(e, gamma=e.gamma / f),  # type: ignore[attr-defined, type-var]  # selections only
        lambda e, f, _n: e if e.eta is None else replace(e, eta=e.eta + f),  # type: ignore[attr-defined, type-var]  # as above
        lambda e, f, _n: (
            e if e.poisson_mean is None else replace(e, poisson_mean=e.poisson_mean * f)  # type: ignore[attr-defined, type-var]  # as above
        ),
    ],
    Group: [_count("k")],
    NoiseShares: [
        _count("survivors", -1, limit=lambda e: e.colluding + 1),  # type: ignore[attr-defined]  # shares only
        _count("colluding", limit=lambda e: e.survivors - 1),  # type: ignore[attr-defined]  # as above
        _as_shares,
    ],
    Repeat: [_count("count")],
    Compose: [
        lambda e, _f, n: Compose(events=(*e.events, PureDP(epsilon=n / 10, adjacency=ZERO))),  # type: ignore[attr-defined]  # compositions only
    ],
}


def test_every_event_with_a_curve_says_what_makes_it_dearer() -> None:
    from accounting.curves import _CURVES

    assert DEARER.keys() >= _CURVES.keys() - {Shuffled} - {
        cls for cls in _CURVES if cls.__name__ == "NonPrivate"
    }


def dearer_ones(event: Event, factor: float, more: int) -> list[Event]:
    """The event with one field changed, its own or one further inside."""
    found = [change(event, factor, more) for change in DEARER[type(event)]]
    for name in ("event", "events"):
        inner = getattr(event, name, None)
        if isinstance(inner, Event):
            found += [
                replace(event, **{name: one})  # type: ignore[type-var]  # as above
                for one in dearer_ones(inner, factor, more)
                if not isinstance(event, NoiseShares | Group) or type(one) is type(inner)
            ]
        elif inner:
            found += [
                replace(event, events=(*inner[:i], one, *inner[i + 1 :]))  # type: ignore[type-var]  # as above
                for i, part in enumerate(inner)
                for one in dearer_ones(part, factor, more)
            ]
    return found


@settings(max_examples=200)
@given(everything, st.floats(1, 4), st.integers(1, 5))
def test_whatever_field_is_made_worse_the_curve_does_not_fall(
    event: Event, factor: float, more: int
) -> None:
    """Less noise, a higher rate, more rounds, larger norms, fewer survivors, ..., one at a time."""
    curve = rdp(event, FEW, ZERO)
    for worse in dearer_ones(event, factor, more):
        assert np.all(rdp(worse, FEW, ZERO) >= curve * (1 - 1e-9)), worse


@settings(max_examples=50)
@given(everything, st.floats(1e-10, 0.1), st.floats(1e-10, 0.1))
def test_a_larger_delta_never_costs_more(event: Event, d1: float, d2: float) -> None:
    low, high = sorted((d1, d2))
    cost = [epsilon(event, d, adjacency=ZERO, method="rdp").value for d in (low, high)]
    assert cost[1] <= cost[0] * (1 + 1e-9)


# --- composition --------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(one_event, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_any_events_does_not_matter(events: list[Event], rng: object) -> None:
    shuffled = list(events)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' own generator
    one, other = (rdp(Compose(events=tuple(e)), FEW, ZERO) for e in (events, shuffled))
    np.testing.assert_allclose(one, other, rtol=1e-13)
    accountants = [RDPAccountant(adjacency=ZERO) for _ in range(2)]
    for accountant, order in zip(accountants, (events, shuffled), strict=True):
        for event in order:
            accountant.compose(event)
    values = [accountant.epsilon(1e-5).value for accountant in accountants]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@settings(max_examples=50)
@given(everything, st.integers(1, 12))
def test_any_event_repeated_costs_what_a_loop_costs(event: Event, n: int) -> None:
    looped = RDPAccountant(adjacency=ZERO, orders=FEW.values.tolist())
    for _ in range(n):
        looped.compose(event)
    np.testing.assert_allclose(looped.curve().values, n * rdp(event, FEW, ZERO), rtol=1e-12)
    np.testing.assert_allclose(
        rdp(Repeat(event=event, count=n), FEW, ZERO), looped.curve().values, rtol=1e-12
    )
    np.testing.assert_allclose(
        rdp(Compose(events=(event,) * n), FEW, ZERO), looped.curve().values, rtol=1e-12
    )


# --- units, and samples of everybody ------------------------------------------------------------


@given(noise, st.integers(1, 50), st.integers(1, 50), st.integers(2, 9))
def test_only_the_ratios_of_counts_and_of_lengths_matter(
    event: Event, few_units: int, more: int, k: int
) -> None:
    population = few_units + more
    one, other = (
        FixedSize(population=m * population, cohort=m * few_units, event=event) for m in (1, k)
    )
    np.testing.assert_allclose(rdp(one, FEW, REPLACE), rdp(other, FEW, REPLACE), rtol=1e-13)
    if isinstance(event, Gaussian | Skellam):
        one, other = (
            NoiseShares(event=event, planned=m * population, survivors=m * few_units)
            for m in (1, k)
        )
        np.testing.assert_allclose(rdp(one, FEW, ZERO), rdp(other, FEW, ZERO), rtol=1e-13)
    # Replacing is a shift twice as long; a group of k is one k times as long.
    if not isinstance(event, Laplace):
        np.testing.assert_allclose(
            rdp(event, FEW, REPLACE), rdp(Group(k=2, event=event), FEW, ZERO), rtol=1e-13
        )


@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e6), st.integers(1, 1 << 20), st.integers(-20, 20))
def test_clip_and_grid_only_count_as_their_product(
    clip: float, scale: float, dim: int, power: int
) -> None:
    factor = 2.0**power
    assert rounded_sensitivity(clip, scale, dim) == rounded_sensitivity(
        clip * factor, scale / factor, dim
    )


@settings(max_examples=60)
@given(everything)
def test_a_sample_of_everybody_is_no_sample(event: Event) -> None:
    curve = rdp(event, FEW, ZERO)
    assert np.array_equal(rdp(Poisson(sample_rate=1, event=event), FEW, ZERO), curve)
    sure = Hierarchical(p_client=1, steps=1, event=event)
    np.testing.assert_allclose(rdp(sure, FEW, ZERO), curve, rtol=1e-14)


@given(noise, st.integers(1, 1 << 53), few)
def test_a_cohort_of_everybody_and_a_chain_of_everybody_are_no_samples(
    event: Event, n: int, bands: int
) -> None:
    full = FixedSize(population=n, cohort=n, event=event)
    np.testing.assert_allclose(rdp(full, FEW, REPLACE), rdp(event, FEW, REPLACE), rtol=1e-14)
    if isinstance(event, Gaussian):
        z = event.noise_multiplier
        chain = BandedMF(
            noise_multiplier=z, bands=bands, steps=17, participations=1, sample_rate=1.0
        )
        rounds = Repeat(event=event, count=-(-17 // bands))
        np.testing.assert_allclose(rdp(chain, FEW, ZERO), rdp(rounds, FEW, ZERO), rtol=1e-13)


# --- upper bounds are above lower bounds, by any method -----------------------------------------


def all_bounds(event: Event, delta: float, adjacency: Adjacency) -> tuple[list[float], list[float]]:
    """(upper, lower) bounds on one event by every method that has one."""
    pytest.importorskip("dp_accounting", reason="dp-accounting (extra pld) is not installed")
    from accounting.pld import pld_epsilon

    upper = [epsilon(event, delta, adjacency=adjacency, method="rdp").value]
    upper.append(epsilon(event, delta, adjacency=adjacency).value)
    upper.append(pld_epsilon(event, delta, adjacency=adjacency, width=1e-2).value)
    lower = []
    try:
        exact = epsilon(event, delta, adjacency=adjacency, method="exact").value
    except UnsupportedEvent:
        pass
    else:
        upper.append(exact)
        lower.append(exact)
    return upper, lower


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([1e-3, 0.03, 0.3, 1.0]),
    st.floats(0.8, 8),
    st.integers(1, 40),
    st.sampled_from([1e-8, 1e-5, 1e-2]),
)
def test_no_upper_bound_is_below_a_lower_bound_of_any_method(
    q: float, z: float, steps: int, delta: float
) -> None:
    """A certain client's records are the sampled Gaussian: our own distribution against theirs."""
    one: Event = Poisson(sample_rate=q, event=Gaussian(noise_multiplier=z))
    upper, lower = all_bounds(Repeat(event=one, count=steps), delta, ADD)
    found = interval(Hierarchical(p_client=1, steps=steps, event=one), delta, adjacency=ADD)
    upper.append(found.upper.value)
    lower.append(found.lower.value)
    assert max(lower) <= min(upper) * (1 + 1e-9) + 1e-12
    # And the two distributions mean the same: theirs is not above ours by more than the grids.
    assert min(upper) - max(lower) <= 0.05 * min(upper) + 2e-2 + (math.inf if q < 0.01 else 0)


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 100), st.data(), st.floats(0.8, 8))
def test_a_fixed_cohorts_lower_end_is_below_the_bounds_of_larger_events(
    population: int, data: st.DataObject, z: float
) -> None:
    """No sampling, and more units in the cohort, are upper bounds for the smaller cohort, too."""
    cohort = data.draw(st.integers(1, population))
    rounds = data.draw(st.integers(1, 10))
    larger = data.draw(st.integers(cohort, population))

    def event(size: int) -> Event:
        inner = Gaussian(noise_multiplier=z)
        return Repeat(
            event=FixedSize(population=population, cohort=size, event=inner), count=rounds
        )

    lower = interval(event(cohort), 1e-5, adjacency=REPLACE).lower.value
    unsampled = Repeat(event=Gaussian(noise_multiplier=z), count=rounds)
    assert lower <= epsilon(event(larger), 1e-5, adjacency=REPLACE, method="rdp").value
    assert lower <= epsilon(unsampled, 1e-5, adjacency=REPLACE).value * (1 + 1e-12)


@pytest.mark.parametrize("z", [0.7, 1.5, 4.0])
def test_one_batch_for_all_is_no_shuffle(z: float) -> None:
    whole = Shuffled(batches=1, epochs=1, event=Gaussian(noise_multiplier=z), reshuffle=True)
    found = interval(whole, 1e-5, adjacency=ZERO)
    exact = epsilon(Gaussian(noise_multiplier=z), 1e-5, adjacency=ZERO).value
    assert found.upper.value == pytest.approx(exact, rel=1e-12)
    assert found.lower.value <= exact
    assert found.lower.value == pytest.approx(exact, rel=1e-4)


@settings(max_examples=60)
@given(single, rates)
def test_sampling_any_release_never_costs_more_than_the_release(event: Event, q: float) -> None:
    assert np.all(rdp(Poisson(sample_rate=q, event=event), GRID, ZERO) <= rdp(event, GRID, ZERO))
