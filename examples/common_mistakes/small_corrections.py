"""Six sentences that are often wrong by a factor, each as a function with a doctest.

1. A client's weight is n_i / n, not 1 / n_i.
2. A secure sum is a sum: n times the mean. So is its noise.
3. Noise that is added outside of eta * gradient is not scaled by eta.
4. Differential privacy is not transport security.
5. Linear convergence needs exact gradients.
6. Several local steps on clients that differ lead to another point.

The last two are measured at length in ``examples/convergence.py``. Run the doctests, and print the
table, with

    python examples/common_mistakes/small_corrections.py
"""

from __future__ import annotations

import doctest
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

import securefl


def shares(examples: Sequence[int]) -> list[float]:
    """Weights in proportion to the clients' examples; they add up to 1.

    With reciprocals the smallest client counts most, and the weights do not even add up to 1:

    >>> shares([100, 300])
    [0.25, 0.75]
    >>> [round(1 / n, 4) for n in [100, 300]]
    [0.01, 0.0033]

    The shares reproduce the mean over all records, whoever holds them:

    >>> values = [1.0, 2.0, 6.0, 7.0]
    >>> means = [np.mean(values[:1]), np.mean(values[1:])]
    >>> float(np.dot(shares([1, 3]), means)), float(np.mean(values))
    (4.0, 4.0)
    """
    total = sum(examples)
    return [n / total for n in examples]


def mean_of_secure_sum(counts: dict[int, list[int]]) -> list[float]:
    """The mean over the clients *in* the sum: the sum divided by the number of survivors.

    >>> counts = {1: [2, 4], 2: [4, 4], 3: [6, 4]}
    >>> securefl.secure_sum(counts).sum.tolist()
    [12, 12]
    >>> mean_of_secure_sum(counts)
    [4.0, 4.0]
    """
    result = securefl.secure_sum(counts)
    return [int(value) / len(result.survivors) for value in result.sum]


def noise_std_of_mean(*, noise_multiplier: float, clip_norm: float, clients: int) -> float:
    """Noise of standard deviation z C on the *sum* is z C / n on the mean.

    One client moves the mean by C / n at most, so the ratio, which is what privacy depends on, is
    z either way. Noise z C on the mean would be n times as much as accounted, and noise z C / n on
    the sum n times too little:

    >>> std = noise_std_of_mean(noise_multiplier=2.0, clip_norm=0.5, clients=10)
    >>> std, std / (0.5 / 10)
    (0.1, 2.0)
    """
    return noise_multiplier * clip_norm / clients


def noise_multiplier_outside(*, noise_std: float, learning_rate: float, clip_norm: float) -> float:
    """What w - eta g + N(0, sigma^2) has for a noise multiplier: sigma / (eta C), not sigma / C.

    Outside of eta * gradient the noise is compared with eta C, since that is how far one record
    moves w. With eta = .1 it is ten times the noise that was meant, and accuracy is lost; with
    eta = 2 it is half of it, and privacy is:

    >>> noise_multiplier_outside(noise_std=1.0, learning_rate=0.125, clip_norm=1.0)
    8.0
    >>> noise_multiplier_outside(noise_std=1.0, learning_rate=2.0, clip_norm=1.0)
    0.5

    Inside, w - eta (g + N(0, sigma^2)), eta scales both and cancels. On a plain mean, too:

    >>> w, eta, g, noise = np.zeros(3), 0.5, np.ones(3), np.array([1.0, -2.0, 4.0])
    >>> (w - eta * (g + noise)).tolist(), (w - eta * g + noise).tolist()
    ([-1.0, 0.5, -2.5], [0.5, -2.5, 3.5])
    """
    return noise_std / (learning_rate * clip_norm)


