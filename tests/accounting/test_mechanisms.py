"""Every event beyond the Gaussian against exact one-dimensional divergences and brute force.

The oracles are sums over the whole numbers, quadratures and enumerations; they share no code with
the package. A truncated sum is below the true divergence, so "not below" stays a fair test.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ive
from scipy.stats import norm

from accounting import (
    ZCDP,
    Adjacency,
    AdjacencyMismatch,
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
    InvalidParameter,
    Laplace,
    NoiseShares,
    NonPrivate,
    Poisson,
    PureDP,
    RDPAccountant,
    Repeat,
    Select,
    Shuffled,
    Skellam,
    Tree,
    UnsupportedEvent,
    calibrate,
    epsilon,
    rounded_sensitivity,
)
from accounting.closed_forms import share_sum_tau
from accounting.curves import DEFAULT_ORDERS, Orders, poisson_rdp, rdp, rdp_at
from accounting.derived import fixed_size_bound

ADD, ZERO, REPLACE = Adjacency.ADD_REMOVE, Adjacency.ZERO_OUT, Adjacency.REPLACE_ONE
GRID = Orders.of(DEFAULT_ORDERS)
G = Gaussian(noise_multiplier=1.0)
Pmf = np.ndarray

pytestmark = pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")


def divergence(p: Pmf, q: Pmf, a: float) -> float:
    """Renyi divergence of order a of two mass functions, in log space."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = a * np.log(p) + (1 - a) * np.log(q)
    terms = terms[(p > 1e-300) & (q > 1e-300)]
    top = terms.max()
    return float((top + math.log(np.exp(terms - top).sum())) / (a - 1))


def skellam_pmf(mu: float, reach: int) -> Pmf:
    return np.asarray(ive(np.abs(np.arange(-reach, reach + 1)), mu))


def discrete_gaussian_pmf(sigma: float, reach: int) -> Pmf:
    x = np.arange(-reach, reach + 1)
    weight = np.exp(-(x**2) / (2 * sigma * sigma))
    return weight / weight.sum()


def shares_pmf(sigma: float, shares: int, reach: int) -> Pmf:
    one = discrete_gaussian_pmf(sigma, 45 * math.ceil(sigma) + 2)
    total = np.array([1.0])
    for _ in range(shares):
        total = np.convolve(total, one)
    middle = len(total) // 2
    reach = min(reach, middle)
    return total[middle - reach : middle + reach + 1]


def shifted(noise: Pmf, by: int) -> tuple[Pmf, Pmf]:
    pad = np.zeros(by)
    return np.concatenate([pad, noise]), np.concatenate([noise, pad])


# --- integer noise ------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [2.0, 5.0, 20.0, 100.0])
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_skellam_is_not_below_the_exact_divergence(mu: float, shift: int) -> None:
    p, q = shifted(skellam_pmf(mu, 400), shift)
    event = Skellam(mu=mu, l2=shift, l1=shift)
    for a in (1.3, 2.0, 2.5, 3.0, 8.0, 17.5, 32.0):
        exact, found = divergence(p, q, a), rdp_at(event, a, ZERO)
        assert found >= exact
        if a in (2.0, 3.0, 8.0) and mu == 100:
            assert found <= exact * 1.5  # and not far above
        half = Skellam(mu=mu, l2=shift / 2, l1=shift / 2)
        assert rdp_at(half, a, REPLACE) == found  # a shift from -half to half


