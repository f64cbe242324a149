"""The scattering features are those of the definition, of one image, and cost one computation."""

import gc
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.training import scattering
from securefl.training.data import Dataset, DatasetName, TrainTest
from securefl.training.local import FlatModel
from securefl.training.models import build
from securefl.training.scattering import feature_shape, prepared, scattering_features

# ------------------------------------------------------------------ the oracle
#
# A second implementation from the formulas: double precision, one image, one filter at a time,
# filters by a loop over periods. Its convolutions go through NumPy's FFT; a test checks some of
# them against the plain sum over pixels.


def gabor(side, sigma, theta, xi, slant):
    out = np.zeros((side, side), dtype=complex)
    for a in range(-2, 3):
        for b in range(-2, 3):
            u, v = np.mgrid[a * side : (a + 1) * side, b * side : (b + 1) * side]
            p = math.cos(theta) * u + math.sin(theta) * v
            q = -math.sin(theta) * u + math.cos(theta) * v
            out += np.exp(-(p**2 + slant**2 * q**2) / (2 * sigma**2)) * np.exp(1j * xi * p)
    return out * slant / (2 * math.pi * sigma**2)


def morlet(side, j, theta_index):
    sigma, theta = 0.8 * 2**j, (3 - theta_index) * math.pi / 8
    wave = gabor(side, sigma, theta, 3 * math.pi / 4 / 2**j, 0.5)
    bell = gabor(side, sigma, theta, 0.0, 0.5)
    return wave - bell * (wave.sum() / bell.sum())


def convolve(x, kernel):
    return np.fft.ifft2(np.fft.fft2(x) * np.fft.fft2(kernel))


def low_pass(side, resolution):
    spectrum = np.fft.fft2(gabor(side, 1.6, 0.0, 0.0, 1.0)).real
    if resolution:
        keep = [*range(side // 4), *range(side - side // 4, side)]
        spectrum = spectrum[np.ix_(keep, keep)]
    return np.fft.ifft2(spectrum)


def averaged(x, resolution):
    side = len(x) * 2**resolution
    step = 4 >> resolution
    return convolve(x, low_pass(side, resolution)).real[::step, ::step][1:-1, 1:-1]


def oracle(image):
    """81 x 7 x 7 coefficients of a 28 x 28 image, not normalised."""
    x = np.pad(image.astype(float), 4, mode="reflect")
    fine = [np.abs(convolve(x, morlet(36, 0, t))) for t in range(8)]
    coarse = [np.abs(convolve(x, morlet(36, 1, t)))[::2, ::2] for t in range(8)]
    second = [np.abs(convolve(u, morlet(36, 1, t)))[::2, ::2] for u in fine for t in range(8)]
    out = [averaged(x, 0), *(averaged(u, 0) for u in fine)]
    return np.stack(out + [averaged(u, 1) for u in (*coarse, *second)])


def normalised(coefficients):
    groups = coefficients.reshape(27, -1)
    centred = groups - groups.mean(axis=1, keepdims=True)
    return (centred / np.sqrt(groups.var(axis=1, keepdims=True) + 1e-5)).reshape(-1)


def images(n, seed=0, side=28, colours=1):
    return np.random.default_rng(seed).normal(size=(n, colours, side, side)).astype(np.float32)


# ------------------------------------------------------------------ equal to the definition


def test_the_coefficients_equal_a_second_implementation_in_double_precision():
    x = images(3)
    x[1] = 0.0
    x[1, 0, 10:18, 13:15] = 1.0  # a stroke
    found = scattering._scatter(torch.from_numpy(x[:, 0]), scattering._bank(28, 28)).numpy()
    assert found.shape == (3, 81, 7, 7)
    for i in range(3):
        expected = oracle(x[i, 0])
        assert np.abs(found[i] - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_features_equal_the_second_implementation_normalised():
    x = images(11, seed=1)
    found = scattering_features(x)
    assert found.shape == (11, 3969)
    assert found.dtype == np.float32
    for i in (0, 7, 8, 10):  # on both sides of a chunk's border
        assert np.abs(found[i] - normalised(oracle(x[i, 0]))).max() < 1e-3


def test_the_oracles_convolution_is_the_plain_sum_over_pixels():
    rng = np.random.default_rng(2)
    x, kernel = rng.normal(size=(12, 12)), rng.normal(size=(12, 12))
    found = convolve(x, kernel)
    for row, column in ((0, 0), (3, 11), (7, 2)):
        total = sum(
            x[a, b] * kernel[(row - a) % 12, (column - b) % 12]
            for a in range(12)
            for b in range(12)
        )
        assert found[row, column] == pytest.approx(total, abs=1e-12)


def test_the_filters_have_the_announced_mean_and_frequency():
    bank = scattering._bank(28, 28)
    for angle in range(8):
        psi = bank.fine[angle].numpy()
        assert abs(psi[0, 0]) < 1e-6  # no mean
        k, m = np.unravel_index(np.argmax(psi), psi.shape)
        peak = np.array([(k + 18) % 36 - 18, (m + 18) % 36 - 18]) * 2 * math.pi / 36
        theta = (3 - angle) * math.pi / 8
        wanted = 0.75 * math.pi * np.array([math.cos(theta), math.sin(theta)])
        assert np.abs(peak - wanted).max() < 0.35
    for rows, columns in bank.low:
        assert np.allclose(rows.numpy().sum(axis=1), 1.0, atol=1e-5)  # phi is an average
        assert np.allclose(columns.numpy().sum(axis=1), 1.0, atol=1e-5)


# ------------------------------------------------------------------ properties


def test_the_features_of_an_image_do_not_depend_on_the_others():
    x = images(20, seed=3)
    whole = scattering_features(x)
    x[5] *= 1000.0
    changed = scattering_features(x)
    others = np.arange(20) != 5
    assert np.abs(whole[others] - changed[others]).max() < 1e-4
    assert np.abs(whole[7] - scattering_features(x[7:8])[0]).max() < 1e-4


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), shift=st.floats(-10.0, 10.0))
def test_brightness_changes_nothing_but_the_channel_of_means(seed, shift):
    x = images(2, seed=seed)
    one, other = scattering_features(x), scattering_features(x + np.float32(shift))
    # All but the first group, which holds x * phi: the wavelets have no mean.
    assert np.abs(one[:, 147:] - other[:, 147:]).max() < 1e-2


def test_every_group_of_three_channels_has_mean_zero_and_variance_one():
    groups = scattering_features(1000 * images(4)).reshape(4, 27, 147)
    assert np.abs(groups.mean(axis=2)).max() < 1e-5
    assert np.abs(groups.var(axis=2) - 1).max() < 1e-4
    faint = scattering_features(1e-6 * images(4))  # nothing but rounding is not blown up
    assert np.abs(faint).max() < 1e-2


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 28, 28), 3969), ((3, 32, 32), 3 * 81 * 64), ((1, 8, 12), 81 * 2 * 3)],
)
def test_the_shape_of_the_features_is_known_beforehand(shape, expected):
    assert feature_shape(shape) == (expected,)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    assert scattering_features(x).shape == (2, expected)


