"""The accountant: composition, conversion, the exact Gaussian, and what is refused."""

from __future__ import annotations

import itertools
import math
import warnings

import mpmath as mp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting import (
    Adjacency,
    AdjacencyMismatch,
    BoundKind,
    Compose,
    Event,
    Gaussian,
    Group,
    InvalidEvent,
    InvalidParameter,
    Method,
    NoiseShares,
    NonPrivate,
    OrderAtEdgeWarning,
    Poisson,
    RDPAccountant,
    Repeat,
    UnsupportedEvent,
    epsilon,
)
from accounting.accountant import gaussian_delta, gaussian_epsilon

ADD, REPLACE = Adjacency.ADD_REMOVE, Adjacency.REPLACE_ONE

leaf = st.one_of(
    st.builds(Gaussian, noise_multiplier=st.floats(0.5, 50)),
    st.builds(
        Poisson,
        sample_rate=st.sampled_from([0.001, 0.01, 0.2, 1.0]),
        event=st.builds(Gaussian, noise_multiplier=st.sampled_from([0.7, 1.0, 3.0])),
    ),
)
deltas = st.floats(1e-12, 0.1)

pytestmark = pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")


def of(*events: Event, adjacency: Adjacency = ADD) -> RDPAccountant:
    accountant = RDPAccountant(adjacency=adjacency)
    for event in events:
        accountant.compose(event)
    return accountant


def test_an_accountant_without_releases_is_at_zero() -> None:
    empty = RDPAccountant(adjacency=ADD)
    assert empty.epsilon(1e-5).value == 0
    assert empty.delta(0.0).delta == 0
    assert set(empty.curve().values) == {0.0}


@given(st.lists(leaf, min_size=2, max_size=4), deltas)
def test_the_order_of_composition_does_not_matter(events: list[Event], delta: float) -> None:
    values = [of(*order).epsilon(delta).value for order in itertools.permutations(events)]
    assert max(values) == pytest.approx(min(values), rel=1e-12, abs=1e-14)


@given(leaf, st.integers(1, 30), deltas)
def test_repeat_compose_n_and_a_loop_cost_the_same(event: Event, n: int, delta: float) -> None:
    looped = of(*[event] * n).epsilon(delta).value
    counted = RDPAccountant(adjacency=ADD)
    counted.compose(event, n)
    asked_in_between = RDPAccountant(adjacency=ADD)
    for _ in range(n):
        asked_in_between.compose(event)
        asked_in_between.epsilon(delta)
    for other in (
        of(Repeat(event=event, count=n)),
        of(Compose(events=(event,) * n)),
        counted,
        asked_in_between,
    ):
        assert other.epsilon(delta).value == pytest.approx(looped, rel=1e-11, abs=1e-13)


@given(st.lists(leaf, min_size=1, max_size=3), st.lists(leaf, max_size=3), deltas)
def test_the_sum_of_two_accountants_is_the_accountant_of_both(
    left: list[Event], right: list[Event], delta: float
) -> None:
    a, b = of(*left), of(*right)
    a.epsilon(delta), b.epsilon(delta)
    before = a.epsilon(delta)
    both = of(*left, *right).epsilon(delta).value
    assert (a + b).epsilon(delta).value == pytest.approx(both, rel=1e-12, abs=1e-14)
    assert a.epsilon_if(right, delta).value == pytest.approx(both, rel=1e-12, abs=1e-14)
    assert a.epsilon(delta) == before


@given(leaf, st.integers(1, 500), st.integers(1, 500), deltas)
def test_epsilon_rises_with_steps(event: Event, n: int, more: int, delta: float) -> None:
    few, many = RDPAccountant(adjacency=ADD), RDPAccountant(adjacency=ADD)
    few.compose(event, n)
    many.compose(event, n + more)
    assert few.epsilon(delta).value <= many.epsilon(delta).value


@given(leaf, st.integers(1, 500), deltas, deltas)
def test_epsilon_falls_with_delta(event: Event, n: int, d1: float, d2: float) -> None:
    accountant = RDPAccountant(adjacency=ADD)
    accountant.compose(event, n)
    low, high = sorted((d1, d2))
    assert accountant.epsilon(high).value <= accountant.epsilon(low).value * (1 + 1e-9)


@given(leaf, st.integers(1, 500), st.floats(1e-10, 0.1))
def test_delta_inverts_epsilon(event: Event, n: int, delta: float) -> None:
    accountant = RDPAccountant(adjacency=ADD, orders=[1 + k / 7 for k in range(1, 300)])
    accountant.compose(event, n)
    found = accountant.epsilon(delta)
    back = accountant.delta(found.value)
    assert back.delta <= delta * (1 + 1e-6)
    assert back.value == found.value
    if found.value > 0:
        assert back.delta == pytest.approx(delta, rel=1e-6)


