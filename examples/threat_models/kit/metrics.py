"""How well an attack did, what an attacker without the transcript gets, and what theory allows.

All metrics grow with the attacker's success. Caps are those of the Gaussian mechanism, mu =
sqrt(T) / z for T releases of a sum with noise z C (Dong, Roth, Su 2022, "Gaussian Differential
Privacy"), exact and without sampling.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, log_ndtr, ndtr, ndtri  # scipy.stats is slow to import

from kit import data

__all__ = [
    "Estimate",
    "auc",
    "auc_cap",
    "blind_image",
    "class_image",
    "clopper_pearson",
    "equal_fraction",
    "exact_fraction",
    "gaussian_delta",
    "gaussian_epsilon",
    "ident",
    "mu_of",
    "psnr",
    "tpr_at_fpr",
    "tpr_cap",
    "tpr_cap_of_epsilon",
]

Floats = NDArray[np.float64]
DELTA = 1e-5
MOST_DB = 120.0
"""PSNR of an exact copy; beyond it only rounding is measured."""


class Estimate(NamedTuple):
    """A rate or an area with its 95 % interval."""

    value: float
    low: float
    high: float


# -- images ---------------------------------------------------------------------------------------


def psnr(found: ArrayLike, original: ArrayLike) -> Floats:
    """Peak signal-to-noise ratio in dB per image, after clamping to [0, 1]; at most 120.

    >>> float(psnr([[0.0, 2.0]], [[0.1, 1.0]])[0].round(2))
    23.01
    """
    a, b = np.atleast_2d(np.asarray(found, float)), np.atleast_2d(np.asarray(original, float))
    a = np.clip(np.nan_to_num(a, nan=0.5, posinf=1.0, neginf=0.0), 0.0, 1.0)
    mse = np.square(a - b).mean(axis=1)
    db: Floats = -10.0 * np.log10(np.maximum(mse, 10.0 ** (-MOST_DB / 10)))
    return db


def ident(found: ArrayLike, victims: ArrayLike) -> float:
    """Fraction of reconstructions whose nearest of all 1797 images is the victim.

    Args:
        found: float[n, 64].
        victims: int[n], rows of the data set.
    """
    a = np.clip(np.nan_to_num(np.atleast_2d(np.asarray(found, float))), 0.0, 1.0)
    x = data.digits().x
    square = np.square(a).sum(1)[:, None] - 2 * a @ x.T + np.square(x).sum(1)
    return float(np.mean(square.argmin(axis=1) == np.asarray(victims)))


def exact_fraction(found: ArrayLike, originals: ArrayLike, *, within: float = 0.14) -> float:
    """Fraction of originals that some reconstruction meets within this L2 distance."""
    a, b = np.atleast_2d(np.asarray(found, float)), np.atleast_2d(np.asarray(originals, float))
    if a.size == 0:
        return 0.0
    square = np.square(b).sum(1)[:, None] - 2 * b @ a.T + np.square(a).sum(1)
    return float(np.mean(np.sqrt(np.maximum(square.min(axis=1), 0)) < within))


def equal_fraction(found: ArrayLike | None, original: ArrayLike) -> float:
    """Fraction of ring elements that are equal; 0 if nothing was found."""
    return 0.0 if found is None else float(np.mean(np.asarray(found) == np.asarray(original)))


def blind_image() -> Floats:
    """The public mean image: what somebody guesses who saw nothing. 64 pixels."""
    mean: Floats = data.public().x.mean(axis=0)
    return mean


def class_image(label: int) -> Floats:
    """The public mean of one class: for an attacker that knows the label only."""
    known = data.public()
    mean: Floats = known.x[known.y == label].mean(axis=0)
    return mean


# -- yes or no ------------------------------------------------------------------------------------


def clopper_pearson(hits: int, trials: int, *, confidence: float = 0.95) -> Estimate:
    """A rate with its exact two-sided interval.

    >>> clopper_pearson(0, 100).high.__round__(3)
    0.036
    """
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(f"expected 0 <= hits <= trials, found {hits} of {trials}")
    tail = (1 - confidence) / 2
    low = float(betaincinv(hits, trials - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 1 - tail)) if hits < trials else 1.0
    return Estimate(hits / trials, low, high)


def auc(members: ArrayLike, others: ArrayLike) -> Estimate:
    """P(score of a member > of a non-member), ties count half, with DeLong's 95 % interval.

    DeLong, DeLong, Clarke-Pearson 1988, "Comparing the Areas under Two or More Correlated Receiver
    Operating Characteristic Curves". At 0 and 1, where that variance is 0, the rule of three.
    """
    a, b = np.asarray(members, float), np.asarray(others, float)
    m, n = len(a), len(b)
    if m < 2 or n < 2:
        raise ValueError(f"an AUC needs two scores on each side, found {m} and {n}")
    ranks = _ranks(np.concatenate([a, b]))
    above = (ranks[:m] - _ranks(a)) / n  # per member: fraction of others below it
    below = 1 - (ranks[m:] - _ranks(b)) / m
    value = float(above.mean())
    error = math.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    error = max(error, 3.0 / min(m, n) / 1.96) if value in (0.0, 1.0) else error
    return Estimate(value, max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error))


def _ranks(values: Floats) -> Floats:
    """1 for the smallest; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def tpr_at_fpr(members: ArrayLike, others: ArrayLike, fpr: float = 0.01) -> Estimate:
    """Members found at a threshold that at most this fraction of the non-members passes.

    The interval is Clopper-Pearson's for the members at that threshold.
    """
    a, b = np.asarray(members, float), np.sort(np.asarray(others, float))[::-1]
    allowed = int(fpr * len(b) + 1e-9)
    threshold = b[allowed] if allowed < len(b) else -np.inf  # strictly above it: <= allowed others
    return clopper_pearson(int(np.sum(a > threshold)), len(a))


