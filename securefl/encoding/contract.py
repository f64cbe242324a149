"""What all codecs have in common: the interface between encoding and the steps around it.

Whoever drives a round needs a ring, a length, a digest, a way there, a way back and the privacy
event of an opened sum, and not which codec it is. This module knows no arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from securefl.modular import RingVector
from securefl.round import AggregateSum, ClientId

if TYPE_CHECKING:
    from accounting.events import Event

__all__ = ["AggregateUpdate", "Codec"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AggregateUpdate:
    """The decoded result of a round.

    Attributes:
        mean: float64[d], the (weighted) mean update, in the units of the update.
        weight: what the sum was divided by: the sum of weights, the given denominator, or the
            number of survivors. Positive.
        survivors: whose updates are in the sum.
    """

    mean: NDArray[np.float64]
    weight: float
    survivors: tuple[ClientId, ...]


class Codec(Protocol):
    """What every codec offers: the plain one, the one with noise, and a compressed one."""

    @property
    def dimension(self) -> int:
        """d, coordinates of an update."""

    @property
    def modulus(self) -> int:
        """The ring's m."""

    @property
    def length(self) -> int:
        """Entries of an encoded vector."""

    def digest(self) -> bytes:
        """32 bytes that differ where codecs differ; part of the round's context."""

    def encode(
        self,
        values: NDArray[np.floating[Any]],
        *,
        weight: int = 1,
        round_seed: bytes = b"",
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> RingVector:
        """One client's update as integers modulo m, to be used once."""

    def decode(
        self,
        aggregate: AggregateSum,
        *,
        round_seed: bytes = b"",
        denominator: float | None = None,
    ) -> AggregateUpdate:
        """The opened sum as a mean."""

    def event(self, survivors: int, colluding: int = 0) -> Event:
        """The privacy event of one opened sum, without sampling and composition."""