@given(leaf, st.integers(1, 100), deltas)
def test_the_conversion_is_a_bound_at_every_single_order(
    event: Event, n: int, delta: float
) -> None:
    """Each order alone is the formula of Prop. 12; the answer is never above any of them."""
    accountant = RDPAccountant(adjacency=ADD)
    accountant.compose(event, n)
    best = accountant.epsilon(delta).value
    curve = accountant.curve()
    for a, rdp in zip(curve.orders, curve.values, strict=True):
        with mp.workdps(30):
            eps = rdp + mp.log(1 - 1 / mp.mpf(a)) - (mp.log(delta) + mp.log(a)) / (mp.mpf(a) - 1)
        assert best <= max(0.0, float(eps)) * (1 + 1e-12) + 1e-15
        assert accountant.epsilon_at(a, delta).value == pytest.approx(
            max(0.0, float(eps)), rel=1e-9, abs=1e-12
        )


def test_given_orders_are_used_exactly_and_never_refined() -> None:
    event = Repeat(event=Poisson(sample_rate=0.01, event=Gaussian(noise_multiplier=4)), count=10000)
    grid = RDPAccountant(adjacency=ADD, orders=[16.0, 17.0, 18.0])
    grid.compose(event)
    bound = grid.epsilon(1e-5)
    assert bound.order == 17.0
    assert bound.value == pytest.approx(1.035490, abs=1e-6)
    assert of(event).epsilon(1e-5).value < bound.value


def test_the_best_order_at_the_edge_of_the_grid_warns() -> None:
    accountant = RDPAccountant(adjacency=ADD, orders=[2.0, 3.0, 4.0])
    accountant.compose(Gaussian(noise_multiplier=100.0))
    with warnings.catch_warnings(), pytest.raises(OrderAtEdgeWarning, match="edge"):
        warnings.simplefilter("error")
        accountant.epsilon(1e-5)


def test_a_delta_above_the_total_variation_gives_epsilon_zero() -> None:
    accountant = of(Gaussian(noise_multiplier=100.0))
    kl = accountant.curve().values[0]
    tv = math.sqrt(1 - math.exp(-kl))
    assert accountant.epsilon(tv * 1.001).value == 0
    assert accountant.delta(0.0).delta <= tv * (1 + 1e-9)


@pytest.mark.parametrize(
    "delta", [0, 1, -1e-5, 1.5, 10**400, -(10**400), math.nan, math.inf, True, "1e-5", None, 1j]
)
def test_a_delta_that_is_no_probability_strictly_inside_is_refused(delta: float) -> None:
    event = Gaussian(noise_multiplier=1)
    for call in (
        of(event).epsilon,
        lambda d: epsilon(event, d, adjacency=ADD),
        lambda d: of(event).epsilon_if([event], d),
        lambda d: of(event).epsilon_at(2.0, d),
    ):
        with pytest.raises(InvalidParameter, match="delta"):
            call(delta)


@pytest.mark.parametrize("value", [-1e-9, 10**400, math.nan, math.inf, True, "1", None])
def test_an_impossible_epsilon_is_refused(value: float) -> None:
    with pytest.raises(InvalidParameter, match="epsilon"):
        of(Gaussian(noise_multiplier=1)).delta(value)


@pytest.mark.parametrize("n", [0, -1, 1.0, True, None])
def test_an_impossible_number_of_runs_is_refused(n: int) -> None:
    with pytest.raises(InvalidParameter):
        RDPAccountant(adjacency=ADD).compose(Gaussian(noise_multiplier=1), n)


def test_what_has_no_proved_cost_is_refused_and_nothing_is_added() -> None:
    accountant = of(Gaussian(noise_multiplier=1))
    before = accountant.epsilon(1e-5)
    bad = Poisson(sample_rate=0.5, event=NonPrivate())
    with pytest.raises(UnsupportedEvent):
        accountant.compose(Compose(events=(Gaussian(noise_multiplier=2), bad)))
    assert accountant.epsilon(1e-5) == before
    assert accountant.events == ((Gaussian(noise_multiplier=1), 1),)
    with pytest.raises(InvalidEvent):
        accountant.compose("gaussian")  # type: ignore[arg-type]  # that is the test


def test_a_non_private_release_makes_epsilon_infinite_without_a_warning() -> None:
    bound = of(Gaussian(noise_multiplier=1), NonPrivate()).epsilon(1e-5)
    assert math.isinf(bound.value)
    assert bound.order is None
    assert of(NonPrivate()).delta(10.0).delta == 1.0
    assert math.isinf(epsilon(NonPrivate(), 1e-5, adjacency=ADD).value)


def test_histories_under_different_adjacencies_are_never_added() -> None:
    with pytest.raises(AdjacencyMismatch):
        of(Gaussian(noise_multiplier=1)) + of(Gaussian(noise_multiplier=1), adjacency=REPLACE)
    with pytest.raises(InvalidParameter):
        RDPAccountant(adjacency=ADD) + RDPAccountant(adjacency=ADD, orders=[2.0])
    with pytest.raises(TypeError):
        RDPAccountant()  # type: ignore[call-arg]  # no default adjacency


