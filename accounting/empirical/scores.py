"""Ways to guess from a release whether the canary was in it, and the choice among them.

Each score is a number per run that should be larger with the canary than without. What a score
needs to learn comes from the *fit* runs, which score and which threshold from the *tune* runs; the
errors that become a bound are counted elsewhere, on runs that nothing here has seen. With that
separation every score is sound, however wild: a bad one only finds less.

* ``projection``: <release, canary>. The best there is for independent noise of equal size.
* ``whitened``: <S^-1 canary, release>, S the noise's covariance: coordinates, rounds or directions
  with too little noise weigh more.
* ``difference``: the same with the observed difference of means in place of the canary, for
  releases that move elsewhere than the canary.
* ``energy``: the release's size in units of its usual noise, for noise that depends on the data.
* ``repeats``: rows of the release that were seen before, with or without the canary: noise that is
  sometimes left out, or comes from few seeds.
* ``grid``: coordinates off the grid on which the release lies without the canary: noise in coarser
  steps than the values.

This module counts nothing and decides nothing about a claim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Attack", "best_attack"]

Floats = NDArray[np.float64]
Score = Callable[[Floats], Floats]
"""float64[runs, T, d] -> float64[runs]."""

Objective = Callable[[NDArray[np.int64], int, NDArray[np.int64], int], Floats]
"""(false negatives, runs in, false positives, runs out) -> bound, elementwise."""

_THRESHOLDS = 100
_FULL_COVARIANCE = 512  # entries of a release beyond which only variances are estimated
_RIDGE = 1e-6  # of a variance: how little noise a direction can be seen to have


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A score and the threshold above which the guess is "in"."""

    name: str
    score: Score
    threshold: float

    def guesses(self, released: Floats) -> NDArray[np.bool_]:
        """bool[runs], true where the guess is "in"."""
        return np.asarray(self.score(released) > self.threshold, dtype=np.bool_)


class NoiseShape:
    """The noise around the mean of each world, as the fit runs of all worlds show it.

    Args:
        worlds: float64[runs, T, d] each; at least two runs in each.
    """

    def __init__(self, worlds: list[Floats]) -> None:
        flat = [(one - one.mean(axis=0)).reshape(len(one), -1) for one in worlds]
        freedom = sum(len(one) - 1 for one in flat)
        entries = flat[0].shape[1]
        variance = sum(np.einsum("rj,rj->j", one, one) for one in flat) / freedom
        largest = float(variance.max())
        # Where there is no noise at all, a little: its directions then outweigh all others.
        floor = 1e-18 * largest if largest > 0 else 1.0
        self.variance = np.asarray(variance + floor, dtype=np.float64)
        self._covariance = None
        if entries <= _FULL_COVARIANCE and freedom >= 4 * entries:
            covariance = sum(one.T @ one for one in flat) / freedom
            self._covariance = covariance + np.diag(_RIDGE * variance + floor)

    def whiten(self, direction: Floats) -> Floats:
        """S^-1 times a direction float64[T, d]."""
        if self._covariance is None:
            return np.asarray(direction / self.variance.reshape(direction.shape))
        found = np.linalg.solve(self._covariance, direction.ravel())
        return np.asarray(found.reshape(direction.shape), dtype=np.float64)


def best_attack(
    canary: Floats,
    fit: tuple[Floats, Floats],
    tune: tuple[Floats, Floats],
    noise: NoiseShape,
    objective: Objective,
) -> Attack:
    """The score and threshold with the largest bound on the tune runs.

    Args:
        canary: float64[T, d].
        fit: releases with and without the canary, float64[runs, T, d] each.
        tune: the same, of other runs.
        noise: the noise around the mean of each world, from fit runs.
        objective: the bound to maximise.
    """
    best, value = None, -np.inf
    for name, score in _scores(canary, *fit, noise):
        inside, outside = score(tune[0]), score(tune[1])
        thresholds = np.quantile(
            np.concatenate((inside, outside)), np.linspace(0, 1, _THRESHOLDS, endpoint=False)
        )
        missed = np.searchsorted(np.sort(inside), thresholds, side="right")
        raised = len(outside) - np.searchsorted(np.sort(outside), thresholds, side="right")
        found = objective(missed, len(inside), raised, len(outside))
        at = int(np.argmax(found))
        if best is None or found[at] > value:
            best = Attack(name=name, score=score, threshold=float(thresholds[at]))
            value = found[at]
    assert best is not None  # noqa: S101  # the projection always exists
    return best


def _scores(
    canary: Floats, inside: Floats, outside: Floats, noise: NoiseShape
) -> Iterator[tuple[str, Score]]:
    yield "projection", _along(canary)
    yield "whitened", _along(noise.whiten(canary))
    yield "difference", _along(noise.whiten(inside.mean(axis=0) - outside.mean(axis=0)))
    yield "energy", _energy(inside, outside, noise)
    if (repeats := _repeats(inside, outside)) is not None:
        yield "repeats", repeats
    if (grid := _grid(outside)) is not None:
        yield "grid", grid


def _along(direction: Floats) -> Score:
    weights = direction.ravel()
    return lambda released: np.asarray(released.reshape(len(released), -1) @ weights)


def _energy(inside: Floats, outside: Floats, noise: NoiseShape) -> Score:
    inverse = 1 / noise.variance

    def energy(released: Floats) -> Floats:
        return np.asarray(released.reshape(len(released), -1) ** 2 @ inverse)

    sign = 1.0 if energy(inside).mean() >= energy(outside).mean() else -1.0
    return lambda released: sign * energy(released)


def _rows(released: Floats) -> Iterator[list[tuple[int, bytes]]]:
    """Per run, its rounds' rows as keys; -0.0 and 0.0 are one value."""
    for run in released + 0.0:
        yield [(t, row.tobytes()) for t, row in enumerate(run)]


def _repeats(inside: Floats, outside: Floats) -> Score | None:
    """Log likelihood ratio of rows by how often the fit runs had them; None if none came twice."""
    seen_in = Counter(key for keys in _rows(inside) for key in keys)
    seen_out = Counter(key for keys in _rows(outside) for key in keys)
    ratio = {
        key: float(np.log((seen_in[key] + 0.5) / (seen_out[key] + 0.5)))
        for key in seen_in | seen_out
        if seen_in[key] + seen_out[key] > 1
    }
    if not ratio:
        return None
    return lambda released: np.array(
        [sum(ratio.get(key, 0.0) for key in keys) for keys in _rows(released)]
    )


def _grid(outside: Floats) -> Score | None:
    """Coordinates off the multiples of the smallest value without a canary; None without a grid."""
    sizes = np.abs(outside[outside != 0])
    if not sizes.size:
        return None
    step = float(sizes.min())

    def off(released: Floats) -> NDArray[np.bool_]:
        with np.errstate(over="ignore", invalid="ignore"):
            steps = released / step
            return np.asarray(np.abs(steps - np.rint(steps)) > 1e-6)

    if off(outside).any() or float(sizes.max()) > 1e9 * step:
        return None
    return lambda released: off(released).sum(axis=(1, 2), dtype=np.float64)
