"""The scattering transform of small images: fixed features, no parameter, one image at a time.

Two layers of wavelets and moduli (Bruna and Mallat 2013, *Invariant scattering convolution
networks*): with a Gaussian phi and Morlet wavelets psi of J = 2 scales and L = 8 angles,

    S = (x * phi,  |x * psi_1| * phi,  ||x * psi_1| * psi_2| * phi)  with j_2 > j_1,

sampled every 4 pixels: 1 + 16 + 64 = 81 channels, 7 x 7 for an image of 28 x 28. Conventions
(reflected border, filters, periodic convolution, intermediate sampling by 2^j) are those of kymatio
(Andreux et al. 2020, *Kymatio: scattering transforms in Python*), so that published recipes can be
repeated. Each group of three channels is then centred over its pixels and divided by the root of
its variance plus 1e-5 (Wu and He 2018, *Group normalization*).

For private training this is preprocessing by a public function: a record's features depend on that
record alone, no statistic of other records enters, and it costs no privacy. A linear model on these
features is the strongest known small model under DP-SGD on MNIST (Tramèr and Boneh 2021,
*Differentially private learning needs better features (or much more data)*). The features are as
private as the images. This module knows no labels, clients or training.

>>> feature_shape((1, 28, 28))
(3969,)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from securefl.errors import ConfigurationError
from securefl.training.data import Dataset, TrainTest
from securefl.training.models import ModelName

__all__ = [
    "ANGLES",
    "CHANNELS",
    "SCALES",
    "Progress",
    "feature_shape",
    "prepared",
    "scattering_features",
]

SCALES: Final = 2
"""J: the transform averages over 2^J pixels."""

ANGLES: Final = 8
"""L: wavelet angles in half a turn."""

CHANNELS: Final = 1 + SCALES * ANGLES + ANGLES**2 * SCALES * (SCALES - 1) // 2
"""Channels per colour: 81."""

_GROUP: Final = 3
_EPS: Final = 1e-5
_STEP: Final = 2**SCALES
_CHUNK: Final = 8
"""Images at once: what they need stays within the caches."""

Progress = Callable[[int, int], None]
"""``f(done, total)``, called after every few images."""


def feature_shape(input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the features of images [colours, height, width]: one axis.

    Raises:
        ConfigurationError: unless there are three axes, of at least one colour and 8 x 8 pixels.
    """
    if len(input_shape) != 3 or min(input_shape) < 1 or min(input_shape[1:]) < 2 * _STEP:
        raise ConfigurationError(
            "scattering features need images [colours, height, width] of at least "
            f"{2 * _STEP} x {2 * _STEP} pixels, found records of shape {input_shape}"
        )
    colours, *sides = input_shape
    return (colours * CHANNELS * math.prod(_padded(side) // _STEP - 2 for side in sides),)


def scattering_features(
    x: NDArray[np.float32], *, progress: Progress = lambda done, total: None
) -> NDArray[np.float32]:
    """Scattering coefficients of each image, normalised within the image.

    Args:
        x: float32[n, colours, height, width], finite.
        progress: told how many images are done.

    Returns:
        float32[n, d] with (d,) = :func:`feature_shape`; channels in the order of the orders, then
        of scale and angle, each row by row.

    Raises:
        ConfigurationError: if x is not images, or not finite.
    """
    shape = feature_shape(tuple(x.shape[1:]))
    if not np.isfinite(x).all():
        raise ConfigurationError("the images contain NaN or infinity; drop or repair the records")
    features = np.empty((len(x), *shape), dtype=np.float32)
    bank = _bank(*x.shape[2:])
    with torch.no_grad():
        for first in range(0, len(x), _CHUNK):
            part = slice(first, min(first + _CHUNK, len(x)))
            images = torch.from_numpy(np.ascontiguousarray(x[part], dtype=np.float32))
            found = _scatter(images.flatten(end_dim=1), bank)
            found = found.view(len(images), -1, *found.shape[2:])
            normal = functional.group_norm(found, found.shape[1] // _GROUP, eps=_EPS)
            features[part] = normal.flatten(start_dim=1).numpy()
            progress(part.stop, len(x))
    return features


# Features live as long as somebody holds them; MNIST's take a gigabyte.
_KNOWN: WeakValueDictionary[bytes, NDArray[np.float32]] = WeakValueDictionary()


def prepared(
    data: TrainTest, model: ModelName | str, *, progress: Progress = lambda done, total: None
) -> TrainTest:
    """The records as the model takes them: scattering features for ``scattering_linear``.

    For any other model the same object. Features of the same images are computed once, as long as
    some part of the program still holds them.

    Args:
        data: training and test records.
        model: the model they are for.
        progress: told how many of all images are done, if any have to be computed.

    Raises:
        ConfigurationError: as :func:`scattering_features`.
    """
    if model != ModelName.SCATTERING_LINEAR:
        return data
    total, train = len(data.train) + len(data.test), len(data.train)
    return TrainTest(
        train=_featured(data.train, lambda done, _: progress(done, total)),
        test=_featured(data.test, lambda done, _: progress(train + done, total)),
    )


def _featured(part: Dataset, progress: Progress) -> Dataset:
    feature_shape(part.input_shape)
    digest = hashlib.sha256(repr(part.x.shape).encode())
    digest.update(np.ascontiguousarray(part.x).data)
    key = digest.digest()
    features = _KNOWN.get(key)
    if features is None:
        features = scattering_features(part.x, progress=progress)
        _KNOWN[key] = features
    return replace(part, x=features, feature_names=())


# ---------------------------------------------------------------- the transform


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bank:
    """Filters for one image size, height M and width N after padding, in Fourier space.

    Attributes:
        border: pixels to reflect: left, right, top, bottom.
        fine: float32[L, M, N], psi of scale 0.
        coarse: float32[L, 2, M/2, 2, N/2], psi of scale 1, its aliases under sampling by 2 apart.
        low: per resolution 2^0 and 2^1 the two matrices that average the rows and columns with phi,
            sample to a step of 4 and leave out the outermost ring.
    """

    border: tuple[int, int, int, int]
    fine: Tensor
    coarse: Tensor
    low: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def _scatter(images: Tensor, bank: _Bank) -> Tensor:
    """float32[n, height, width] to [n, 81, rows, columns]."""
    x = functional.pad(images[:, None], bank.border, mode="reflect")
    # U_1 at scale 0 keeps full resolution, since a second wavelet follows.
    fine = _modulus(torch.fft.ifft2(torch.fft.fft2(x) * bank.fine))
    # Scale 1 of the image and of every U_1: n x (1 + L) planes, L wavelets, half resolution.
    planes = torch.fft.fft2(torch.cat([x, fine], dim=1))
    M, N = planes.shape[-2:]
    planes = planes.view(len(x), 1 + ANGLES, 1, 2, M // 2, 2, N // 2)
    # Sampling by 2 adds the four aliases: one by one, for a product of all would leave the caches.
    folded = sum(
        planes[:, :, :, a, :, b] * bank.coarse[:, a, :, b] for a in range(2) for b in range(2)
    )
    coarse = _modulus(torch.fft.ifft2(folded))
    parts = [
        _average(x, bank.low[0]),
        _average(fine, bank.low[0]),
        _average(coarse.flatten(start_dim=1, end_dim=2), bank.low[1]),
    ]
    return torch.cat(parts, dim=1)


def _modulus(values: Tensor) -> Tensor:
    # Faster than abs, which guards against overflow that pixels cannot cause.
    return torch.view_as_real(values).square().sum(dim=-1).sqrt()


def _average(planes: Tensor, low: tuple[Tensor, Tensor]) -> Tensor:
    """Averages with phi, a product of a function of the row and one of the column."""
    rows, columns = low
    return rows @ planes @ columns.T


# ---------------------------------------------------------------- the filters


def _padded(side: int) -> int:
    """The next but one multiple of 4: at least 4 pixels of border in all, 4 on each side for 28."""
    return ((side + _STEP) // _STEP + 1) * _STEP


@lru_cache(maxsize=8)
def _bank(height: int, width: int) -> _Bank:
    """The filters for images of this size."""
    M, N = _padded(height), _padded(width)
    fine = np.stack([_psi(M, N, 0, angle) for angle in range(ANGLES)])
    coarse = np.stack([_psi(M, N, 1, angle) for angle in range(ANGLES)])
    top, left = (M - height) // 2, (N - width) // 2
    return _Bank(
        border=(left, N - width - left, top, M - height - top),
        fine=_tensor(fine),
        # A mean over aliases, as sampling in space by 2 in both directions takes.
        coarse=_tensor(coarse.reshape(ANGLES, 2, M // 2, 2, N // 2) / 4.0),
        low=(
            (_tensor(_averaging(M, 0)), _tensor(_averaging(N, 0))),
            (_tensor(_averaging(M, 1)), _tensor(_averaging(N, 1))),
        ),
    )


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _psi(M: int, N: int, scale: int, angle: int) -> NDArray[np.float64]:
    """A Morlet wavelet in Fourier space, float64[M, N]: a Gabor function less its mean.

    sigma = .8 2^j, frequency (3 pi/4)/2^j, angle (3 - theta) pi/8, slant 1/2.
    """
    sigma, xi = 0.8 * 2.0**scale, 0.75 * math.pi / 2.0**scale
    theta = (ANGLES // 2 - 1 - angle) * math.pi / ANGLES
    wave = _gabor(M, N, sigma, theta, xi)
    envelope = _gabor(M, N, sigma, theta, 0.0)
    morlet = wave - wave.sum() / envelope.sum() * envelope
    # Real up to rounding: the wavelet at -u is the conjugate of that at u.
    return np.asarray(np.fft.fft2(morlet).real, dtype=np.float64)


def _gabor(
    M: int, N: int, sigma: float, theta: float, xi: float, *, slant: float = 4.0 / ANGLES
) -> NDArray[np.complex128]:
    """A plane wave under a slanted Gaussian of unit integral, periodised, complex128[M, N]."""
    # Two periods on each side: what is left out is below e^-100.
    u = np.arange(-2 * M, 3 * M, dtype=np.float64)[:, None]
    v = np.arange(-2 * N, 3 * N, dtype=np.float64)[None, :]
    along, across = (
        u * math.cos(theta) + v * math.sin(theta),
        v * math.cos(theta) - u * math.sin(theta),
    )
    decay = (along**2 + (slant * across) ** 2) / (2.0 * sigma**2)
    whole = np.exp(-decay + 1j * xi * along) * (slant / (2.0 * math.pi * sigma**2))
    return np.asarray(whole.reshape(5, M, 5, N).sum(axis=(0, 2)), dtype=np.complex128)


def _averaging(side: int, scale: int) -> NDArray[np.float64]:
    """Averages with phi along one axis, to a step of 4: float64[rows, side/2^scale].

    A periodic Gaussian of sigma .8 2^(J-1), cut in Fourier space to the frequencies that
    resolution 2^scale has. The first and last sample are left out, for they see mostly border.
    """
    sigma = 0.8 * 2.0 ** (SCALES - 1)
    u = np.arange(-2 * side, 3 * side, dtype=np.float64)
    bell = np.exp(-(u**2) / (2.0 * sigma**2)) / (math.sqrt(2.0 * math.pi) * sigma)
    spectrum = np.fft.fft(bell.reshape(5, side).sum(axis=0)).real
    size = side >> scale
    if scale:
        half = size // 2
        spectrum = np.concatenate([spectrum[:half], spectrum[-(size - half) :]])
    kernel = np.fft.ifft(spectrum).real
    circulant = np.stack([np.roll(kernel, shift) for shift in range(size)])
    return circulant[:: _STEP >> scale][1:-1]