@pytest.mark.parametrize(
    ("mu", "l2", "l1", "a"), [(100, 3, 5, 4), (2, 1, 1, 2), (1e4, 90, 800, 16), (5, 3, 1, 32)]
)
def test_skellam_is_the_published_bound(mu: float, l2: float, l1: float, a: int) -> None:
    """In one dimension the exact divergence is below its first term; in more it need not be."""
    bend = min(((2 * a - 1) * l2**2 + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
    expected = a * l2**2 / (2 * mu) + bend
    assert rdp_at(Skellam(mu=mu, l2=l2, l1=l1), float(a), ZERO) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("mu", [2.0, 20.0, 100.0])
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("q", [0.001, 0.03, 0.5])
def test_sampled_skellam_is_not_below_either_direction_without_the_factor_three(
    mu: float, shift: int, q: float
) -> None:
    """And it is below the bound with the factor: the symmetric form is the one in use."""
    event = Poisson(sample_rate=q, event=Skellam(mu=mu, l2=shift, l1=shift))
    moved, still = shifted(skellam_pmf(mu, 400), shift)
    mixture = (1 - q) * still + q * moved
    for a in (1.4, 2.0, 3.0, 5.5, 8.0, 32.0):
        adding, removing = divergence(mixture, still, a), divergence(still, mixture, a)
        found = rdp_at(event, a, ZERO)
        assert removing <= adding * (1 + 1e-6) + 1e-13
        assert found >= adding * (1 - 1e-9) - 1e-13
        if a == round(a) and a > 2:
            unsampled = rdp_at(event.event, a, ZERO)
            printed = generic_m3(q, event.event, int(a), factor=1)
            assert found == pytest.approx(min(printed, unsampled), rel=1e-9)
            assert found == unsampled or found < generic_m3(q, event.event, int(a))


@pytest.mark.parametrize("shift", [(1, 1), (2, 1), (0, 3)])
@pytest.mark.parametrize("q", [0.01, 0.3])
@pytest.mark.parametrize("which", ["skellam", "discrete", "shares"])
def test_sampled_integer_noise_on_two_coordinates_is_not_below_either_direction(
    which: str, q: float, shift: tuple[int, int]
) -> None:
    """All pairs of whole numbers listed; no factor three; also with shares lost on the way."""
    l2, l1 = math.hypot(*shift), float(sum(shift))
    shares = DistributedDiscreteGaussian(sigma_share=0.8, shares=6, l2=l2, l1=l1, dim=2)
    cases = {
        "skellam": (Skellam(mu=12, l2=l2, l1=l1), skellam_pmf(12, 60)),
        "discrete": (DiscreteGaussian(sigma=1.5, l2=l2), discrete_gaussian_pmf(1.5, 40)),
        "shares": (
            NoiseShares(event=shares, planned=6, survivors=5, colluding=1),
            shares_pmf(0.8, 4, 40),
        ),
    }
    event, one = cases[which]
    (moved_x, still_x), (moved_y, still_y) = (shifted(one, by) for by in shift)
    moved, still = np.outer(moved_x, moved_y).ravel(), np.outer(still_x, still_y).ravel()
    mixture = (1 - q) * still + q * moved
    for a in (1.5, 2.0, 3.0, 8.0, 24.0):
        adding, removing = divergence(mixture, still, a), divergence(still, mixture, a)
        assert removing <= adding * (1 + 1e-6) + 1e-13
        found = rdp_at(Poisson(sample_rate=q, event=event), a, ZERO)
        assert found >= adding * (1 - 1e-9) - 1e-13
        assert rdp_at(event, a, ZERO) >= divergence(moved, still, a) * (1 - 1e-9)


def test_with_dropouts_epsilon_rises_exactly_as_the_noise_of_the_survivors_falls() -> None:
    planned, last = 40, 0.0
    for survivors in (40, 36, 28, 20, 7):
        honest = survivors - 2
        for inner, left in (
            (Skellam(mu=400, l2=3, l1=5), Skellam(mu=400 * honest / planned, l2=3, l1=5)),
            (
                DistributedDiscreteGaussian(sigma_share=3, shares=planned, l2=3, l1=5, dim=4),
                DistributedDiscreteGaussian(sigma_share=3, shares=honest, l2=3, l1=5, dim=4),
            ),
        ):
            lost = NoiseShares(event=inner, planned=planned, survivors=survivors, colluding=2)
            for rate in (1.0, 0.05):
                pair = [
                    Repeat(event=Poisson(sample_rate=rate, event=e), count=30) for e in (lost, left)
                ]
                cost = [epsilon(e, 1e-5, adjacency=ZERO, method="rdp").value for e in pair]
                assert cost[0] == pytest.approx(cost[1], rel=1e-13)
        assert cost[0] > last
        last = cost[0]


def generic_m3(q: float, inner: Event, a: int, *, factor: float = 3.0) -> float:
    """Zhu and Wang's sum as printed, 50 digits, from the inner curve at whole orders."""
    with mp.workdps(50):
        g = mp.mpf(q)
        total = (1 - g) ** (a - 1) * (a * g - g + 1)
        for j in range(2, a + 1):
            c = 1 if j == 2 else factor
            eps = mp.mpf(rdp_at(inner, float(j), ZERO))
            total += c * mp.binomial(a, j) * (1 - g) ** (a - j) * g**j * mp.exp((j - 1) * eps)
        return float(mp.log(total) / (a - 1))


@pytest.mark.parametrize(
    ("q", "a"), [(1e-8, 2), (1e-8, 40), (1e-4, 3), (0.01, 64), (0.3, 17), (0.9, 100)]
)
@pytest.mark.parametrize("x", [1e-3, 0.5, 4.0])
def test_the_generic_bound_agrees_with_its_sum_in_50_digits(q: float, a: int, x: float) -> None:
    inner = PureDP(epsilon=x, adjacency=ZERO)
    at = Orders.of([float(a)])
    exact = min(generic_m3(q, inner, a), rdp_at(inner, float(a), ZERO))
    assert poisson_rdp(q, inner, at, ZERO)[0] == pytest.approx(exact, rel=1e-11)
    assert rdp_at(Poisson(sample_rate=q, event=inner), float(a), ZERO) <= exact * (1 + 1e-11)


@pytest.mark.parametrize(
    "event",
    [
        Poisson(sample_rate=0.0058, event=PureDP(epsilon=0.00155, adjacency=ZERO)),
        FixedSize(population=1000, cohort=8, event=DiscreteGaussian(sigma=21.0, l2=1.0)),
    ],
)
def test_a_bound_that_falls_with_the_order_is_replaced_by_that_of_a_larger_order(
    event: Event,
) -> None:
    """No divergence falls with its order, so the bound of any larger order holds as well."""
    printed = (
        poisson_rdp(event.sample_rate, event.event, GRID, ZERO)
        if isinstance(event, Poisson)
        else fixed_size_bound(event, GRID, ZERO)  # type: ignore[arg-type]  # the other one is a cohort
    )
    assert np.any(np.diff(printed) < -1e-6 * printed[1:])
    found = rdp(event, GRID, ZERO)
    least = [printed[i:].min() for i in range(len(GRID))]
    assert np.array_equal(found, np.array(least))
    # Between two orders of the grid the upper one counts.
    assert rdp_at(event, 100.0, ZERO) <= found[GRID.values.tolist().index(128.0)]


def test_zcdp_inside_a_sample_is_not_taken_for_a_gaussian() -> None:
    """A pair with rho = 3.406 whose sample at q = .0078025 is dearer than the sampled Gaussian."""
    p = np.array([0.999827, 1.8e-9, 1.726e-4])
    q = np.array([0.705453, 1.855e-5, 0.294528])
    p, q = p / p.sum(), q / q.sum()
    rho = max(divergence(p, q, a) / a for a in np.linspace(1.001, 60, 4000))
    rho = max(rho, *(divergence(q, p, a) / a for a in np.linspace(1.001, 60, 4000)))
    rate = 0.0078025
    exact = divergence((1 - rate) * p + rate * q, p, 1.5)
    gaussian = Gaussian(noise_multiplier=1 / math.sqrt(2 * rho))
    as_gaussian = rdp_at(Poisson(sample_rate=rate, event=gaussian), 1.5, ADD)
    assert exact > as_gaussian * 1.1
    assert rdp_at(Poisson(sample_rate=rate, event=ZCDP(rho=rho, adjacency=ADD)), 1.5, ADD) >= exact


@pytest.mark.parametrize("sigma", [0.6, 1.0, 3.0])
@pytest.mark.parametrize("shift", [1, 2])
def test_the_discrete_gaussian_is_not_below_the_exact_divergence(sigma: float, shift: int) -> None:
    p, q = shifted(discrete_gaussian_pmf(sigma, 60), shift)
    event = DiscreteGaussian(sigma=sigma, l2=shift)
    rate = 0.05
    for a in (1.2, 2.0, 3.7, 12.0):
        assert rdp_at(event, a, ADD) >= divergence(p, q, a) * (1 - 1e-9)
        mixture = (1 - rate) * q + rate * p
        exact = max(divergence(mixture, q, a), divergence(q, mixture, a))
        assert rdp_at(Poisson(sample_rate=rate, event=event), a, ADD) >= exact * (1 - 1e-9)


@pytest.mark.parametrize("sigma", [0.5, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("shares", [1, 2, 10])
@pytest.mark.parametrize("shift", [1, 2])
def test_sums_of_discrete_gaussians_are_not_below_the_exact_divergence(
    sigma: float, shares: int, shift: int
) -> None:
    p, q = shifted(shares_pmf(sigma, shares, 60), shift)
    event = DistributedDiscreteGaussian(sigma_share=sigma, shares=shares, l2=shift, l1=shift, dim=1)
    for a in (1.5, 2.0, 4.0, 10.0):
        assert rdp_at(event, a, ZERO) >= divergence(p, q, a) * (1 - 1e-9)


def test_a_sum_of_discrete_gaussians_is_not_a_discrete_gaussian() -> None:
    exact = divergence(*shifted(shares_pmf(0.5, 10, 60), 1), 2.0)
    assert exact == pytest.approx(0.4510, abs=5e-5)
    shortcut = rdp_at(DiscreteGaussian(sigma=0.5 * math.sqrt(10), l2=1), 2.0, ZERO)
    assert shortcut == pytest.approx(0.4)
    shares = DistributedDiscreteGaussian(sigma_share=0.5, shares=10, l2=1, l1=1, dim=1)
    assert rdp_at(shares, 2.0, ZERO) >= exact


def test_tau_is_the_papers_sum_and_never_below_it_for_many_shares() -> None:
    def exact(sigma: float, n: int) -> mp.mpf:
        return 10 * mp.fsum(mp.exp(-2 * mp.pi**2 * sigma**2 * k / (k + 1)) for k in range(1, n))

    for sigma, n in ((0.5, 1), (0.5, 2), (0.7, 50), (1.0, 1000), (0.6, 3000)):
        found = share_sum_tau(sigma, n)
        assert found >= float(exact(sigma, n)) * (1 - 1e-12)
        assert found <= float(exact(sigma, n)) * 1.01


def test_shares_too_small_to_be_proved_are_refused() -> None:
    event = DistributedDiscreteGaussian(sigma_share=0.49, shares=3, l2=1, l1=1, dim=1)
    with pytest.raises(UnsupportedEvent, match="1/2"):
        rdp_at(event, 2.0, ZERO)


@given(st.floats(1, 1e4), st.floats(0.5, 100), st.floats(1.01, 300), st.floats(1e-3, 1e3))
def test_the_unit_of_measurement_does_not_matter(
    sigma: float, l2: float, a: float, c: float
) -> None:
    plain, scaled = (
        DiscreteGaussian(sigma=sigma, l2=l2),
        DiscreteGaussian(sigma=c * sigma, l2=c * l2),
    )
    assert rdp_at(scaled, a, ADD) == pytest.approx(rdp_at(plain, a, ADD), rel=1e-12)
    assert rdp_at(plain, a, ADD) == pytest.approx(
        rdp_at(Gaussian(noise_multiplier=sigma / l2), a, ADD), rel=1e-12
    )


def test_rounded_sensitivity_holds_for_rounding_repeated_until_it_does() -> None:
    rng = np.random.default_rng(5)
    for clip, scale, dim in ((1.0, 10.0, 16), (1.0, 100.0, 64), (0.3, 5.0, 8)):
        l2, l1 = rounded_sensitivity(clip, scale, dim)
        assert l2 >= clip * scale
        kept = 0
        for _ in range(400):
            v = rng.normal(size=dim)
            v *= clip * scale / np.linalg.norm(v)
            rounded = np.floor(v) + (rng.random(dim) < v - np.floor(v))
            if np.linalg.norm(rounded) <= l2:
                kept += 1
                assert np.abs(rounded).sum() <= l1 * (1 + 1e-12)
        assert kept > 200  # e^-1/2 is the price of one try at worst
    with pytest.raises(InvalidParameter):
        rounded_sensitivity(math.nan, 1.0, 4)


# --- Laplace and guarantees without a mechanism -------------------------------------------------


def laplace_moment(b: float, a: float) -> mp.mpf:
    with mp.workdps(40):
        b_, a_ = mp.mpf(b), mp.mpf(a)

        def f(x: mp.mpf) -> mp.mpf:
            return mp.exp(-a_ * abs(x) / b_ - (1 - a_) * abs(x - 1) / b_) / (2 * b_)

        # The three pieces are single exponentials.
        left = mp.quad(f, [-200 * b_, -b_, 0])
        return mp.log(left + mp.quad(f, [0, 0.5, 1]) + mp.quad(f, [1, 1 + b_, 200 * b_])) / (a_ - 1)


@pytest.mark.parametrize("b", [0.3, 1.0, 7.0, 400.0])
@pytest.mark.parametrize("a", [1.05, 2.0, 5.5, 64.0])
def test_the_laplace_curve_is_the_defining_integral(b: float, a: float) -> None:
    found = rdp_at(Laplace(b=b), a, ADD)
    assert found == pytest.approx(float(laplace_moment(b, a)), rel=1e-9)
    assert rdp_at(Laplace(b=2 * b), a, REPLACE) == found


@pytest.mark.parametrize(("b", "q"), [(0.5, 0.1), (2.0, 0.01), (1.0, 0.5)])
def test_sampled_laplace_is_not_below_either_direction(b: float, q: float) -> None:
    x = np.linspace(-60 * b, 60 * b + 1, 400_001)
    h = x[1] - x[0]
    still = np.exp(-np.abs(x) / b) / (2 * b) * h
    moved = np.exp(-np.abs(x - 1) / b) / (2 * b) * h
    still, moved = still / still.sum(), moved / moved.sum()
    mixture = (1 - q) * still + q * moved
    event = Poisson(sample_rate=q, event=Laplace(b=b))
    for a in (1.5, 2.0, 6.0, 20.0):
        exact = max(divergence(mixture, still, a), divergence(still, mixture, a))
        assert rdp_at(event, a, ADD) >= exact * (1 - 1e-5)


@given(st.floats(1e-6, 60), st.floats(1.01, 4000))
def test_pure_dp_costs_what_randomised_response_costs(eps: float, a: float) -> None:
    with mp.workdps(40):
        e, a_ = mp.mpf(eps), mp.mpf(a)
        p = mp.exp(e) / (1 + mp.exp(e))
        exact = mp.log(p**a_ * (1 - p) ** (1 - a_) + (1 - p) ** a_ * p ** (1 - a_)) / (a_ - 1)
    found = rdp_at(PureDP(epsilon=eps, adjacency=ADD), a, ADD)
    assert found == pytest.approx(float(exact), rel=1e-10)
    assert rdp_at(ApproxDP(epsilon=eps, delta=0, adjacency=ADD), a, ADD) == found


def test_a_guarantee_is_only_used_under_its_own_adjacency() -> None:
    for event in (
        PureDP(epsilon=1, adjacency=ZERO),
        ZCDP(rho=1, adjacency=ZERO),
        Compose(events=(G, ApproxDP(epsilon=1, delta=0, adjacency=ZERO))),
    ):
        assert epsilon(event, 1e-5, adjacency=ZERO, method="rdp").value > 0
        for other in (ADD, REPLACE):
            with pytest.raises(AdjacencyMismatch):
                epsilon(event, 1e-5, adjacency=other, method="rdp")


def test_the_delta_of_an_event_is_taken_off_the_target() -> None:
    event = Repeat(event=ApproxDP(epsilon=0.1, delta=1e-7, adjacency=ADD), count=50)
    pure = Repeat(event=PureDP(epsilon=0.1, adjacency=ADD), count=50)
    spent = -math.expm1(50 * math.log1p(-1e-7))
    found = epsilon(event, 1e-5, adjacency=ADD, method="rdp").value
    assert found == pytest.approx(
        epsilon(pure, 1e-5 - spent, adjacency=ADD, method="rdp").value, rel=1e-9
    )
    assert math.isinf(epsilon(event, spent, adjacency=ADD, method="rdp").value)
    accountant = RDPAccountant(adjacency=ADD)
    accountant.compose(event)
    assert accountant.curve().delta == pytest.approx(spent)
    assert accountant.delta(5.0).delta >= spent
    assert accountant.epsilon_at(8.0, 1e-5).value >= found
    assert math.isinf(accountant.epsilon_at(8.0, spent).value)
    with pytest.raises(UnsupportedEvent, match="fails with probability"):
        rdp(event, GRID, ADD)
    plan = calibrate(
        lambda z: Compose(events=(event, Gaussian(noise_multiplier=z))), 6.0, 1e-5, adjacency=ADD
    )
    whole = Compose(events=(event, Gaussian(noise_multiplier=plan.value)))
    assert epsilon(whole, 1e-5, adjacency=ADD, method="rdp").value <= 6.0


# --- sampling -----------------------------------------------------------------------------------


def fixed_size_exact(z: float, g: float, a: float) -> float:
    """One unit of a fixed cohort, all others zero, moved from C to -C: exact by quadrature."""
    x = np.linspace(-40 * z - 2, 40 * z + 2, 200_001)
    still = norm.pdf(x, 0, z)
    p = (1 - g) * still + g * norm.pdf(x, 1, z)
    q = (1 - g) * still + g * norm.pdf(x, -1, z)
    return divergence(p * (x[1] - x[0]), q * (x[1] - x[0]), a)


@pytest.mark.parametrize("z", [0.8, 1.5, 4.0])
@pytest.mark.parametrize("cohort", [1, 10, 300])
def test_a_fixed_cohort_is_between_an_exact_case_and_no_sampling(z: float, cohort: int) -> None:
    event = FixedSize(population=1000, cohort=cohort, event=Gaussian(noise_multiplier=z))
    for a in (1.5, 2.0, 4.0, 9.0, 33.3):
        found = rdp_at(event, a, REPLACE)
        assert fixed_size_exact(z, cohort / 1000, a) <= found * (1 + 1e-6)
        assert found <= rdp_at(event.event, a, REPLACE)
        assert rdp_at(event, a, ZERO) == found


def m4_in_50_digits(z: float, g: float, a: int) -> float:
    with mp.workdps(50):
        eps2 = mp.mpf(2) * 2 / mp.mpf(z) ** 2

        def eps(j: int) -> mp.mpf:
            return 2 * mp.mpf(j) / mp.mpf(z) ** 2

        def moment(power: int) -> mp.mpf:  # E_Q[(P/Q - 1)^l] by the binomial theorem
            mu2 = (2 / mp.mpf(z)) ** 2
            return mp.fsum(
                (-1) ** (power - k) * mp.binomial(power, k) * mp.exp(mu2 * k * (k - 1) / 2)
                for k in range(power + 1)
            )

        g_ = mp.mpf(g)
        total = 1 + g_**2 * mp.binomial(a, 2) * min(4 * mp.expm1(eps2), 2 * mp.exp(eps2))
        for j in range(3, a + 1):
            first = 4 * mp.sqrt(moment(j // 2 * 2) * moment((j + 1) // 2 * 2))
            total += g_**j * mp.binomial(a, j) * min(first, 2 * mp.exp((j - 1) * eps(j)))
        return float(mp.log(total) / (a - 1))


@pytest.mark.parametrize("z", [0.8, 3.0, 20.0])
@pytest.mark.parametrize("a", [2, 3, 8, 21])
def test_a_fixed_cohort_agrees_with_its_sum_in_50_digits(z: float, a: int) -> None:
    event = FixedSize(population=1000, cohort=20, event=Gaussian(noise_multiplier=z))
    exact = min(m4_in_50_digits(z, 0.02, a), 2 * a / z**2)
    assert rdp_at(event, float(a), REPLACE) == pytest.approx(exact, rel=1e-10)


def test_the_published_fixed_cohort_costs_what_the_reference_says() -> None:
    rounds = Repeat(
        event=FixedSize(population=4_000_000, cohort=20_000, event=Gaussian(noise_multiplier=0.8)),
        count=2000,
    )
    bound = epsilon(rounds, 1 / 4e6, adjacency=REPLACE, method="rdp")
    assert bound.value == pytest.approx(64.957312, abs=2e-6)


def test_everybody_in_the_cohort_is_no_sampling() -> None:
    inner = Skellam(mu=50, l2=3, l1=5)
    event = FixedSize(population=7, cohort=7, event=inner)
    np.testing.assert_allclose(rdp(event, GRID, REPLACE), rdp(inner, GRID, REPLACE), rtol=1e-14)
    # Poisson at rate 1 and Hierarchical with a certain client are sums as well.
    assert np.array_equal(
        rdp(Poisson(sample_rate=1, event=inner), GRID, ZERO), rdp(inner, GRID, ZERO)
    )
    sure = Hierarchical(p_client=1, steps=4, event=Gaussian(noise_multiplier=3))
    np.testing.assert_allclose(
        rdp(sure, GRID, ADD), 4 * rdp(Gaussian(noise_multiplier=3), GRID, ADD), rtol=1e-14
    )


def test_nested_samples_are_one_sample_at_the_product_of_the_rates() -> None:
    g = Gaussian(noise_multiplier=1.3)
    nested = Poisson(sample_rate=0.1, event=Poisson(sample_rate=0.2, event=g))
    once = Poisson(sample_rate=0.1 * 0.2, event=g)
    np.testing.assert_allclose(rdp(nested, GRID, ADD), rdp(once, GRID, ADD), rtol=1e-12)


def test_gaussians_on_one_sample_are_one_gaussian_and_others_pay_the_factor_three() -> None:
    pair = Compose(events=(Gaussian(noise_multiplier=3), Gaussian(noise_multiplier=4)))
    joint = Poisson(sample_rate=0.1, event=pair)
    one = Poisson(sample_rate=0.1, event=Gaussian(noise_multiplier=12 / 5))
    np.testing.assert_allclose(rdp(joint, GRID, ADD), rdp(one, GRID, ADD), rtol=1e-11)
    s = Skellam(mu=200, l2=3, l1=5)
    twice = Poisson(sample_rate=0.1, event=Repeat(event=s, count=2))
    assert rdp_at(twice, 8.0, ZERO) == pytest.approx(
        generic_m3(0.1, Repeat(event=s, count=2), 8), rel=1e-10
    )


@pytest.mark.parametrize(("p", "q", "z", "steps"), [(0.01, 0.1, 1.0, 3), (0.3, 0.2, 2.0, 2)])
def test_client_sampling_is_not_below_the_pair_it_is_proved_for(
    p: float, q: float, z: float, steps: int
) -> None:
    """The pair of the upper bound: with probability p the steps' loss, else none, both ways."""
    event = Hierarchical(
        p_client=p,
        steps=steps,
        event=Poisson(sample_rate=q, event=Gaussian(noise_multiplier=z)),
    )
    inner = event.event
    for a in (1.5, 2.0, 8.0):
        moment = math.exp((a - 1) * steps * rdp_at(inner, a, ADD))
        exact = math.log(1 - p + p * moment) / (a - 1)
        assert rdp_at(event, a, ADD) == pytest.approx(exact, rel=1e-9)
        # Never the product of the rates, whose curve is far below at higher orders.
        product = steps * rdp_at(Poisson(sample_rate=p * q, event=inner.event), a, ADD)
        assert rdp_at(event, a, ADD) > product


@pytest.mark.parametrize(
    ("p", "q", "steps", "z", "rounds", "delta", "expected"),
    [(0.01, 0.1, 10, 1.0, 1000, 1e-6, 10.30), (0.1, 0.05, 20, 1.0, 100, 1e-5, 6.01)],
)
def test_client_sampling_costs_what_the_reference_says(
    p: float, q: float, steps: int, z: float, rounds: int, delta: float, expected: float
) -> None:
    event = Hierarchical(
        p_client=p, steps=steps, event=Poisson(sample_rate=q, event=Gaussian(noise_multiplier=z))
    )
    bound = epsilon(Repeat(event=event, count=rounds), delta, adjacency=ADD, method="rdp")
    assert bound.value == pytest.approx(expected, abs=0.01)


# --- banded matrices ------------------------------------------------------------------------------


def test_banded_columns_far_apart_are_orthogonal_and_cyclic_samples_add_up() -> None:
    rng = np.random.default_rng(3)
    steps, bands = 12, 3
    matrix = np.tril(np.triu(rng.random((steps, steps)), -(bands - 1)))
    matrix /= np.linalg.norm(matrix, axis=0)
    worst = max(
        np.linalg.norm(matrix[:, [i, j, k]].sum(axis=1)) ** 2
        for i in range(steps)
        for j in range(i + bands, steps)
        for k in range(j + bands, steps)
    )
    event = BandedMF(noise_multiplier=2, bands=bands, steps=steps, participations=3)
    assert rdp_at(event, 4.0, ZERO) >= 4 * worst / 8 * (1 - 1e-12)
    assert rdp_at(event, 4.0, ZERO) == pytest.approx(4 * 3 / 8)
    cyclic = BandedMF(noise_multiplier=2, bands=bands, steps=10, participations=2, sample_rate=0.1)
    one = Poisson(sample_rate=0.1, event=Gaussian(noise_multiplier=2))
    assert rdp_at(cyclic, 4.0, ZERO) == pytest.approx(4 * rdp_at(one, 4.0, ZERO))


# --- selection, groups, shares ------------------------------------------------------------------


def best_of_runs(p: list[float], chances: Callable[[int], float], most: int) -> Pmf:
    """Exact law of the best outcome (the largest index) of a random number of runs; last: none."""
    below = np.cumsum(p)
    law = np.zeros(len(p) + 1)
    for runs in range(most):
        at_most = below**runs if runs else np.ones(len(p))
        if runs == 0:
            law[-1] += chances(0)
        else:
            law[:-1] += chances(runs) * np.diff(np.append(0.0, at_most))
    return law


@pytest.mark.parametrize("x", [0.1, 1.0])
@pytest.mark.parametrize("a", [1.5, 2.0, 8.0, 40.0])
def test_selection_is_not_below_exact_small_cases(x: float, a: float) -> None:
    """Randomised response with three outcomes, the rare one being the best."""
    inner = PureDP(epsilon=x, adjacency=ADD)
    e = math.exp(x)
    p = [e / (e + 2), 1 / (e + 2), 1 / (e + 2)]
    q = [1 / (e + 2), 1 / (e + 2), e / (e + 2)]
    for gamma in (0.9, 0.3, 0.05):
        geometric = Select(event=inner, eta=1, gamma=gamma)
        laws = [
            best_of_runs(s, lambda n, g=gamma: g * (1 - g) ** (n - 1) if n else 0.0, 400)
            for s in (p, q)
        ]
        exact = max(divergence(laws[0], laws[1], a), divergence(laws[1], laws[0], a))
        assert rdp_at(geometric, a, ADD) >= exact * (1 - 1e-6)
    for mean in (0.2, 1.0, 5.0):
        poisson = Select(event=inner, poisson_mean=mean)
        laws = [
            best_of_runs(
                s, lambda n, m=mean: math.exp(-m + n * math.log(m) - math.lgamma(n + 1)), 80
            )
            for s in (p, q)
        ]
        exact = max(divergence(laws[0], laws[1], a), divergence(laws[1], laws[0], a))
        assert rdp_at(poisson, a, ADD) >= exact * (1 - 1e-6)


@given(st.floats(-0.9, 20), st.floats(1e-6, 1))
def test_the_mean_number_of_runs_is_that_of_the_distribution(eta: float, gamma: float) -> None:
    from accounting.derived import mean_runs

    if abs(eta) < 1e-6:
        return
    with mp.workdps(60):
        e, g = mp.mpf(eta), mp.mpf(gamma)
        exact = e * (1 - g) / (g * (1 - g**e)) if g != 1 else mp.mpf(1)
    assert mean_runs(eta, gamma) == pytest.approx(float(exact), rel=1e-9)
    assert mean_runs(0.0, 0.5) == pytest.approx(1 / math.log(2))


def test_groups_are_k_times_the_sensitivity() -> None:
    a = 3.0
    g = Gaussian(noise_multiplier=6)
    assert rdp_at(Group(k=3, event=g), a, ADD) == pytest.approx(9 * rdp_at(g, a, ADD))
    rho = ZCDP(rho=0.1, adjacency=ADD)
    assert rdp_at(Group(k=3, event=rho), a, ADD) == pytest.approx(9 * rdp_at(rho, a, ADD))
    s = Skellam(mu=40, l2=1, l1=1)
    exact = divergence(*shifted(skellam_pmf(40, 300), 3), a)
    assert rdp_at(Group(k=3, event=Repeat(event=s, count=2)), a, ZERO) >= 2 * exact
    mixed = Compose(events=(Laplace(b=9), PureDP(epsilon=0.1, adjacency=ADD)))
    assert rdp_at(Group(k=3, event=mixed), a, ADD) == pytest.approx(
        rdp_at(Laplace(b=3), a, ADD) + rdp_at(PureDP(epsilon=0.3, adjacency=ADD), a, ADD)
    )
    with pytest.raises(UnsupportedEvent):
        rdp_at(Group(k=2, event=Poisson(sample_rate=0.1, event=g)), a, ADD)


def test_lost_and_colluding_shares_take_their_noise_away() -> None:
    g = Gaussian(noise_multiplier=2.0)
    for planned, survivors, colluding in ((100, 100, 0), (100, 80, 0), (100, 80, 30), (10, 20, 5)):
        honest = survivors - colluding
        shares = NoiseShares(event=g, planned=planned, survivors=survivors, colluding=colluding)
        same = Gaussian(noise_multiplier=2.0 * math.sqrt(honest / planned))
        assert rdp_at(shares, 3.0, ZERO) == pytest.approx(rdp_at(same, 3.0, ZERO), rel=1e-13)
        s = NoiseShares(
            event=Skellam(mu=900, l2=3, l1=4),
            planned=planned,
            survivors=survivors,
            colluding=colluding,
        )
        assert rdp_at(s, 3.0, ZERO) == pytest.approx(
            rdp_at(Skellam(mu=900 * honest / planned, l2=3, l1=4), 3.0, ZERO), rel=1e-13
        )
        d = NoiseShares(
            event=DistributedDiscreteGaussian(sigma_share=1, shares=planned, l2=3, l1=4, dim=9),
            planned=planned,
            survivors=survivors,
            colluding=colluding,
        )
        fewer = DistributedDiscreteGaussian(sigma_share=1, shares=honest, l2=3, l1=4, dim=9)
        assert rdp_at(d, 3.0, ZERO) == rdp_at(fewer, 3.0, ZERO)


def test_skellam_shares_with_dropouts_are_not_below_the_exact_divergence_of_those_left() -> None:
    share, planned = 3.0, 20
    for survivors, colluding in ((20, 0), (15, 0), (15, 5), (4, 1)):
        left = skellam_pmf(share * (survivors - colluding), 300)
        event = NoiseShares(
            event=Skellam(mu=share * planned, l2=2, l1=2),
            planned=planned,
            survivors=survivors,
            colluding=colluding,
        )
        for a in (1.5, 2.0, 6.0):
            assert rdp_at(event, a, ZERO) >= divergence(*shifted(left, 2), a)


@given(st.integers(2, 200), st.data())
def test_epsilon_rises_with_every_lost_or_colluding_share(
    planned: int, data: st.DataObject
) -> None:
    survivors = data.draw(st.integers(2, planned))
    colluding = data.draw(st.integers(0, survivors - 2))
    inner = data.draw(
        st.sampled_from(
            [
                Gaussian(noise_multiplier=3),
                Skellam(mu=500, l2=5, l1=9),
                Poisson(sample_rate=0.1, event=Gaussian(noise_multiplier=1)),
            ]
        )
    )

    def cost(s: int, c: int) -> np.ndarray:
        return rdp(NoiseShares(event=inner, planned=planned, survivors=s, colluding=c), GRID, ZERO)

    # Through Poisson curves the numerics are good to 1e-9.
    assert np.all(cost(survivors, colluding + 1) >= cost(survivors, colluding) * (1 - 1e-9))
    assert np.all(cost(survivors - 1, 0) >= cost(survivors, 0) * (1 - 1e-9))


@pytest.mark.parametrize(("kept", "expected"), [(1.0, 3.01), (0.9, 3.25), (0.7, 3.94), (0.5, 5.20)])
def test_dropouts_cost_about_what_the_reference_says(kept: float, expected: float) -> None:
    """The reference used a coarser grid of orders: ours may be lower by a little."""
    shares = NoiseShares(
        event=Gaussian(noise_multiplier=1.796), planned=1000, survivors=round(1000 * kept)
    )
    event = Repeat(event=Poisson(sample_rate=0.1, event=shares), count=100)
    found = epsilon(event, 1e-5, adjacency=ZERO, method="rdp").value
    assert 0.985 * expected <= found <= expected + 0.005


# --- refusals -------------------------------------------------------------------------------------

SAMPLED = Poisson(sample_rate=0.1, event=G)


@pytest.mark.parametrize(
    ("event", "adjacency"),
    [
        (Skellam(mu=1, l2=1, l1=1), ADD),
        (DistributedDiscreteGaussian(sigma_share=1, shares=2, l2=1, l1=1, dim=1), ADD),
        (NoiseShares(event=G, planned=2, survivors=2), ADD),
        (Poisson(sample_rate=0.1, event=NoiseShares(event=G, planned=2, survivors=2)), ADD),
        (NoiseShares(event=Laplace(b=1), planned=2, survivors=2), ZERO),
        (
            NoiseShares(
                event=DistributedDiscreteGaussian(sigma_share=1, shares=3, l2=1, l1=1, dim=1),
                planned=2,
                survivors=2,
            ),
            ZERO,
        ),
        (FixedSize(population=5, cohort=2, event=G), ADD),
        (FixedSize(population=5, cohort=2, event=Poisson(sample_rate=0.5, event=G)), REPLACE),
        (Hierarchical(p_client=0.1, steps=2, event=G), REPLACE),
        (Tree(noise_multiplier=1, steps=4, participations=1, min_sep=1), ADD),
        (BandedMF(noise_multiplier=1, bands=2, steps=4, participations=1), REPLACE),
        (Shuffled(batches=3, epochs=1, event=G, reshuffle=True), ZERO),
        (Poisson(sample_rate=0.1, event=Laplace(b=1)), REPLACE),
        (Poisson(sample_rate=0.1, event=ApproxDP(epsilon=1, delta=1e-9, adjacency=ADD)), ADD),
        (Poisson(sample_rate=0.1, event=Repeat(event=SAMPLED, count=9)), ADD),
        (Select(event=ApproxDP(epsilon=1, delta=1e-9, adjacency=ADD), eta=1, gamma=0.5), ADD),
        (Group(k=2, event=ApproxDP(epsilon=1, delta=1e-9, adjacency=ADD)), ADD),
        (Group(k=2, event=NonPrivate()), ADD),
    ],
)
def test_what_is_not_proved_is_refused_wherever_it_stands(
    event: Event, adjacency: Adjacency
) -> None:
    for whole in (event, Repeat(event=event, count=3), Compose(events=(G, event))):
        with pytest.raises(UnsupportedEvent):
            rdp(whole, GRID, adjacency)
        accountant = RDPAccountant(adjacency=adjacency)
        with pytest.raises(UnsupportedEvent):
            accountant.compose(whole)
        assert accountant.events == ()