# -- caps -----------------------------------------------------------------------------------------


def mu_of(z: float, rounds: int = 1) -> float:
    """Mu of ``rounds`` sums with noise of standard deviation z C."""
    return math.sqrt(rounds) / z if z > 0 else math.inf


def auc_cap(mu: float) -> float:
    """The most area any attacker on a mu-GDP release can have: Phi(mu / sqrt 2)."""
    return float(ndtr(mu / math.sqrt(2)))


def tpr_cap(mu: float, fpr: float) -> float:
    """The most true positives at this rate of false ones: Phi(Phi^-1(fpr) + mu)."""
    return 1.0 if math.isinf(mu) else float(ndtr(ndtri(fpr) + mu))


def tpr_cap_of_epsilon(epsilon: float, delta: float, fpr: float) -> float:
    """The same for any (epsilon, delta): min(e^eps f + delta, 1 - e^-eps (1 - delta - f))."""
    first = math.exp(min(epsilon, 700.0)) * fpr + delta
    return max(fpr, min(1.0, first, 1 - math.exp(-epsilon) * (1 - delta - fpr)))


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Delta of the mu-GDP mechanism at epsilon, exact (Balle and Wang 2018).

    In logarithms where e^eps overflows.
    """
    if mu <= 0:
        return 0.0
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return max(0.0, float(ndtr(mu / 2 - epsilon / mu)) - math.exp(second))


def gaussian_epsilon(mu: float, delta: float = DELTA) -> float:
    """Epsilon of the mu-GDP mechanism at delta, exact.

    >>> round(gaussian_epsilon(mu_of(1.0)), 2), round(gaussian_epsilon(mu_of(4.0)), 2)
    (4.38, 0.92)
    """
    if mu <= 0 or gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    if math.isinf(mu):
        return math.inf
    low, high = 0.0, mu * mu / 2 + mu * 10 + 1
    while high - low > 1e-10 * max(1.0, high):  # delta falls with epsilon
        middle = (low + high) / 2
        low, high = (low, middle) if gaussian_delta(mu, middle) <= delta else (middle, high)
    return high