def on_the_way(message: bytes, *, flip: int) -> bytes:
    """Somebody on the path flips one bit.

    A noised update says nothing about who sent it or whether it arrived as it was sent. Turning
    the top bit of a float64 turns its sign, and the server cannot know:

    >>> import os
    >>> from securefl.training.randomness import standard_normal
    >>> update = np.array([0.5, -0.25]) + 0.1 * standard_normal(2, os.urandom)
    >>> arrived = np.frombuffer(on_the_way(update.tobytes(), flip=63), dtype=np.float64)
    >>> bool(arrived[0] == -update[0]), bool(arrived[1] == update[1])
    (True, True)

    An authenticated channel, like those inside the library's protocols, refuses it:

    >>> from securefl.primitives.channel import Unopenable, open_sealed, seal_once
    >>> key = os.urandom(32)
    >>> sealed = seal_once(key, update.tobytes(), b"client 3, round 7")
    >>> open_sealed(key, sealed, b"client 3, round 7") == update.tobytes()
    True
    >>> try:
    ...     open_sealed(key, on_the_way(sealed, flip=63), b"client 3, round 7")
    ... except Unopenable:
    ...     print("refused")
    refused

    And the channel gives no differential privacy: who opens it reads what was sent.
    """
    changed = bytearray(message)
    changed[flip // 8] ^= 1 << (flip % 8)
    return bytes(changed)


def distances(*, steps: int, rate: float, noise: Sequence[float] = ()) -> list[float]:
    """|w_t| on F(w) = w^2 / 2 from w_0 = 1, with w <- w - eta (w + noise_t); here mu = L = 1.

    Exact gradients shrink it by 1 - mu eta in every step:

    >>> distances(steps=4, rate=0.5)
    [1.0, 0.5, 0.25, 0.125, 0.0625]

    An error in the gradient that does not vanish leaves a distance that does not, either:

    >>> round(distances(steps=40, rate=0.5, noise=[0.125] * 40)[-1], 6)
    0.125
    """
    w, path = 1.0, [1.0]
    for t in range(steps):
        w -= rate * (w + (noise[t] if noise else 0.0))
        path.append(abs(w))
    return path


def fedavg_limit(*, local_steps: int, rate: float) -> float:
    """Where FedAvg ends with two equal clients, F_1 = w^2 / 2 and F_2 = 2 (w - 1)^2.

    Together they are least at w* = 4/5. One local step per round is exact gradient descent and
    gets there. More steps let each client run towards its own optimum, the steeper one faster:

    >>> round(fedavg_limit(local_steps=1, rate=0.1), 6)
    0.8
    >>> round(fedavg_limit(local_steps=10, rate=0.1), 6)
    0.604126
    """
    pulls = np.array([1.0 - (1.0 - rate * h) ** local_steps for h in (1.0, 4.0)])
    w = 0.0
    for _ in range(1000):
        w += float(np.mean(pulls * (np.array([0.0, 1.0]) - w)))
    return w


def main() -> int:
    failed, attempted = doctest.testmod()
    table = Table(title="Often wrong by a factor", title_justify="left")
    for column in ("what", "often", "is"):
        table.add_column(column)
    table.add_row("weights of 100 and 300 examples", "1/100, 1/300", str(shares([100, 300])))
    table.add_row("sum of [2], [4], [6], as a mean", "[12]", "[4.0]")
    std = noise_std_of_mean(noise_multiplier=2.0, clip_norm=0.5, clients=10)
    table.add_row("noise on the mean of 10, z = 2, C = .5", "1.0", f"{std}")
    z = noise_multiplier_outside(noise_std=1.0, learning_rate=2.0, clip_norm=1.0)
    table.add_row("z of noise 1 outside eta g, eta = 2, C = 1", "1.0", f"{z}")
    table.add_row("a flipped bit in a noised update", "noticed", "accepted; in a channel refused")
    stuck = distances(steps=40, rate=0.5, noise=[0.125] * 40)[-1]
    table.add_row("distance after 40 steps, gradients off by .125", "0.5^40", f"{stuck:.3f}")
    table.add_row(
        "FedAvg, E = 10, optimum .8", "0.8", f"{fedavg_limit(local_steps=10, rate=0.1):.3f}"
    )
    Console(width=100, markup=False).print(table)
    print(f"{attempted - failed} of {attempted} doctests pass")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
