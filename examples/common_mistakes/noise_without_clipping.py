"""Mistake: N(0, .1) is added to a gradient that has no bound, and is called an epsilon.

How well noise hides one record depends on how far that record can move the result, in units of the
noise. Without clipping there is no such number: scale one record up and it moves the gradient as
far as you like, through any noise. Often the labels are random as well, so that nobody sees the
accuracy that the noise is supposed to cost.

The right version bounds each record's gradient first, scales the noise to that bound, and asks the
accountant how much is needed. Clipping alone would not be private either: it gives the noise
something to be measured against.

    python examples/common_mistakes/noise_without_clipping.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import Comparison, accuracy, compare, digits_module, vector_of
from torch.nn import functional

import accounting
from securefl.training import data
from securefl.training.dpsgd import DPSGD, clipped_gradient_sum
from securefl.training.local import FlatModel, FullGradient, Reduction, limit_threads
from securefl.training.randomness import RandomBytes

EPSILON, DELTA = 8.0, 1e-5
SAMPLE_RATE, STEPS, CLIP_NORM, BATCH = 0.3, 200, 0.5, 64
NOISE_STD = 0.1
SCALES = (1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A trained model, and how far one record moves one step.

    Attributes:
        shifts: by SCALES: length of the change of the released gradient if one record, scaled up
            that much, is left out; in units of the noise's standard deviation.
        accuracy: on test records with their real labels.
    """

    shifts: tuple[float, ...]
    accuracy: float


def claimed_noise_multiplier() -> float:
    """The z that (EPSILON, DELTA) takes for STEPS steps: a record may move a sum by 1/z noises."""
    return _calibrated()


def wrong() -> Outcome:
    train, test = data.load("digits")
    generator = torch.Generator().manual_seed(0)
    module = digits_module()
    labels = torch.randint(0, 10, (len(train),), generator=generator)  # "some data"
    x = torch.from_numpy(train.x)
    for step in range(STEPS):
        chosen = slice(BATCH * step % len(train), BATCH * step % len(train) + BATCH)
        module.zero_grad()
        loss = functional.cross_entropy(module(x[chosen]), labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        with torch.no_grad():
            for p in module.parameters():
                assert p.grad is not None
                p.grad += NOISE_STD * torch.randn(p.shape, generator=generator)
                p.sub_(0.5 * p.grad)

    def mean_gradient(x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float64]:
        trainer = FullGradient(
            model=FlatModel(digits_module()), x=x, y=y, client=0, reduction=Reduction.SUM
        )
        update = trainer.train(np.zeros(650, dtype=np.float32), round_index=0)
        return update.values.astype(np.float64) / BATCH

    return Outcome(
        shifts=_shifts(mean_gradient, noise_std=NOISE_STD),
        accuracy=accuracy(vector_of(module), test),
    )


def right(*, random_bytes: RandomBytes = os.urandom) -> Outcome:
    """DP-SGD: every record's gradient is clipped to C, the noise is z C, z is calibrated."""
    train, test = data.load("digits")
    z = claimed_noise_multiplier()
    model = FlatModel(digits_module())
    start = model.vector()
    trainer = DPSGD(
        model=model,
        x=train.x,
        y=train.y,
        client=0,
        noise_multiplier=z,
        clip_norm=CLIP_NORM,
        sample_rate=SAMPLE_RATE,
        steps=STEPS,
        learning_rate=1.0,
        momentum=0.8,
        random_bytes=random_bytes,
        chunk=512,
    )
    trained = start + trainer.train(start, round_index=0).values

    def clipped_sum(x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float64]:
        model.load(start)
        return clipped_gradient_sum(model, x, y, clip_norm=CLIP_NORM).astype(np.float64)

    return Outcome(
        shifts=_shifts(clipped_sum, noise_std=z * CLIP_NORM), accuracy=accuracy(trained, test)
    )


def check(outcome: Outcome) -> None:
    allowed = 1.0 / claimed_noise_multiplier()
    worst = max(outcome.shifts)
    assert worst <= allowed, (
        f"one record moves the result by {worst:.3g} standard deviations of the noise; epsilon "
        f"{EPSILON:g} allows {allowed:.3g}"
    )
    # DP-SGD reaches .924 on average; its noise moves that by .005 (standard deviation).
    assert outcome.accuracy > 0.9, f"accuracy on real labels is {outcome.accuracy:.1%}"


def _shifts(
    released: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float64]],
    *,
    noise_std: float,
) -> tuple[float, ...]:
    """What one record of a batch changes, before noise, in standard deviations."""
    train, _ = data.load("digits")
    x, y = train.x[:BATCH], train.y[:BATCH]
    without = released(x[1:], y[1:])
    shifts = []
    for scale in SCALES:
        scaled = x.copy()
        scaled[0] *= np.float32(scale)
        shifts.append(float(np.linalg.norm(released(scaled, y) - without)) / noise_std)
    return tuple(shifts)


@cache
def _calibrated() -> float:
    def steps(noise_multiplier: float) -> accounting.Event:
        gaussian = accounting.Gaussian(noise_multiplier=noise_multiplier)
        step = accounting.Poisson(sample_rate=SAMPLE_RATE, event=gaussian)
        return accounting.Repeat(event=step, count=STEPS)

    adjacency = accounting.Adjacency.ZERO_OUT
    return accounting.calibrate(steps, EPSILON, DELTA, adjacency=adjacency).value


def main() -> int:
    limit_threads()
    rows: dict[str, Callable[[Outcome], str]] = {
        f"moved by one record, times {scale:g}": lambda o, i=i: f"{o.shifts[i]:.3g}"  # type: ignore[misc]  # a default binds i
        for i, scale in enumerate(SCALES)
    }
    rows["accuracy on real labels"] = lambda o: f"{o.accuracy:.1%}"
    allowed = 1.0 / claimed_noise_multiplier()
    return compare(
        Comparison(
            title=f"One step, in standard deviations of its noise; allowed: {allowed:.3f}",
            mistake=f"Noise N(0, {NOISE_STD:g}) on unclipped gradients, on random labels.",
            rows=rows,
            check=check,
        ),
        wrong=wrong(),
        right=right(),
    )


if __name__ == "__main__":
    raise SystemExit(main())
