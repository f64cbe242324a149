"""The experimental ring-LWE masks against schoolbook arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.primitives import rlwe
from securefl.primitives.rlwe import DEGREE, RlweShape, mask, public_polynomials, secret, unmask

Q = 1 << 34


def schoolbook(a: np.ndarray, s: np.ndarray) -> list[int]:
    """a s modulo X^2048 + 1 and 2^34, on Python integers through one exact big product."""
    width = 64

    def pack(v: np.ndarray) -> int:
        return sum(int(x) << (width * i) for i, x in enumerate(v))

    positive, negative = pack(np.maximum(s, 0)), pack(np.maximum(-s, 0))
    wide = [0] * (2 * DEGREE)
    for sign, part in ((1, positive), (-1, negative)):
        product = pack(a) * part
        for i in range(2 * DEGREE):
            wide[i] += sign * (product >> (width * i) & ((1 << width) - 1))
    return [(wide[i] - wide[i + DEGREE]) % Q for i in range(DEGREE)]


@given(st.integers(0, 1 << 32), st.sampled_from([1, 3, 127]), st.booleans())
@settings(max_examples=8)
def test_products_equal_the_schoolbook_also_at_the_largest_coefficients(
    seed: int, most: int, extreme: bool
) -> None:
    rng = np.random.default_rng(seed)
    a = np.full(DEGREE, Q - 1, np.uint64) if extreme else rng.integers(0, Q, DEGREE, np.uint64)
    s = rng.choice([-most, most], DEGREE) if extreme else rng.integers(-most, most + 1, DEGREE)
    assert rlwe.multiply(a[None], s)[0].tolist() == schoolbook(a, s)


@given(
    st.integers(1, 127),
    st.sampled_from([1, 2047, 2048, 2049, 5000]),
    st.integers(0, 1 << 32),
)
@settings(max_examples=25)
def test_sums_are_exact_up_to_the_largest_cohort(clients: int, dimension: int, seed: int) -> None:
    bound = ((1 << 24) - 1) // (2 * clients) if seed % 2 else 1
    shape = RlweShape(dimension=dimension, bound=bound, max_clients=clients)
    rng = np.random.default_rng(seed)
    a = public_polynomials(rng.bytes(32), shape.polynomials)
    few = min(clients, 6)
    # Six clients drawn, one of them counted many times: the extremes without 127 transforms.
    weights = [clients - few + 1, *[1] * (few - 1)]
    total = np.zeros(dimension, np.uint64)
    secrets = np.zeros(DEGREE, np.int64)
    expected = np.zeros(dimension, np.int64)
    for weight in weights:
        values = rng.choice([-bound, bound, 0], dimension)
        for _ in range(weight):
            s = secret(rng.bytes)
            total += mask(values, shape, a, s, rng.bytes)
            secrets += s
            expected += values
    opened = unmask(total & np.uint64(Q - 1), shape, a, secrets, count=clients)
    assert opened.tolist() == expected.tolist()


def test_another_seed_gives_noise() -> None:
    shape = RlweShape(dimension=2048, bound=100, max_clients=5)
    rng = np.random.default_rng(0)
    a, other = (public_polynomials(rng.bytes(32), 1) for _ in range(2))
    s = secret(rng.bytes)
    values = np.zeros(2048, np.int64)
    opened = unmask(mask(values, shape, a, s, rng.bytes), shape, other, s, count=1)
    assert np.mean(np.abs(opened) > 1000) > 0.99


def test_secrets_are_uniform_over_three_values_by_rejection() -> None:
    drawn = np.concatenate([secret(np.random.default_rng(i).bytes) for i in range(50)])
    counts = np.bincount(drawn + 1, minlength=3)
    # 102,400 draws; chi-square with 2 degrees of freedom, 1e-6 false alarms at 27.6.
    expected = len(drawn) / 3
    assert ((counts - expected) ** 2 / expected).sum() < 27.6
    # The byte 255 would make one value likelier: it is thrown away.
    blocks = iter([b"\xff" * DEGREE, b"\x00" * DEGREE])
    assert set(secret(lambda _: next(blocks)).tolist()) == {-1}


def test_errors_have_the_stated_mean_and_variance() -> None:
    drawn = rlwe._errors(200_000, np.random.default_rng(1).bytes)
    assert abs(drawn.mean()) < 6 * np.sqrt(5 / len(drawn))
    assert abs(drawn.var() - 5) < 0.15
    assert (drawn.min(), drawn.max()) >= (-10, 0)
    assert drawn.max() <= 10


def test_public_polynomials_depend_on_every_bit_of_the_seed_and_stay_below_q() -> None:
    a = public_polynomials(bytes(32), 3)
    assert a.max() < Q
    assert a.shape == (3, DEGREE)
    assert len(np.unique(a)) > 6100
    assert (public_polynomials(bytes(31) + b"\1", 1) != a[:1]).mean() > 0.99
    assert (public_polynomials(bytes(32), 1) == a[:1]).all()
    with pytest.raises(ConfigurationError, match="32 bytes"):
        public_polynomials(b"short", 1)


@pytest.mark.parametrize(
    "change",
    [
        {"max_clients": 128},
        {"bound": 1 << 20},
        {"dimension": 0},
        {"bound": 0},
        {"max_clients": True},
        # Rounding would fail too often only for absurd dimensions; the check is there.
        {"dimension": 1 << 400},
    ],
)
def test_shapes_beyond_the_limits_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        RlweShape(**{"dimension": 10, "bound": 100, "max_clients": 100, **change})


def test_values_and_secrets_beyond_the_limits_are_refused() -> None:
    shape = RlweShape(dimension=3, bound=5, max_clients=3)
    rng = np.random.default_rng(0)
    a, s = public_polynomials(bytes(32), 1), secret(rng.bytes)
    for bad in (np.array([6, 0, 0]), np.array([0, 0]), np.array([1.0, 0, 0])):
        with pytest.raises(ConfigurationError):
            mask(bad, shape, a, s, rng.bytes)
    with pytest.raises(ConfigurationError, match="127"):
        rlwe.multiply(a, np.full(DEGREE, 128))


def test_a_byte_that_would_favour_one_value_of_a_secret_is_thrown_away() -> None:
    """256 is no multiple of 3: with byte 255 taken, -1 would come up more often than 1."""
    drawn = iter([bytes([255] * DEGREE), bytes([255, 0, 1, 2] * (DEGREE // 4)), bytes(DEGREE)])
    found = secret(lambda count: next(drawn)[:count])
    assert found.tolist() == ([-1, 0, 1] * DEGREE)[: 3 * DEGREE // 4] + [-1] * (DEGREE // 4)


def test_every_coefficient_of_a_masked_vector_carries_fresh_noise() -> None:
    """With a = 0 the mask is the noise alone: what hides a vector from whoever learns a s."""
    shape = RlweShape(dimension=DEGREE, bound=50, max_clients=3)
    rng = np.random.default_rng(4)
    zero = np.zeros((1, DEGREE), np.uint64)
    values = rng.integers(-50, 51, DEGREE)
    masked = mask(values, shape, zero, secret(rng.bytes), np.random.default_rng(5).bytes)
    noise = masked.astype(np.int64) - ((values + 50) << 10)
    noise -= (noise > Q // 2) * Q
    assert np.abs(noise).max() <= 10
    # 2048 draws of variance 5: six standard errors, a false alarm once in 10^9 seeds; fixed seed.
    assert abs(noise.mean()) < 6 * np.sqrt(5 / DEGREE)
    assert abs(noise.var() - 5) < 6 * 5 * np.sqrt(2 / DEGREE)
    again = mask(values, shape, zero, secret(rng.bytes), np.random.default_rng(6).bytes)
    assert (again != masked).mean() > 0.7
