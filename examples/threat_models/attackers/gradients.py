"""A two-layer classifier, its exact per-record gradients, and what they give away.

For one record the gradient of a first-layer row is g_k x and that of its bias g_k, whatever comes
behind: the ratio of both is the record (Phong et al. 2018, "Privacy-Preserving Deep Learning via
Additively Homomorphic Encryption", section 3). In a sum the same holds for every row that exactly
one record activates (Boenisch et al. 2023, "When the Curious Abandon Honesty"; the server here is
honest and takes the rows as they come). NumPy only; this module sees vectors and no client.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from kit.data import CLASSES, PIXELS, digits
from numpy.typing import NDArray

__all__ = [
    "Activation",
    "Net",
    "clip_rows",
    "closed_form",
    "dimension",
    "exclusive_rows",
    "first_layer",
    "fresh_net",
    "looks_like_a_digit",
    "mean_gradient",
    "record_gradients",
]

Floats = NDArray[np.float64]


class Activation(StrEnum):
    """Of the hidden layer."""

    RELU = "relu"
    WINDOW = "window"
    """min(max(v, 0), width): PyTorch's Hardtanh with bounds 0 and width."""


class Net(NamedTuple):
    """W1 float64[H, 64], b1 [H], W2 [10, H], b2 [10]; logits = W2 act(W1 x + b1) + b2."""

    W1: Floats
    b1: Floats
    W2: Floats
    b2: Floats
    activation: Activation = Activation.RELU
    width: float = math.inf


def dimension(hidden: int) -> int:
    """Coordinates of an update of a net with so many hidden units."""
    return hidden * (PIXELS + 1) + CLASSES * (hidden + 1)


def fresh_net(hidden: int, seed: int) -> Net:
    """ReLU, every weight uniform in +-1/sqrt(inputs): PyTorch's default for linear layers."""
    rng = np.random.default_rng(seed)

    def layer(rows: int, columns: int) -> tuple[Floats, Floats]:
        reach = 1 / math.sqrt(columns)
        return rng.uniform(-reach, reach, (rows, columns)), rng.uniform(-reach, reach, rows)

    return Net(*layer(hidden, PIXELS), *layer(CLASSES, hidden))


def forward(net: Net, x: Floats) -> tuple[Floats, Floats, Floats]:
    """Pre-activations [n, H], activations [n, H], softmax probabilities [n, 10]."""
    before = x @ net.W1.T + net.b1
    active = np.clip(before, 0.0, net.width)
    logits = active @ net.W2.T + net.b2
    logits -= logits.max(axis=1, keepdims=True)
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    return before, active, p


def _deltas(net: Net, x: Floats, y: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Activations, and the loss's derivatives by both layers' pre-activations."""
    before, active, p = forward(net, x)
    p[np.arange(len(y)), y] -= 1.0
    inside = (before > 0) & (before < net.width)
    return active, p, (p @ net.W2) * inside


def record_gradients(net: Net, x: Floats, y: NDArray[np.int64]) -> Floats:
    """Cross-entropy gradients of every record, flat: W1, b1, W2, b2. float64[n, d]."""
    active, top, low = _deltas(net, x, y)
    n = len(x)
    return np.concatenate(
        [
            (low[:, :, None] * x[:, None, :]).reshape(n, -1),
            low,
            (top[:, :, None] * active[:, None, :]).reshape(n, -1),
            top,
        ],
        axis=1,
    )


def mean_gradient(net: Net, x: Floats, y: NDArray[np.int64]) -> Floats:
    """The gradient of the mean loss over these records, flat. float64[d]."""
    active, top, low = _deltas(net, x, y)
    flat = np.concatenate([(low.T @ x).ravel(), low.sum(0), (top.T @ active).ravel(), top.sum(0)])
    return np.asarray(flat / len(x), dtype=np.float64)


def clip_rows(gradients: Floats, clip_norm: float = 1.0) -> Floats:
    """Each row scaled to at most this norm, as the codec does; float64[n, d]."""
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return np.asarray(gradients / np.maximum(1.0, norms / clip_norm), dtype=np.float64)


def first_layer(flat: Floats, hidden: int) -> tuple[Floats, Floats]:
    """(gW1 [H, 64], gb1 [H]) of a flat gradient."""
    weights = hidden * PIXELS
    return flat[:weights].reshape(hidden, PIXELS), flat[weights : weights + hidden]


# -- attacks --------------------------------------------------------------------------------------


def closed_form(gW: Floats, gb: Floats) -> Floats:
    """sum_k gb_k gW_k / sum_k gb_k^2: the record of a single update, a blend of a sum. [64]."""
    weight = float(gb @ gb)
    return np.asarray(gb @ gW / weight if weight > 0 else np.full(PIXELS, np.nan))


def exclusive_rows(gW: Floats, gb: Floats, *, floor: float) -> Floats:
    """gW_k / gb_k of every row whose bias gradient is above the floor; float64[k, 64].

    Where a row was activated by one record only this is the record, otherwise a blend.
    """
    used = np.abs(gb) > floor
    return np.asarray(gW[used] / gb[used, None])


def looks_like_a_digit(candidates: Floats, *, within: float = 0.02) -> NDArray[np.bool_]:
    """The rule without an oracle: all pixels in [0, 1] and multiples of 1/16; bool[k].

    That pixels are whole sixteenths is a property of this data set. Photographs have another (a
    multiple of 1/255); without any, "two rows agree" serves.

    Args:
        candidates: float64[k, 64].
        within: how far 16 x may be from a whole number.
    """
    steps = 16 * candidates
    whole = np.abs(steps - np.round(steps)) <= within
    inside = (steps >= -within) & (steps <= 16 + within)
    return np.asarray((whole & inside).all(axis=1))


def distinct(candidates: Floats, *, within: float = 0.14) -> Floats:
    """Candidates without near repeats, each once; float64[k', 64]."""
    kept: list[Floats] = []
    for row in np.unique(np.round(16 * candidates), axis=0) / 16:
        if all(np.linalg.norm(row - other) >= within for other in kept):
            kept.append(row)
    return np.array(kept).reshape(-1, PIXELS)


def are_records(candidates: Floats, rows: NDArray[np.int64], *, within: float = 0.14) -> float:
    """Precision: the fraction of candidates that are one of these records; 1 for none."""
    if not len(candidates):
        return 1.0
    x = digits().x[rows]
    square = np.square(candidates).sum(1)[:, None] - 2 * candidates @ x.T + np.square(x).sum(1)
    return float(np.mean(np.sqrt(np.maximum(square.min(axis=1), 0)) < within))
