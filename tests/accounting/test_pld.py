"""Privacy-loss distributions: the reference values, the guard, and what ``auto`` takes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("dp_accounting", reason="dp-accounting (extra pld) is not installed")

from accounting import (
    ZCDP,
    Adjacency,
    Bound,
    BoundKind,
    Compose,
    DiscreteGaussian,
    Event,
    Gaussian,
    Group,
    InvalidParameter,
    Laplace,
    Method,
    MissingExtra,
    NoiseShares,
    Poisson,
    Repeat,
    Skellam,
    UnsupportedEvent,
    calibrate,
    epsilon,
    pld,
)
from accounting.accountant import gaussian_delta
from accounting.pld import pld_epsilon

ADD, ZERO, REPLACE = Adjacency.ADD_REMOVE, Adjacency.ZERO_OUT, Adjacency.REPLACE_ONE
pytestmark = pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")

# Phases (q, z, T), delta, and the epsilon of dp-accounting 0.6.0 at grid width 1e-4.
TABLE = {
    "abadi_mnist": ([(0.01, 4.0, 10000)], 1e-5, 0.946999),
    "opacus_mnist60": ([(256 / 60000, 1.1, 14062)], 1e-5, 2.381686),
    "fl_1e6_1e3": ([(1e-3, 1.0, 2000)], 1e-6**1.1, 0.278994),
    "gboard": ([(20000 / 4e6, 0.8, 2000)], 1 / 4e6, 2.764269),
    "large_q": ([(0.5, 5.0, 500)], 1e-5, 11.643952),
    "full_batch": ([(1.0, 20.0, 1000)], 1e-5, 7.511276),
    "hetero4": (
        [(0.01, 2.0, 1000), (0.02, 1.5, 500), (0.005, 1.0, 5000), (1.0, 30.0, 10)],
        1e-6,
        2.900125,
    ),
}


FAST = ("abadi_mnist", "fl_1e6_1e3", "full_batch")  # the others are for the long run


def sampled(q: float, z: float, steps: int = 1) -> Event:
    return Repeat(event=Poisson(sample_rate=q, event=Gaussian(noise_multiplier=z)), count=steps)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.long) for name in TABLE],
)
def test_the_value_at_width_1e_4_is_that_of_the_reference_table(name: str) -> None:
    phases, delta, expected = TABLE[name]
    event = Compose(events=tuple(sampled(q, z, t) for q, z, t in phases))
    found = pld_epsilon(event, delta, adjacency=ADD, width=1e-4)
    assert found.value == pytest.approx(expected, abs=2e-6)
    best = epsilon(event, delta, adjacency=ADD)
    if name == "full_batch":
        assert best.kind is BoundKind.EXACT
        assert best.value == pytest.approx(7.5112759, abs=1e-7)
        assert best.value <= found.value
    else:
        assert best.method is Method.PLD
        assert best.discretisation_error is not None
        # Both widths are upper bounds; they differ by what the error says, about.
        assert abs(best.value - expected) <= 20 * best.discretisation_error + 2e-4
        upper = epsilon(event, delta, adjacency=ADD, method="rdp")
        assert best.value <= upper.value


@pytest.mark.long
def test_sampling_under_replace_one_is_the_reference_value() -> None:
    rounds = sampled(20000 / 4e6, 0.8, 2000)
    found = pld_epsilon(rounds, 1 / 4e6, adjacency=REPLACE, width=1e-4)
    assert found.value == pytest.approx(3.523962, abs=5e-6)


def test_replace_one_is_twice_the_sensitivity() -> None:
    one = pld_epsilon(Gaussian(noise_multiplier=1), 1e-5, adjacency=REPLACE)
    assert one.value == pytest.approx(9.997, abs=2e-3)


def check_against_the_exact_gaussian(z: float, steps: int, adjacency: Adjacency) -> None:
    event = Repeat(event=Gaussian(noise_multiplier=z), count=steps)
    found = epsilon(event, 1e-6, adjacency=adjacency, method="pld")
    exact = epsilon(event, 1e-6, adjacency=adjacency, method="exact")
    assert found.kind is BoundKind.UPPER
    assert exact.value <= found.value * (1 + 1e-6)
    assert found.value <= exact.value + 5e-3
    scale = 2 if adjacency is REPLACE else 1
    assert gaussian_delta(scale * math.sqrt(steps) / z, found.value) <= 1e-6 * (1 + 1e-6)


@pytest.mark.parametrize("adjacency", Adjacency)
def test_the_value_is_not_below_the_exact_gaussian_and_close_to_it(adjacency: Adjacency) -> None:
    check_against_the_exact_gaussian(3.7, 11, adjacency)


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(st.floats(0.5, 20), st.integers(1, 50), st.sampled_from(list(Adjacency)))
def test_the_value_is_that_close_to_any_exact_gaussian(
    z: float, steps: int, adjacency: Adjacency
) -> None:
    check_against_the_exact_gaussian(z, steps, adjacency)


@pytest.mark.parametrize(("q", "z", "steps"), [(1e-3, 0.9, 100), (0.3, 4.0, 20)])
def test_rdp_is_never_below_it(q: float, z: float, steps: int) -> None:
    check_against_rdp(q, z, steps)


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(st.sampled_from([1e-3, 0.05, 0.4]), st.floats(0.7, 5), st.integers(1, 300))
def test_rdp_is_nowhere_below_it(q: float, z: float, steps: int) -> None:
    check_against_rdp(q, z, steps)


def check_against_rdp(q: float, z: float, steps: int) -> None:
    for event in (
        sampled(q, z, steps),
        Repeat(event=Poisson(sample_rate=q, event=Laplace(b=z)), count=min(steps, 20)),
    ):
        tight = epsilon(event, 1e-5, adjacency=ADD, method="pld")
        loose = epsilon(event, 1e-5, adjacency=ADD, method="rdp")
        assert tight.value <= loose.value * (1 + 1e-6) + 2 * (tight.discretisation or 0)


@pytest.mark.parametrize(("sigma", "rate"), [(0.8, 1.0), (3.0, 1.0), (2.0, 0.1)])
def test_discrete_gaussian_noise_on_one_coordinate_is_close_above_the_exact_sum(
    sigma: float, rate: float
) -> None:
    """Two releases, each outcome and its probability listed: no distribution, no grid."""
    x = np.arange(-60, 61)
    still = np.exp(-(x**2) / (2 * sigma * sigma))
    still /= still.sum()
    moved = (1 - rate) * still + rate * np.roll(still, 1)
    p, q = np.outer(moved, moved), np.outer(still, still)
    event: Event = DiscreteGaussian(sigma=sigma, l2=1.4)
    event = Poisson(sample_rate=rate, event=event) if rate < 1 else event
    found = pld_epsilon(Repeat(event=event, count=2), 1e-4, adjacency=ZERO, width=1e-3)
    at = math.exp(found.value)
    exact = max(np.maximum(p - at * q, 0).sum(), np.maximum(q - at * p, 0).sum())
    assert exact <= 1e-4 * (1 + 1e-9)
    less = math.exp(max(0.0, found.value - 0.01))
    assert max(np.maximum(p - less * q, 0).sum(), np.maximum(q - less * p, 0).sum()) > 1e-4
    assert found.value <= epsilon(Repeat(event=event, count=2), 1e-4, adjacency=ZERO).value + 2e-3


def test_discrete_gaussian_noise_on_several_coordinates_has_no_distribution() -> None:
    """With l2 = sqrt(2) the vector (1, 1) and, with l2 = 2, (2) and (1, 1, 1, 1) are possible."""
    for l2, adjacency in ((math.sqrt(2) + 1e-9, ZERO), (2.0, ADD), (1.0, REPLACE)):
        event = DiscreteGaussian(sigma=3.0, l2=l2)
        with pytest.raises(UnsupportedEvent, match="one coordinate"):
            pld_epsilon(event, 1e-5, adjacency=adjacency)
        assert epsilon(event, 1e-5, adjacency=adjacency).method is Method.RDP
    with pytest.raises(UnsupportedEvent, match="cells"):
        pld_epsilon(DiscreteGaussian(sigma=9e7, l2=1), 1e-5, adjacency=ADD)


def test_of_two_whole_vectors_of_one_norm_neither_has_the_dominating_losses() -> None:
    """Why integer noise on vectors has no distribution: (2) and (1, 1, 1, 1), both of norm 2."""
    x = np.arange(-12, 13)
    weight = np.exp(-(x**2) / 2.0)

    def losses(shift: int) -> tuple[np.ndarray, np.ndarray]:
        mass = np.exp(-((x - shift) ** 2) / 2.0) / weight.sum()
        return shift * (2 * x - shift) / 2.0, mass

    def delta(loss: np.ndarray, mass: np.ndarray, eps: float) -> float:
        return float((mass * np.maximum(-np.expm1(eps - loss), 0.0)).sum())

    ones = losses(1)
    spread = ones
    for _ in range(3):
        spread = (
            np.add.outer(spread[0], ones[0]).ravel(),
            np.multiply.outer(spread[1], ones[1]).ravel(),
        )
    assert delta(*losses(2), 1.0) > delta(*spread, 1.0) * 1.05
    assert delta(*losses(2), 2.0) < delta(*spread, 2.0) * 0.95


def test_laplace_under_replace_one_is_half_the_scale() -> None:
    event = Repeat(event=Laplace(b=2.0), count=3)
    found = pld_epsilon(event, 1e-9, adjacency=REPLACE, width=1e-4)
    assert found.value == pytest.approx(3.0, abs=1e-3)  # 3 * 2/b, the pure cost


def test_a_sampled_group_is_a_mixture_and_costs_more_than_one_unit() -> None:
    def cost(k: int, width: float = 1e-2) -> float:
        event = Group(k=k, event=Poisson(sample_rate=0.05, event=Gaussian(noise_multiplier=1.5)))
        return pld_epsilon(Repeat(event=event, count=20), 1e-5, adjacency=ADD, width=width).value

    one = pld_epsilon(sampled(0.05, 1.5, 20), 1e-5, adjacency=ADD, width=1e-2).value
    assert cost(1) == pytest.approx(one, rel=1e-6)
    two = cost(2)
    assert one < two
    # Everybody at once with the same coin would be dearer still.
    together = pld_epsilon(sampled(0.05, 1.5 / 2, 20), 1e-5, adjacency=ADD, width=1e-2).value
    assert two < together
    event = Group(k=2, event=sampled(0.3, 8.0, 2))
    with pytest.raises(UnsupportedEvent):
        epsilon(event, 1e-3, adjacency=ADD, method="rdp")
    assert pld.pld_supports(event, ADD)
    with pytest.raises(UnsupportedEvent):
        pld_epsilon(event, 1e-5, adjacency=REPLACE)


@pytest.mark.long
def test_auto_takes_the_distribution_of_a_sampled_group_as_there_is_no_curve() -> None:
    event = Group(k=2, event=sampled(0.3, 8.0, 2))
    assert epsilon(event, 1e-3, adjacency=ADD).method is Method.PLD


def test_lost_shares_are_lost_here_too() -> None:
    shares = NoiseShares(event=Gaussian(noise_multiplier=1.0), planned=1000, survivors=700)
    rounds = Repeat(event=Poisson(sample_rate=1e-3, event=shares), count=2000)
    found = pld_epsilon(rounds, 1e-6**1.1, adjacency=ZERO, width=1e-3)
    assert found.value == pytest.approx(0.557, abs=1e-3)
    with pytest.raises(UnsupportedEvent):
        pld_epsilon(rounds, 1e-5, adjacency=ADD)


@pytest.mark.parametrize(
    "event",
    [
        Skellam(mu=10, l2=1, l1=1),
        ZCDP(rho=1, adjacency=ZERO),
        Poisson(sample_rate=0.1, event=ZCDP(rho=1, adjacency=ZERO)),
        Group(k=2000, event=Poisson(sample_rate=0.1, event=Gaussian(noise_multiplier=1))),
    ],
)
def test_events_without_a_right_distribution_are_refused(event: Event) -> None:
    for whole in (event, Compose(events=(Gaussian(noise_multiplier=1), event))):
        with pytest.raises(UnsupportedEvent):
            epsilon(whole, 1e-5, adjacency=ZERO, method="pld")
        if not isinstance(event, Group):
            assert epsilon(whole, 1e-5, adjacency=ZERO).method is Method.RDP


def test_a_grid_that_would_fill_the_memory_is_refused_and_auto_takes_rdp() -> None:
    event = sampled(0.9, 0.001, 3)
    with pytest.raises(UnsupportedEvent, match="cells"):
        epsilon(event, 1e-5, adjacency=ADD, method="pld")
    assert epsilon(event, 1e-5, adjacency=ADD).method is Method.RDP


def test_auto_takes_rdp_where_the_distribution_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    event = sampled(0.1, 1.0, 10)
    upper = epsilon(event, 1e-5, adjacency=ADD, method="rdp")

    def larger(*_args: object, **_more: object) -> Bound:
        return Bound(
            value=upper.value + 1,
            kind=BoundKind.UPPER,
            method=Method.PLD,
            delta=1e-5,
            adjacency=ADD,
        )

    monkeypatch.setattr(pld, "pld_epsilon", larger)
    assert epsilon(event, 1e-5, adjacency=ADD) == upper


def test_without_dp_accounting_auto_is_rdp_and_pld_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pld, "pld_available", lambda: False)
    event = sampled(0.1, 1.0, 10)
    assert epsilon(event, 1e-5, adjacency=ADD).method is Method.RDP
    with pytest.raises(MissingExtra, match=r"securefl\[pld\]"):
        epsilon(event, 1e-5, adjacency=ADD, method="pld")


def test_a_version_that_does_not_double_the_sensitivity_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pld._probe_replace_one.cache_clear()
    monkeypatch.setattr(pld, "_composed_epsilon", lambda *_: 4.377)
    with pytest.raises(UnsupportedEvent, match="installed dp-accounting"):
        pld_epsilon(Gaussian(noise_multiplier=1), 1e-5, adjacency=REPLACE)
    pld._probe_replace_one.cache_clear()


@pytest.mark.parametrize("width", [0.0, -1e-4, math.nan, math.inf, 1.0, 1e-9])
def test_an_impossible_width_is_refused(width: float) -> None:
    with pytest.raises(InvalidParameter, match="width"):
        pld_epsilon(sampled(0.1, 1.0), 1e-5, adjacency=ADD, width=width)


@pytest.mark.long
def test_calibration_by_distribution_needs_less_noise_and_stays_on_the_safe_side() -> None:
    def plan(z: float) -> Event:
        return sampled(0.2, z, 2)

    tight = calibrate(plan, 1.0, 1e-6, adjacency=ADD, method="pld")
    loose = calibrate(plan, 1.0, 1e-6, adjacency=ADD)
    assert tight.value < loose.value
    assert 0.999 <= tight.achieved.value <= 1.0
    assert tight.achieved.method is Method.PLD
    again = pld_epsilon(plan(tight.value), 1e-6, adjacency=ADD)
    assert again.value == tight.achieved.value
