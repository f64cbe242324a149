"""The one-run audit: check values, exact arithmetic, brute force, and how often it is wrong."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting import Gaussian, InvalidParameter, epsilon
from accounting.empirical import Guesses, canary_coins, guess_members, guess_p_value, one_run


def test_published_settings_give_their_values() -> None:
    many = Guesses(canaries=1000, guessed=100, correct=90)
    assert guess_p_value(many, 0.5, 1e-5) == pytest.approx(5.3940e-4, abs=5e-9)
    all_guessed = Guesses(canaries=100, guessed=100, correct=75)
    assert guess_p_value(all_guessed, math.log(3), 0.0) == pytest.approx(0.5535, abs=5e-5)
    assert one_run(many, 1e-5) == pytest.approx(1.626, abs=5e-4)


def exact_p(m: int, r: int, v: int, ratio: int, delta: Fraction) -> Fraction:
    """p(ln ratio) as written in the paper, by sums of fractions."""
    q = Fraction(ratio, 1 + ratio)
    mass = [math.comb(r, j) * q**j * (1 - q) ** (r - j) for j in range(r + 1)]
    beta = sum(mass[v:], start=Fraction(0))
    slope = max(
        (sum(mass[max(v - i, 0) : v], start=Fraction(0)) / i for i in range(1, v + 1)),
        default=Fraction(0),
    )
    return min(Fraction(1), beta + 2 * m * delta * slope)


@given(data=st.data())
def test_p_agrees_with_exact_fractions(data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 40))
    r = data.draw(st.integers(0, m))
    v = data.draw(st.integers(0, r))
    ratio = data.draw(st.integers(1, 60))
    delta = data.draw(st.sampled_from([Fraction(0), Fraction(1, 1000), Fraction(1, 10)]))
    found = guess_p_value(Guesses(canaries=m, guessed=r, correct=v), math.log(ratio), float(delta))
    assert found == pytest.approx(float(exact_p(m, r, v, ratio, delta)), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("delta", [0.0, 0.05])
def test_no_outcome_of_a_private_mechanism_is_likelier_than_p(delta: float) -> None:
    # Each coin is told by randomised response, and in clear with probability delta: that is
    # (ln 3, delta)-private. All 2^m patterns of right guesses are enumerated.
    m, right = 8, delta + (1 - delta) * 0.75
    for v in range(m + 1):
        reached = sum(
            math.prod(right if hit else 1 - right for hit in pattern)
            for pattern in product((0, 1), repeat=m)
            if sum(pattern) >= v
        )
        p = guess_p_value(Guesses(canaries=m, guessed=m, correct=v), math.log(3), delta)
        assert reached <= p + 1e-12
        if delta == 0:
            assert reached == pytest.approx(p, rel=1e-12)


@given(
    r=st.integers(1, 300),
    share=st.floats(0.5, 1.0),
    delta=st.sampled_from([0.0, 1e-6, 1e-4]),
    confidence=st.sampled_from([0.9, 0.95, 0.99]),
)
def test_the_bound_is_where_p_reaches_the_error(
    r: int, share: float, delta: float, confidence: float
) -> None:
    guesses = Guesses(canaries=2 * r, guessed=r, correct=round(share * r))
    bound = one_run(guesses, delta, confidence=confidence)
    error = 1 - confidence
    if bound == 0:
        assert guess_p_value(guesses, 1e-6, delta) > error - 1e-6
    else:
        assert guess_p_value(guesses, bound, delta) <= error * (1 + 1e-9)
    assert guess_p_value(guesses, bound + 1e-6, delta) > error * (1 - 1e-9)


def test_the_bound_is_above_the_truth_with_at_most_the_stated_probability() -> None:
    # Randomised response, where the bound is tightest: the exact probability, over all outcomes.
    m, truth = 200, math.log(3)
    above = sum(
        math.comb(m, v) * 0.75**v * 0.25 ** (m - v)
        for v in range(m + 1)
        if one_run(Guesses(canaries=m, guessed=m, correct=v), 0.0) > truth
    )
    assert 0.02 < above <= 0.05


def test_two_hundred_runs_with_gaussian_noise_stay_below_the_truth() -> None:
    # m = 1000 canaries, each in a coordinate of its own, z = 1. The bound is loose: with r = 100
    # it averages a third of the truth, so even one alarm in 200 is improbable.
    rng, m = np.random.default_rng(20230515), 1000
    truth = epsilon(Gaussian(noise_multiplier=1.0), 1e-5, adjacency="zero-out").value
    bounds = []
    for _ in range(200):
        coins = rng.integers(0, 2, m).astype(bool)
        scores = coins + rng.standard_normal(m)
        bounds.append(one_run(guess_members(scores, coins, guess_in=50, guess_out=50), 1e-5))
    assert max(bounds) <= truth
    assert 1.2 < float(np.mean(bounds)) < 2.2


def test_several_settings_share_the_error() -> None:
    guesses = Guesses(canaries=1000, guessed=100, correct=90)
    assert one_run(guesses, 1e-5, settings=5) == one_run(
        guesses, 1e-5, confidence=1 - (1 - 0.95) / 5
    )
    assert one_run(guesses, 1e-5, settings=5) < one_run(guesses, 1e-5)


def test_no_better_than_chance_shows_nothing() -> None:
    assert one_run(Guesses(canaries=100, guessed=100, correct=50), 0.0) == 0.0
    assert one_run(Guesses(canaries=100, guessed=0, correct=0), 1e-5) == 0.0


def test_the_highest_are_guessed_in_and_the_lowest_out() -> None:
    scores = [0.5, 3.0, -1.0, 2.0, 0.0, -2.0]
    coins = np.array([True, True, True, False, False, False])
    found = guess_members(scores, coins, guess_in=2, guess_out=2)
    # In: 1 (right), 3 (wrong); out: 5 (right), 2 (wrong).
    assert found == Guesses(canaries=6, guessed=4, correct=2)
    assert guess_members(scores, coins, guess_in=0, guess_out=0).guessed == 0


@pytest.mark.parametrize(
    ("scores", "coins", "guess_in"),
    [
        ([0.0, math.nan], [True, False], 1),
        ([0.0, 1.0], [1, 0], 1),
        ([0.0, 1.0, 2.0], [True, False], 1),
        ([0.0, 1.0], [True, False], 2),
        ([0.0, 1.0], [True, False], -1),
    ],
)
def test_scores_that_cannot_be_guessed_from_are_refused(
    scores: list[float], coins: list[bool], guess_in: int
) -> None:
    with pytest.raises(InvalidParameter):
        guess_members(scores, np.array(coins), guess_in=guess_in, guess_out=1)


@pytest.mark.parametrize(("m", "r", "v"), [(10, 11, 1), (10, 5, 6), (0, 0, 0), (10, -1, 0)])
def test_impossible_guesses_are_refused(m: int, r: int, v: int) -> None:
    with pytest.raises(InvalidParameter):
        Guesses(canaries=m, guessed=r, correct=v)


def test_coins_are_the_operating_systems_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda n: bytes(range(0xB0, 0xB0 + n)))
    np.random.seed(0)
    expected = [int(bit) for bit in "1011000010110001"]
    assert canary_coins(12).tolist() == [bool(bit) for bit in expected[:12]]


def test_coins_are_fair() -> None:
    heads = int(canary_coins(100_000).sum())
    assert abs(heads - 50_000) < 6 * math.sqrt(25_000)  # false alarm: 2e-9


@pytest.mark.parametrize("confidence", [0.5, 1.0, 0.0, math.nan, True, "0.95"])
def test_impossible_confidences_are_refused(confidence: float) -> None:
    with pytest.raises(InvalidParameter, match="confidence must be"):
        one_run(Guesses(canaries=10, guessed=10, correct=9), 0.0, confidence=confidence)
