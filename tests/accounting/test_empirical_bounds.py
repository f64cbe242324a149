"""Clopper-Pearson and Gaussian lower bounds against exact binomial arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting import InvalidParameter
from accounting.accountant import gaussian_epsilon
from accounting.empirical import ErrorCounts, clopper_pearson, gaussian_mu
from accounting.empirical.bounds import shown_down, upper_limit

PHI = NormalDist()


def errors(fn: int, fp: int, runs: int) -> ErrorCounts:
    return ErrorCounts(false_negatives=fn, trials_in=runs, false_positives=fp, trials_out=runs)


def at_most(k: int, n: int, p: Fraction) -> Fraction:
    """P[Bin(n, p) <= k], exactly."""
    return sum(
        (math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)), start=Fraction(0)
    )


@given(data=st.data())
def test_limits_solve_the_binomial_equation_in_exact_arithmetic(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 60))
    k = data.draw(st.integers(0, n - 1))
    tail = data.draw(st.sampled_from([0.05, 0.025, 0.005, 1e-4, 1e-9]))
    limit = Fraction(float(upper_limit(k, n, tail)))
    nudge = max(min(limit, 1 - limit) / 10**9, Fraction(1, 2**52))
    assert at_most(k, n, limit + nudge) <= Fraction(tail) <= at_most(k, n, limit - nudge)


@pytest.mark.parametrize("n", [1, 7, 1000, 10**6])
def test_limits_at_the_ends_have_their_closed_form(n: int) -> None:
    assert float(upper_limit(0, n, 0.005)) == pytest.approx(-math.expm1(math.log(0.005) / n), 1e-12)
    assert float(upper_limit(n, n, 0.005)) == 1.0


@given(
    fn=st.integers(0, 200),
    fp=st.integers(0, 200),
    delta=st.sampled_from([0.0, 1e-9, 1e-5, 0.1]),
    k=st.integers(1, 20),
)
def test_bounds_are_their_formulas_at_the_limits(fn: int, fp: int, delta: float, k: int) -> None:
    counts = errors(fn, fp, 200)
    a, b = (float(upper_limit(wrong, 200, 0.05 / (2 * k))) for wrong in (fn, fp))
    shown = [
        math.log((1 - delta - x) / y) if 1 - delta > x else -math.inf for x, y in ((a, b), (b, a))
    ]
    assert clopper_pearson(counts, delta, canaries=k) == pytest.approx(max(0.0, *shown), abs=1e-12)
    expected = 0.0
    if max(a, b) < 1:
        expected = max(0.0, PHI.inv_cdf(1 - b) - PHI.inv_cdf(a))
    assert gaussian_mu(counts, canaries=k) == pytest.approx(expected, abs=1e-9)


def test_more_errors_canaries_or_certainty_never_raise_a_bound() -> None:
    base = errors(10, 20, 500)
    for bound in (lambda c, **kw: clopper_pearson(c, 1e-5, **kw), gaussian_mu):
        least = bound(base)
        assert bound(errors(11, 20, 500)) < least
        assert bound(errors(10, 21, 500)) < least
        assert bound(base, canaries=2) < least
        assert bound(base, alpha=0.01) < least


@pytest.mark.parametrize(("runs", "ceiling"), [(1000, 5.24), (2000, 5.93)])
def test_without_any_error_the_bound_is_its_ceiling(runs: int, ceiling: float) -> None:
    found = clopper_pearson(errors(0, 0, runs), 1e-5, canaries=5)
    u = 1 - (0.05 / 10) ** (1 / runs)
    assert found == pytest.approx(math.log((1 - 1e-5 - u) / u), rel=1e-12)
    assert round(found, 2) == ceiling


def pmf(n: int, p: float) -> list[float]:
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


@pytest.mark.parametrize("mu", [0.25, 1.0, 2.5])
@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_the_gaussian_bound_is_above_the_truth_with_at_most_the_stated_probability(
    mu: float, shift: float
) -> None:
    # Every outcome of 25 + 25 runs, so there is no sampling error.
    n, t = 25, mu / 2 + shift
    ins, outs = pmf(n, PHI.cdf(t - mu)), pmf(n, PHI.cdf(-t))
    truth = gaussian_epsilon(mu, 1e-3)
    above_mu = above_epsilon = 0.0
    for fn, fp in product(range(n + 1), repeat=2):
        weight = ins[fn] * outs[fp]
        above_mu += weight * (gaussian_mu(errors(fn, fp, n)) > mu)
        above_epsilon += weight * (clopper_pearson(errors(fn, fp, n), 1e-3) > truth)
    assert above_mu <= 0.05
    assert above_epsilon <= 0.05


def test_point_estimates_would_refute_almost_every_true_claim() -> None:
    # The largest of five point estimates, at the threshold in the middle; mu = 1.
    n = 80
    wrong = pmf(n, PHI.cdf(-0.5))
    each = sum(
        wrong[fn] * wrong[fp]
        for fn, fp in product(range(1, n), repeat=2)
        if PHI.inv_cdf(1 - fp / n) - PHI.inv_cdf(fn / n) > 1.0
    )
    limited = sum(
        wrong[fn] * wrong[fp]
        for fn, fp in product(range(n + 1), repeat=2)
        if gaussian_mu(errors(fn, fp, n), canaries=5) > 1.0
    )
    assert 1 - (1 - each) ** 5 > 0.9
    assert 1 - (1 - limited) ** 5 <= 0.05


def false_alarms(canaries: int, corrected: bool) -> float:
    """P[the best of k bounds exceeds the truth] for randomised response of epsilon 1.

    The rate fn is known to nine digits, so that only the limit on fp stands between.
    """
    runs, rate = 400, 1 / (1 + math.e)
    each = sum(
        weight
        for wrong, weight in enumerate(pmf(runs, rate))
        if clopper_pearson(
            ErrorCounts(
                false_negatives=int(rate * 10**18),
                trials_in=10**18,
                false_positives=wrong,
                trials_out=runs,
            ),
            0.0,
            canaries=canaries if corrected else 1,
        )
        > 1.0
    )
    return 1 - (1 - each) ** canaries


def test_without_the_correction_for_several_canaries_true_claims_would_be_refuted() -> None:
    assert false_alarms(20, corrected=True) <= 0.05
    assert false_alarms(20, corrected=False) > 0.15


@pytest.mark.parametrize(
    "bad",
    [
        {"false_negatives": -1},
        {"false_negatives": 11},
        {"false_positives": 1.5},
        {"trials_out": 0},
        {"trials_in": True},
    ],
)
def test_impossible_counts_are_refused(bad: dict[str, int]) -> None:
    good = {"false_negatives": 1, "trials_in": 10, "false_positives": 1, "trials_out": 10}
    with pytest.raises(InvalidParameter):
        ErrorCounts(**(good | bad))


@pytest.mark.parametrize("delta", [-0.1, 1.0, math.nan, True, "0.1"])
def test_impossible_deltas_are_refused(delta: float) -> None:
    with pytest.raises(InvalidParameter, match="delta"):
        clopper_pearson(errors(1, 1, 10), delta)


@pytest.mark.parametrize("alpha", [0.0, 0.5, math.nan, True, "0.05"])
def test_impossible_alphas_are_refused(alpha: float) -> None:
    with pytest.raises(InvalidParameter, match="alpha"):
        gaussian_mu(errors(1, 1, 10), alpha=alpha)


@given(st.floats(1e-6, 1e4))
def test_a_lower_bound_is_never_shown_larger_than_it_is(value: float) -> None:
    assert value * (1 - 2e-3) <= float(shown_down(value)) <= value * (1 + 1e-12)
    assert shown_down(0.0) == "0"
