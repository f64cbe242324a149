"""What all codecs have in common: the interface between encoding and the steps around it.

Whoever drives a round needs a ring, a length, a digest, a way there, a way back and the privacy
event of an opened sum, and not which codec it is. This module knows no arithmetic.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.modular import RingVector
from securefl.round import AggregateSum, ClientId

if TYPE_CHECKING:
    from accounting.events import Event

__all__ = ["AggregateUpdate", "Codec", "check_aggregate", "check_share", "divisor_of"]


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


def check_share(share: float) -> float:
    """The factor on a clipped update.

    Raises:
        ConfigurationError: unless it is in [0, 1]. A larger one would make a contribution longer
            than the norm that the noise is for.
    """
    if isinstance(share, bool) or not 0.0 <= share <= 1.0:  # also NaN
        raise ConfigurationError(
            f"share must be in [0, 1], found {share!r}: it scales an update after clipping, and a "
            "larger factor would undo the clip; cap the weight by a public number first"
        )
    return float(share)


def check_aggregate(
    aggregate: AggregateSum, *, modulus: int, length: int, max_clients: int
) -> None:
    """Refuses a sum that is not one of this codec's vectors, or of more clients than it is for.

    Raises:
        ConfigurationError: with what was expected and found.
    """
    vector, survivors = aggregate.vector, len(aggregate.survivors)
    if vector.modulus != modulus or len(vector) != length:
        raise ConfigurationError(
            f"expected {length} entries mod {modulus}, found {len(vector)} entries mod "
            f"{vector.modulus}"
        )
    if not 1 <= survivors <= max_clients:
        raise ConfigurationError(
            f"this codec decodes sums of 1..{max_clients} clients, found {survivors}: more could "
            "have wrapped around the modulus"
        )


def divisor_of(survivors: int, denominator: float | None) -> float:
    """What a sum is divided by: the public denominator, or the number of survivors without one.

    Raises:
        ConfigurationError: unless it is positive and finite.
    """
    divisor = float(survivors) if denominator is None else float(denominator)
    if not (math.isfinite(divisor) and divisor > 0):
        raise ConfigurationError(f"denominator must be positive and finite, found {denominator}")
    return divisor


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

    @property
    def delta_slack(self) -> float:
        """Probability per opened sum that is charged to delta besides :meth:`event`."""

    def digest(self) -> bytes:
        """32 bytes that differ where codecs differ; part of the round's context."""

    def encode(
        self,
        values: NDArray[np.floating[Any]],
        *,
        weight: int = 1,
        share: float = 1.0,
        round_seed: bytes = b"",
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> RingVector:
        """One client's update as integers modulo m, to be used once.

        ``share`` in [0, 1] scales the update after it was clipped, so no norm bound moves with it;
        it is no part of any divisor.
        """

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
