"""What both sides know: the model's size, and what a client's training does to it."""

from __future__ import annotations

import numpy as np

LENGTH = 2000


def delta(partition: int, server_round: int) -> np.ndarray:
    """float32[LENGTH]: what this client adds to the model in this round."""
    random = np.random.default_rng([77, partition, server_round])
    return random.uniform(-0.5, 0.5, size=LENGTH).astype(np.float32)


def examples(partition: int) -> int:
    """The client's weight."""
    return 10 + 3 * partition


def initial() -> np.ndarray:
    """float32[LENGTH]."""
    return np.random.default_rng(5).normal(size=LENGTH).astype(np.float32)
