"""Clients that leave the noise out, and mistakes around the noisy codec.

One method or one argument away from what ships, like the weakened clients of
:mod:`attackers.weakened`. Nobody but the client itself can tell: what it sends is a vector of ring
elements under a mask, with or without noise.
"""

from __future__ import annotations

import os
from typing import NoReturn

import numpy as np
from kit.streams import RandomBytes, keyed
from numpy.typing import NDArray

from securefl.encoding.clip import clip_by_norm
from securefl.encoding.noisy import NoisyCodec
from securefl.primitives.prg import SecureRandom

__all__ = ["SilentCodec", "SourceOfRepeats", "StaleRandom", "weighted_after_clipping"]


class SilentCodec(NoisyCodec):
    """A client that adds no share: a Sybil, or one that prefers an exact result."""

    def _share(self, random_bytes: RandomBytes) -> NDArray[np.int64]:
        return np.zeros(self.spec.padded, dtype=np.int64)


def weighted_after_clipping(update: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clipped to norm 1 and then multiplied by three: its norm is 3."""
    return clip_by_norm(update, 1.0).values * 3.0


class SourceOfRepeats:
    """A source that starts again in every round: round 2 has the noise of round 1."""

    def __init__(self, seed: int) -> None:
        self._seed, self._run = seed, 0

    def __call__(self, index: int) -> RandomBytes:
        """The source of one round; round 0 begins a new run."""
        self._run += index == 0
        return keyed(self._seed, "run", self._run)


class StaleRandom(SecureRandom):
    """The fast stream without its look at the process: it survives a fork with its key."""

    __slots__ = ()

    def random_bytes(self, n: int) -> bytes:
        """The next bytes; in two children the same ones."""
        self._pid = os.getpid()
        return super().random_bytes(n)

    def __reduce__(self) -> NoReturn:
        raise TypeError("not to be copied")
