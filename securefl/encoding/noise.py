"""Step 3, last part: integer noise by table inversion, from secret bytes.

A draw takes 64 random bits and finds their place among the upper words of a table (see
:mod:`securefl.encoding.tables`); if they equal an upper word, 64 more decide. So the law of a draw
is exactly that of the table, within 2^-106 of the true one in total variation. No floating-point
number is involved: noise whose last bits follow its size, as those of floating-point samplers do,
tells which of two inputs was possible (Mironov 2012, *On significance of the least significant
bits for differential privacy*).

The bytes come from the caller and must be secret and never used again: whoever knows them knows
the noise. What stays open is time: table reads are not of constant time, and the time of discrete
samplers can tell about the noise (Jin et al. 2022, *Are we there yet? Timing and floating-point
attacks on differential privacy systems*). This module knows no vectors of clients and no privacy
budget.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from securefl.encoding.tables import Mechanism, NoiseTable, noise_table
from securefl.errors import ConfigurationError

__all__ = ["CHUNK", "Mechanism", "draw", "noise_table", "random_words"]

CHUNK = 1 << 13
"""Draws at a time: all intermediate arrays stay in the core's own cache, and on the heap."""


def draw(table: NoiseTable, count: int, random_bytes: Callable[[int], bytes]) -> NDArray[np.int64]:
    """Independent draws of the table's law.

    Args:
        table: what :func:`noise_table` built.
        count: how many, >= 0.
        random_bytes: secret source; 8 bytes per draw, and 8 more about once in 2^48 draws.

    Returns:
        int64[count], each in [-K, K].

    Raises:
        ConfigurationError: if the source returns another number of bytes.
    """
    drawn = np.empty(count, dtype=np.int64)
    for start in range(0, count, CHUNK):
        piece = drawn[start : start + CHUNK]
        words = random_words(len(piece), random_bytes)
        np.subtract(_places(table, words, random_bytes), table.bound, out=piece)
    return drawn


def random_words(count: int, random_bytes: Callable[[int], bytes]) -> NDArray[np.uint64]:
    """uint64[count] of secret random bits.

    Raises:
        ConfigurationError: if the source returns another number of bytes than asked for.
    """
    raw = random_bytes(8 * count)
    if len(raw) != 8 * count:
        raise ConfigurationError(
            f"random_bytes returned {len(raw)} bytes where {8 * count} were asked for"
        )
    return np.frombuffer(raw, dtype="<u8")


def _places(
    table: NoiseTable, words: NDArray[np.uint64], random_bytes: Callable[[int], bytes]
) -> NDArray[np.int64]:
    """How many of the table's 128-bit numbers are at most the random one that starts with a word.

    A 128-bit number t is at most w 2^64 + v, with v still to be drawn, if its upper word is below
    w; only where it equals w does v matter.
    """
    # The index of a bucket has 16 bits: clipping, the fastest mode of take, never happens.
    found = table.guide.take((words >> np.uint64(48)).view(np.int64), mode="clip")
    wide = np.flatnonzero(found == table.wide)
    places = found.astype(np.int64)
    # These are final: the steps below add nothing where the upper word is not below w.
    places[wide] = np.searchsorted(table.high[:-1], words[wide], side="left")
    if table.steps == 1:  # as most tables: at most one upper word in a bucket, read once
        upper = table.high.take(places, mode="clip")
        ties = np.flatnonzero(upper == words)
        places += upper < words
    else:
        for step in (1 << s for s in reversed(range(table.steps))):
            # Beyond a bucket every upper word is larger than w: the search cannot run out of it.
            last = np.minimum(places + (step - 1), len(table.low))
            places += np.where(table.high.take(last, mode="clip") < words, step, 0)
        ties = np.flatnonzero(table.high.take(places, mode="clip") == words)
    for tie in ties:
        word = words[tie]
        first = int(places[tie])
        end = int(np.searchsorted(table.high[:-1], word, side="right"))
        rest = random_words(1, random_bytes)[0]
        places[tie] = first + int(np.searchsorted(table.low[first:end], rest, side="right"))
    return places