# --- the exact Gaussian -------------------------------------------------------------------------


def exact_delta(mu: float, eps: float) -> mp.mpf:
    with mp.workdps(60):
        m, e = mp.mpf(mu), mp.mpf(eps)
        return mp.ncdf(m / 2 - e / m) - mp.exp(e) * mp.ncdf(-m / 2 - e / m)


@given(st.floats(0.01, 30), st.floats(1e-12, 0.5))
def test_the_exact_epsilon_solves_balle_and_wang(mu: float, delta: float) -> None:
    eps = gaussian_epsilon(mu, delta)
    assert gaussian_delta(mu, eps) <= delta  # rounded to the safe side
    at = float(exact_delta(mu, eps))
    assert at <= delta * (1 + 1e-9)
    if eps > 0:
        assert at == pytest.approx(delta, rel=1e-7)
        assert gaussian_delta(mu, eps) == pytest.approx(at, rel=1e-9)


@given(st.floats(-14, 3).map(lambda x: 10**x), st.floats(0, 1), st.floats(-200, -0.3))
def test_the_exact_gaussian_keeps_its_digits_however_small_or_large_mu_is(
    mu: float, place: float, log_delta: float
) -> None:
    x = -mu / 2 + place * (mu / 2 + 30)
    value = (x + mu / 2) * mu
    exact = exact_delta(mu, value)
    if exact > 1e-290:
        assert abs(gaussian_delta(mu, value) / exact - 1) < 1e-11
    for delta in (10**log_delta, min(0.5, mu * 10 ** (log_delta / 100))):
        found = gaussian_epsilon(mu, delta)
        assert exact_delta(mu, found) <= delta
        if found > 0:
            assert exact_delta(mu, found * (1 - 1e-9)) > delta


@pytest.mark.parametrize("delta", [5e-324, 1e-300, 1e-5, 1 - 2**-53])
def test_the_exact_gaussian_ends_and_is_no_nan_at_the_ends_of_the_floats(delta: float) -> None:
    for mu in (5e-324, 1e-310, 1e-160, 1e-10, 1e3, 1e100, 1e155, 1e308, math.inf):
        assert gaussian_epsilon(mu, delta) >= 0
    # An absurdly large noise is not free: at this delta its epsilon is above 0.
    far = epsilon(Gaussian(noise_multiplier=1e300), 5e-324, adjacency=ADD)
    assert far.value > 0


@given(st.lists(st.floats(0.3, 50), min_size=1, max_size=5), deltas, st.sampled_from(Adjacency))
def test_rdp_is_never_below_the_exact_gaussian(
    noises: list[float], delta: float, adjacency: Adjacency
) -> None:
    event = Compose(events=tuple(Gaussian(noise_multiplier=z) for z in noises))
    exact = epsilon(event, delta, adjacency=adjacency)
    upper = epsilon(event, delta, adjacency=adjacency, method="rdp")
    assert exact.kind is BoundKind.EXACT
    assert upper.kind is BoundKind.UPPER
    assert exact.value <= upper.value * (1 + 1e-9) + 1e-12


def test_known_exact_values() -> None:
    one = Gaussian(noise_multiplier=1)
    assert epsilon(one, 1e-5, adjacency=ADD).value == pytest.approx(4.377, abs=5e-4)
    assert epsilon(one, 1e-5, adjacency=REPLACE).value == pytest.approx(9.997, abs=5e-4)
    full = Repeat(event=Poisson(sample_rate=1, event=Gaussian(noise_multiplier=20)), count=1000)
    bound = epsilon(full, 1e-5, adjacency=ADD)
    assert bound.method is Method.EXACT
    assert bound.value == pytest.approx(7.5112759, abs=1e-7)


def test_exact_is_refused_where_it_is_not_known_and_auto_falls_back() -> None:
    sampled = Poisson(sample_rate=0.1, event=Gaussian(noise_multiplier=1))
    with pytest.raises(UnsupportedEvent):
        epsilon(sampled, 1e-5, adjacency=ADD, method="exact")
    assert epsilon(sampled, 1e-5, adjacency=ADD).method in (Method.RDP, Method.PLD)
    shares = NoiseShares(event=Gaussian(noise_multiplier=2), planned=4, survivors=1)
    exact = epsilon(shares, 1e-5, adjacency=Adjacency.ZERO_OUT)
    group = epsilon(Group(k=2, event=Gaussian(noise_multiplier=2)), 1e-5, adjacency=ADD)
    assert exact.value == group.value == pytest.approx(4.377, abs=5e-4)
    with pytest.raises(InvalidParameter):
        epsilon(sampled, 1e-5, adjacency=ADD, method="moments")
