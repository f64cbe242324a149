"""Repeatable coins for tests of whole runs. **A run that uses them protects nobody.**

Two runs with the same seed draw the same samples, coins and noise, so that two ways to sum can be
compared bit by bit. Whoever knows the seed subtracts the noise. A run that was given such a source
is marked for good: in the header of its ledger, in its summary and in the report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from securefl.primitives.prg import KEY_BYTES, expand

__all__ = ["InsecureRandomness"]


class InsecureRandomness:
    """Streams of bytes that follow from a seed.

    Args:
        seed: any integer of 64 bits.

    >>> source = InsecureRandomness(1)
    >>> source.stream(3, 0, "noise")(4) == source.stream(3, 0, "noise")(4)
    True
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed.to_bytes(8, "little")

    def stream(self, client: int, round_index: int, purpose: str) -> Callable[[int], bytes]:
        """A new stream from its beginning; the same arguments give the same bytes."""
        label = f"{client}/{round_index}/{purpose}".encode()
        key = hashlib.sha256(b"insecure\0" + self._seed + label).digest()[:KEY_BYTES]
        position = 0

        def random_bytes(count: int) -> bytes:
            nonlocal position
            words = -(-count // 8)
            made = expand(key, words, np.uint64, start=position)
            position += words
            return made.astype("<u8").tobytes()[:count]

        return random_bytes
