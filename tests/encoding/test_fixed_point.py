"""Rounding stays within its bound, is unbiased where it says so, and uses only the given coins."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from securefl.encoding import MAX_RESOLUTION, Rounding, from_steps, to_steps
from securefl.encoding.fixed_point import rounding_error
from securefl.errors import ConfigurationError

UNITS = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-1, 1))
RESOLUTIONS = st.integers(1, MAX_RESOLUTION)
CLIP_NORMS = st.floats(1e-6, 1e6)


def no_coins(count):
    raise AssertionError(f"{count} bytes of randomness were asked for")


def coins(seed):
    return np.random.default_rng(seed).bytes


@given(UNITS, CLIP_NORMS, RESOLUTIONS, st.sampled_from(Rounding), st.integers(0, 99))
def test_every_value_comes_back_within_the_stated_error(units, C, Q, rounding, seed):
    values = np.clip(units * C, -C, C)
    steps = to_steps(values, clip_norm=C, resolution=Q, rounding=rounding, random_bytes=coins(seed))
    assert int(np.abs(steps).max()) <= Q
    step = Fraction(C) / Q
    worst = Fraction(1, 2) if rounding is Rounding.NEAREST else Fraction(1)
    for value, integer in zip(values, steps, strict=True):
        # Exact arithmetic: the integer is within (half) a step of the true quotient.
        error = abs(Fraction(float(value)) - int(integer) * step)
        assert error <= step * (worst + Fraction(1, 2**18))
    back = from_steps(steps, clip_norm=C, resolution=Q)
    bound = rounding_error(clip_norm=C, resolution=Q, rounding=rounding)
    assert float(np.abs(back - values).max()) <= bound


@given(UNITS, CLIP_NORMS)
def test_rounding_to_the_nearest_step_uses_no_randomness(units, C):
    values = np.clip(units * C, -C, C)
    to_steps(values, clip_norm=C, resolution=7, rounding=Rounding.NEAREST, random_bytes=no_coins)


@given(st.integers(-50, 50), st.integers(0, 2**32 - 1))
def test_a_value_on_the_grid_is_never_moved_by_stochastic_rounding(k, coin):
    steps = to_steps(
        np.array([k / 64.0]),
        clip_norm=1.0,
        resolution=64,
        rounding=Rounding.STOCHASTIC,
        random_bytes=lambda n: coin.to_bytes(4, "little"),
    )
    assert steps.tolist() == [k]


@pytest.mark.parametrize(("coin", "expected"), [(0, 1), (2**30 - 1, 1), (2**30, 0), (2**32 - 1, 0)])
def test_the_coin_decides_up_with_probability_equal_to_the_fraction(coin, expected):
    steps = to_steps(
        np.array([0.25]),
        clip_norm=1.0,
        resolution=1,
        rounding=Rounding.STOCHASTIC,
        random_bytes=lambda n: coin.to_bytes(4, "little"),
    )
    assert steps.tolist() == [expected]


@pytest.mark.parametrize("value", [0.03, 0.5, -0.8])
def test_stochastic_rounding_is_unbiased(value):
    n = 40_000
    steps = to_steps(
        np.full(n, value),
        clip_norm=1.0,
        resolution=1,
        rounding=Rounding.STOCHASTIC,
        random_bytes=coins(5),
    )
    # Fixed seed; with fresh coins each case would fail once in 10^6 runs (4.9 standard errors).
    spread = math.sqrt(abs(value) * (1 - abs(value)) / n)
    assert abs(steps.mean() - value) < 4.9 * spread


def test_a_value_beyond_the_clip_norm_is_refused():
    for bad in (1.5, -1.5, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match="clip before rounding"):
            to_steps(
                np.array([0.1, bad]),
                clip_norm=1.0,
                resolution=10,
                rounding=Rounding.NEAREST,
                random_bytes=no_coins,
            )


@pytest.mark.parametrize("resolution", [0, -1, MAX_RESOLUTION + 1, True, 2.0])
def test_an_impossible_resolution_is_refused(resolution):
    with pytest.raises(ConfigurationError, match="resolution must be"):
        from_steps(np.zeros(1, dtype=np.int64), clip_norm=1.0, resolution=resolution)


def test_a_source_that_runs_dry_is_noticed():
    with pytest.raises(ConfigurationError, match="returned 3 bytes where 8"):
        to_steps(
            np.zeros(2),
            clip_norm=1.0,
            resolution=10,
            rounding=Rounding.STOCHASTIC,
            random_bytes=lambda n: b"abc",
        )


def test_float_error_never_carries_a_value_past_the_last_step():
    # 1.1 * (Q / 1.1) is a little more than Q in float64; a coin of zero would round it up to Q + 1.
    C, Q = 1.1, 2**32 - 5
    assert C * (Q / C) > Q
    steps = to_steps(
        np.array([C, -C]),
        clip_norm=C,
        resolution=Q,
        rounding=Rounding.STOCHASTIC,
        random_bytes=bytes,
    )
    assert steps.tolist() == [Q, -Q]
