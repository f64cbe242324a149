"""Mistake: every client calls `manual_seed(0)` and draws the same noise.

Two things break. The noises are equal, so they add up instead of averaging out: their sum has n^2
times the variance of one, not n times. And they are known: whoever calls `manual_seed(0)` too can
subtract them, and reads every update as if no noise had been added.

Noise that is to protect anything comes from cryptographic bytes, as in the library's trainers and
codecs.

    python examples/common_mistakes/same_seed.py
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import Comparison, compare, digits_module

from securefl.encoding.clip import clip_by_norm
from securefl.training import data, partition
from securefl.training.local import FlatModel, LocalSGD, limit_threads
from securefl.training.randomness import standard_normal

CLIENTS, CLIP_NORM, NOISE_STD = 10, 1.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Ten clipped updates with noise.

    Attributes:
        noises: float64[10, 650], what each client added.
        guessed: how far an observer who assumes `manual_seed(0)` is from each client's update:
            largest error of a coordinate, over all clients.
    """

    noises: NDArray[np.float64]
    guessed: float

    @property
    def variance_ratio(self) -> float:
        """Variance of the sum of the noises over that of one: n where they are independent."""
        return float(np.mean(self.noises.sum(axis=0) ** 2) / np.mean(self.noises**2))


def wrong() -> Outcome:
    updates = _updates()
    noises = np.array([_torch_noise(len(update)) for update in updates])
    return Outcome(noises=noises, guessed=_error_of_the_observer(updates, noises))


def right() -> Outcome:
    """Each client draws from its operating system."""
    updates = _updates()
    noises = np.array([NOISE_STD * standard_normal(len(u), os.urandom) for u in updates])
    return Outcome(noises=noises, guessed=_error_of_the_observer(updates, noises))


def check(outcome: Outcome) -> None:
    n = len(outcome.noises)
    distinct = len({noise.tobytes() for noise in outcome.noises})
    assert distinct == n, f"{n} clients have drawn {distinct} noise vector(s)"
    # Over 650 coordinates the ratio scatters by sqrt(2/650) = 5.6 %; a third is almost six times
    # that, and a false alarm rarer than one in ten million.
    assert abs(outcome.variance_ratio / n - 1.0) < 1.0 / 3.0, (
        f"the sum of {n} noises has {outcome.variance_ratio:.1f} times the variance of one"
    )
    assert outcome.guessed > 0.1, (
        f"an observer reads the updates to within {outcome.guessed:.1g} in each coordinate"
    )


def _torch_noise(count: int) -> NDArray[np.float64]:
    generator = torch.Generator().manual_seed(0)  # as torch.manual_seed(0) on every client
    return np.asarray(NOISE_STD * torch.randn(count, generator=generator).double().numpy())


def _error_of_the_observer(updates: NDArray[np.float64], noises: NDArray[np.float64]) -> float:
    """An observer subtracts the noise of `manual_seed(0)` from what each client sent."""
    sent = updates + noises
    return float(np.abs(sent - _torch_noise(updates.shape[1]) - updates).max())


def _updates() -> NDArray[np.float64]:
    """float64[10, 650]: one epoch on each of ten clients, clipped to CLIP_NORM."""
    train, _ = data.load("digits")
    model = FlatModel(digits_module())
    start = model.vector()
    parts = partition.iid(len(train), clients=CLIENTS, seed=0)
    updates = []
    for k, part in enumerate(parts.indices):
        trainer = LocalSGD(
            model=model,
            x=train.x[part],
            y=train.y[part],
            client=k,
            learning_rate=0.2,
            batch_size=32,
            epochs=1,
        )
        values = trainer.train(start, round_index=0).values
        updates.append(clip_by_norm(values, CLIP_NORM).values)
    return np.array(updates)


def main() -> int:
    limit_threads()
    return compare(
        Comparison(
            title=f"{CLIENTS} clients, noise of variance 1 on 650 coordinates each",
            mistake="Every client seeds its generator with 0 before it draws its noise.",
            rows={
                "different noise vectors": lambda o: str(len({z.tobytes() for z in o.noises})),
                "variance of the sum / variance of one": lambda o: f"{o.variance_ratio:.1f}",
                "an observer with seed 0 reads each coordinate to": lambda o: f"{o.guessed:.1g}",
            },
            check=check,
        ),
        wrong=wrong(),
        right=right(),
    )


if __name__ == "__main__":
    raise SystemExit(main())
