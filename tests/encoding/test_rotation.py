"""The rotation is orthonormal, invertible, and what its definition says."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

from securefl.encoding.rotation import Rotation, block_size, public_bytes
from securefl.errors import ConfigurationError

SEED = bytes(range(32))
DIMENSIONS = st.one_of(st.integers(1, 70), st.integers(1, 6000))


def padded(d):
    return -(-d // block_size(d)) * block_size(d)


@given(DIMENSIONS, st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32))
def test_the_inverse_undoes_it_and_norms_stay(d, dtype, seed):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=d) * 10.0 ** rng.integers(-6, 7)).astype(dtype)
    rotation = Rotation(dimension=d)
    turned = rotation.apply(x, round_seed=rng.bytes(16))
    assert turned.dtype == dtype
    assert turned.shape == (rotation.padded,) == (padded(d),)
    rotation = Rotation(dimension=d)
    turned = rotation.apply(x, round_seed=SEED)
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    norm = np.linalg.norm(x.astype(np.float64))
    assert abs(np.linalg.norm(turned.astype(np.float64)) - norm) <= tolerance * norm
    back = rotation.invert(turned, round_seed=SEED)
    assert np.linalg.norm(back.astype(np.float64) - x) <= tolerance * norm


@pytest.mark.parametrize("d", [1, 2, 3, 31, 650, 2048, 2100, 4096, 6000])
def test_it_is_the_hadamard_matrix_times_the_signs_on_interleaved_blocks(d):
    rotation = Rotation(dimension=d)
    b, D = rotation.block, rotation.padded
    x = np.random.default_rng(d).normal(size=d)
    bits = [public_bytes(SEED, rotation.label, -(-D // 8))[i // 8] >> (i % 8) & 1 for i in range(D)]
    signed = np.zeros(D)
    signed[:d] = [v * (1 - 2 * bit) for v, bit in zip(x, bits, strict=False)]
    expected = np.empty(D)
    for k in range(D // b):  # coordinate i belongs to block i mod n_b
        expected[k :: D // b] = hadamard(b) @ signed[k :: D // b] / np.sqrt(b)
    assert np.allclose(rotation.apply(x, round_seed=SEED), expected, atol=1e-12)


@given(st.integers(2048, 3_000_000))
def test_the_block_is_the_largest_that_pads_five_percent_else_the_one_that_pads_least(d):
    sizes = {b: -(-d // b) * b for b in (2**a for a in range(11, 17))}
    cheap = [b for b in sizes if Fraction(sizes[b]) <= Fraction(105, 100) * d]
    chosen = block_size(d)
    if cheap:
        assert chosen == max(cheap)
    else:
        assert sizes[chosen] == min(sizes.values())
        assert all(sizes[b] > sizes[chosen] for b in sizes if b > chosen)


def test_known_sizes():
    known = {1: 1, 2: 2, 650: 1024, 2047: 2048, 2048: 2048, 26_010: 26_624, 32_768: 32_768}
    known |= {39_700: 40_960, 101_770: 106_496, 1_663_370: 1_703_936}
    assert {d: padded(d) for d in known} == known


@pytest.mark.parametrize("d", [2048, 65536])
def test_the_float64_error_is_within_its_bound(d):
    """Against extended precision, for values whose sizes differ wildly."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=d) * 2.0 ** rng.integers(-40, 41, d)
    rotation = Rotation(dimension=d)
    ones = rotation.apply(np.ones(d), round_seed=SEED)
    signs = np.sign(rotation.invert(np.eye(1, d)[0], round_seed=SEED))
    assert np.linalg.norm(ones) == pytest.approx(np.sqrt(d))
    exact = (x * signs).astype(np.longdouble)
    h = 1
    while h < d:
        exact = exact.reshape(-1, 2, h)
        exact = np.stack([exact[:, 0] + exact[:, 1], exact[:, 0] - exact[:, 1]], axis=1).ravel()
        h *= 2
    exact /= np.sqrt(np.longdouble(d))
    error = np.linalg.norm((rotation.apply(x, round_seed=SEED) - exact).astype(np.float64))
    assert error <= 2.0**-43 * np.linalg.norm(x)


def test_one_coordinate_is_spread_evenly_over_its_block():
    rotation = Rotation(dimension=26_010)
    turned = rotation.apply(np.eye(1, 26_010)[0], round_seed=SEED)
    assert np.count_nonzero(turned) == rotation.block == 2048
    assert np.allclose(np.abs(turned[turned != 0]), 2048**-0.5, rtol=1e-12)


def test_seeds_and_labels_give_unrelated_signs():
    """512 fair signs agree in 256 places up to 7 standard deviations (false alarm 3e-12)."""
    x = np.eye(1, 512)[0]
    first = Rotation(dimension=512).invert(np.eye(1, 512)[0], round_seed=SEED)
    others = [
        Rotation(dimension=512).invert(x, round_seed=bytes(32)),
        Rotation(dimension=512, label=b"another").invert(x, round_seed=SEED),
    ]
    for other in others:
        assert abs(np.count_nonzero(np.sign(first) == np.sign(other)) - 256) < 7 * 512**0.5 / 2


def test_a_seed_and_its_label_cannot_be_cut_elsewhere():
    assert public_bytes(SEED, b"ab", 8) != public_bytes(SEED + b"a", b"b", 8)


@pytest.mark.parametrize("seed", [b"", bytes(15), None, "sixteen letters!"])
def test_a_missing_or_short_seed_is_refused(seed):
    with pytest.raises(ConfigurationError, match="at least 16 bytes"):
        Rotation(dimension=4).apply(np.zeros(4), round_seed=seed)


@pytest.mark.parametrize("d", [0, -1, True, 2.0])
def test_an_impossible_dimension_is_refused(d):
    with pytest.raises(ConfigurationError, match="int >= 1"):
        Rotation(dimension=d)


@pytest.mark.parametrize("values", [np.zeros(5), np.zeros((4, 1)), np.zeros(4, dtype=np.int64)])
def test_another_shape_or_kind_of_vector_is_refused(values):
    with pytest.raises(ConfigurationError, match=r"shape \(4,\)"):
        Rotation(dimension=4).apply(values, round_seed=SEED)
