"""Clipping bounds the norm, keeps the direction, and never hides a failed training."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from securefl.encoding import clip_by_norm, l2_norm
from securefl.errors import ConfigurationError

FLOATS = st.floats(-1e6, 1e6, width=32)
VECTORS = hnp.arrays(np.float32, st.integers(1, 40), elements=FLOATS)


def exact_square_norm(values):
    return sum(Fraction(float(v)) ** 2 for v in values)


@given(VECTORS, st.floats(1e-3, 1e4))
def test_the_clipped_norm_is_at_most_the_bound(values, clip_norm):
    clipped = clip_by_norm(values, clip_norm)
    assert l2_norm(clipped.values) <= clip_norm
    # In exact arithmetic the bound holds up to the error of a float64 norm.
    assert exact_square_norm(clipped.values) <= Fraction(clip_norm) ** 2 * (1 + Fraction(1, 2**49))


@given(VECTORS, st.floats(1e-3, 1e4))
def test_a_vector_within_the_bound_is_returned_unchanged(values, clip_norm):
    clipped = clip_by_norm(values, clip_norm)
    if exact_square_norm(values) < Fraction(clip_norm) ** 2 * (1 - Fraction(1, 2**49)):
        assert not clipped.was_clipped
        assert np.array_equal(clipped.values, values.astype(np.float64))
    else:
        assert clipped.norm >= clip_norm * (1 - 2**-48)


@given(VECTORS, st.floats(1e-3, 1e4))
def test_clipping_keeps_the_direction(values, clip_norm):
    clipped = clip_by_norm(values, clip_norm)
    if clipped.was_clipped:
        expected = values.astype(np.float64) * (clip_norm / clipped.norm)
        assert np.allclose(clipped.values, expected, rtol=1e-12, atol=0)
        assert math.isclose(l2_norm(clipped.values), clip_norm, rel_tol=1e-12)


@given(VECTORS)
def test_the_norm_agrees_with_exact_arithmetic(values):
    exact = math.sqrt(exact_square_norm(values))
    assert math.isclose(l2_norm(values.astype(np.float64)), exact, rel_tol=1e-13)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1.0, 1e200, 1e307])
def test_the_norm_neither_overflows_nor_underflows(scale):
    assert l2_norm(np.array([3.0, -4.0]) * scale) == pytest.approx(5.0 * scale, rel=2e-4, abs=0)
    clipped = clip_by_norm(np.array([3.0, -4.0]) * scale, scale)
    assert clipped.was_clipped
    assert l2_norm(clipped.values) <= scale


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_value_that_is_not_finite_is_refused_and_never_zeroed(bad, dtype):
    with pytest.raises(ConfigurationError, match=r"1 of 3 values are NaN or infinite.*index 1"):
        clip_by_norm(np.array([1.0, bad, 2.0], dtype=dtype), 1.0)


@given(st.integers(2, 50), st.floats(1e-3, 1e3))
def test_a_norm_beyond_float64_is_clipped_since_a_refusal_would_depend_on_the_data(d, clip_norm):
    clipped = clip_by_norm(np.full(d, 1.7e308), clip_norm)
    assert clipped.was_clipped
    assert clipped.norm == math.inf
    assert np.allclose(clipped.values, clip_norm / math.sqrt(d))
    assert l2_norm(clipped.values) <= clip_norm


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_clip_norm_is_refused(clip_norm):
    with pytest.raises(ConfigurationError, match="clip_norm must be positive"):
        clip_by_norm(np.ones(2), clip_norm)


@pytest.mark.parametrize(
    "values", [np.ones(2, dtype=np.int64), np.ones((2, 2)), [1.0, 2.0], np.ones(2, np.float16)]
)
def test_what_is_no_float_vector_is_refused(values):
    with pytest.raises(ConfigurationError, match="values must"):
        clip_by_norm(values, 1.0)


def test_the_argument_is_left_unchanged():
    values = np.array([3.0, 4.0])
    clip_by_norm(values, 1.0)
    clip_by_norm(values, 10.0).values[:] = 0
    assert values.tolist() == [3.0, 4.0]
