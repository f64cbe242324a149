"""What is put into one client's update to be found again in the release.

A defect shows only if it moves some canary's score: noise that repeats every round is invisible to
a canary that repeats too, and a clip per layer to a canary that lies in one layer. So there are
several, all with a norm far above the clip norm, at different places among the clients.

This module knows no mechanism and no score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from accounting.errors import InvalidParameter

__all__ = ["Canary", "default_canaries"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One client's update in every round; all other clients send zero.

    Attributes:
        name: for the report; unique within one audit.
        update: float64[T, d], finite, not zero everywhere.
        position: index of that client among the clients, >= 0.

    Raises:
        InvalidParameter: if the update is no such array or the position is negative.
    """

    name: str
    update: NDArray[np.float64] = field(repr=False)
    position: int = 0

    def __post_init__(self) -> None:
        found = np.array(self.update, dtype=np.float64)
        if found.ndim != 2 or not np.isfinite(found).all() or not found.any():
            raise InvalidParameter(
                f"canary {self.name!r}: its update must be a finite array [rounds, dimension] that "
                f"is not all zero, found shape {found.shape}"
            )
        if isinstance(self.position, bool) or self.position < 0:
            raise InvalidParameter(
                f"canary {self.name!r}: its position must be an index >= 0, found {self.position!r}"
            )
        found.setflags(write=False)
        object.__setattr__(self, "update", found)


def default_canaries(
    *, rounds: int, clients: int, dimension: int, norm: float
) -> tuple[Canary, ...]:
    """Five canaries; every round's update has L2 norm ``norm``.

    * ``spike``: everything in the first coordinate;
    * ``dense``: every coordinate alike;
    * ``alternating``: dense, with a sign that changes from round to round;
    * ``two-layer``: the first half of the coordinates positive, the second negative;
    * ``last``: everything in the last coordinate.

    They stand at clients spread from the first to the last.
    """
    flat = np.ones(dimension) / math.sqrt(dimension)
    first, last = np.zeros(dimension), np.zeros(dimension)
    first[0] = last[-1] = 1.0
    halves = np.where(np.arange(dimension) < (dimension + 1) // 2, 1.0, -1.0)
    signs = np.where(np.arange(rounds) % 2 == 0, 1.0, -1.0)
    always = np.ones(rounds)
    shapes = {
        "spike": np.outer(always, first),
        "dense": np.outer(always, flat),
        "alternating": np.outer(signs, flat),
        "two-layer": np.outer(always, flat * halves),
        "last": np.outer(always, last),
    }
    places = np.linspace(0, clients - 1, len(shapes)).round().astype(int)
    return tuple(
        Canary(name=name, update=norm * shape, position=int(place))
        for (name, shape), place in zip(shapes.items(), places, strict=True)
    )