@pytest.mark.parametrize("shape", [(64,), (28, 28), (1, 4, 28), (0, 28, 28)])
def test_records_that_are_no_images_are_refused_with_their_shape(shape):
    with pytest.raises(ConfigurationError, match="colours, height, width"):
        feature_shape(shape)


def test_images_that_are_not_finite_are_refused():
    x = images(2)
    x[1, 0, 3, 3] = np.nan
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        scattering_features(x)


def test_no_images_have_no_features():
    assert scattering_features(images(0)).shape == (0, 3969)


# ------------------------------------------------------------------ data for a model


def data(seed=0):
    def part(n, seed):
        return Dataset(
            name=DatasetName.MNIST,
            x=images(n, seed=seed, side=12),
            y=np.arange(n) % 3,
            classes=3,
        )

    return TrainTest(train=part(20, seed), test=part(5, seed + 1))


def test_a_scattering_model_takes_prepared_records_and_another_one_takes_them_as_they_are():
    pair = data()
    assert prepared(pair, "softmax") is pair
    made = prepared(pair, "scattering_linear")
    assert made.train.input_shape == made.test.input_shape == feature_shape((1, 12, 12))
    assert np.array_equal(made.train.y, pair.train.y)
    assert np.allclose(made.test.x, scattering_features(pair.test.x), atol=1e-5)
    module = build("scattering_linear", input_shape=made.train.input_shape, classes=3, seed=0)
    model = FlatModel(module)
    assert model.dim == 3 * (feature_shape((1, 12, 12))[0] + 1)
    assert not model.vector().any()
    with pytest.raises(ConfigurationError, match="prepared first"):
        build("scattering_linear", input_shape=(1, 12, 12), classes=3, seed=0)


def test_features_are_computed_once_while_somebody_holds_them_and_progress_counts_all():
    calls = []
    made = prepared(data(7), "scattering_linear", progress=lambda *at: calls.append(at))
    assert calls == [(8, 25), (16, 25), (20, 25), (25, 25)]
    again = prepared(data(7), "scattering_linear", progress=lambda *at: calls.append(at))
    assert len(calls) == 4
    assert again.train.x is made.train.x
    other = prepared(data(8), "scattering_linear", progress=lambda *at: calls.append(at))
    assert len(calls) > 4
    assert not np.array_equal(other.train.x, made.train.x)
    del made, again, other
    gc.collect()
    calls.clear()
    prepared(data(7), "scattering_linear", progress=lambda *at: calls.append(at))
    assert calls
