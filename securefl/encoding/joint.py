"""One more bounded number beside an update, in one vector, for one noise and one event.

An algorithm that needs a second sum besides that of the updates could release it apart, with noise
and an event of its own. Here it travels in the same vector, in units of the clip norm C:

    (x / C,  kappa e),   ||x|| <= C,  0 <= e <= 1,   of norm at most sqrt(1 + kappa^2),

so one sum, one share of noise per client and one event pay for both, as with the bit of adaptive
clipping (Andrew et al. 2021, *Differentially private learning with adaptive clipping*, section 3).
kappa says how the noise is split: a larger one makes the entry clearer and the update noisier.

Both bounds are the encoder's own work, whatever it is given: x is clipped and e is cut to [0, 1],
each by itself, so that a long update does not shrink the entry beside it. A client that takes no
part sends an encoded zero, in the entry too. This module knows no algorithm and draws no noise.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from securefl.encoding.clip import clip_by_norm, finite_float64
from securefl.encoding.contract import AggregateUpdate, check_share
from securefl.encoding.noisy import NoisyCodec
from securefl.errors import ConfigurationError
from securefl.modular import RingVector
from securefl.round import AggregateSum

if TYPE_CHECKING:
    from accounting.events import Event

__all__ = ["JointCodec", "SideEntry", "SideEntryCodec"]


class JointCodec:
    """What codecs around a noisy one have in common: its ring, its event, its share of noise.

    Attributes:
        inner: one coordinate longer than the update.
        clip_norm: C of the update, public; part of the digest.

    Raises:
        ConfigurationError: on construction, if C is not positive and finite.
    """

    def __init__(self, inner: NoisyCodec, *, clip_norm: float) -> None:
        if not (math.isfinite(clip_norm) and clip_norm > 0):
            raise ConfigurationError(f"clip_norm must be positive and finite, found {clip_norm}")
        self.inner = inner
        self.clip_norm = float(clip_norm)

    @property
    def modulus(self) -> int:
        """The ring's m."""
        return self.inner.modulus

    @property
    def length(self) -> int:
        """Entries of an encoded vector."""
        return self.inner.length

    @property
    def delta_slack(self) -> float:
        """The inner codec's."""
        return self.inner.delta_slack

    def event(self, survivors: int, colluding: int = 0) -> Event:
        """The inner codec's: one event pays for the update and what is beside it."""
        return self.inner.event(survivors, colluding)

    def encode_zero(
        self, *, round_seed: bytes = b"", random_bytes: Callable[[int], bytes] = os.urandom
    ) -> RingVector:
        """A share of noise and nothing else, in the entry beside the update too."""
        return self.inner.encode_zero(round_seed=round_seed, random_bytes=random_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SideEntry:
    """How long the entry is.

    Attributes:
        kappa: its length at e = 1, in units of C, > 0.
    """

    kappa: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.kappa) and self.kappa > 0):
            raise ConfigurationError(f"kappa must be positive and finite, found {self.kappa}")

    @classmethod
    def plan(cls, *, noise_multiplier: float, expected: float, noise: float) -> Self:
        """The kappa with which the mean entry has noise of standard deviation ``noise``.

        Where that would take more than half of the squared norm, kappa is 1 (half of it), and the
        entry is noisier: :meth:`noise` says how much.

        Args:
            noise_multiplier: z, of the inner codec.
            expected: what the sum is divided by.
            noise: wanted standard deviation of the mean entry, > 0.
        """
        inverse_square = (noise * expected / noise_multiplier) ** 2 - 1.0
        return cls(kappa=1.0 if inverse_square <= 1.0 else 1 / math.sqrt(inverse_square))

    @property
    def norm(self) -> float:
        """Norm bound of one client's vector in units of C: sqrt(1 + kappa^2)."""
        return math.hypot(1.0, self.kappa)

    def noise(self, *, noise_multiplier: float, expected: float) -> float:
        """Standard deviation of the mean entry's noise, if exactly the planned shares are there.

        >>> side = SideEntry.plan(noise_multiplier=1.0, expected=100.0, noise=0.05)
        >>> round(side.noise(noise_multiplier=1.0, expected=100.0), 9)
        0.05
        """
        return noise_multiplier * self.norm / (self.kappa * expected)


class SideEntryCodec(JointCodec):
    """A codec of d + 1 numbers, an update and its entry, around one of norm ``side.norm``.

    Raises:
        ConfigurationError: on construction, if C is not positive and finite, or the inner codec is
            of another norm: its noise would be for another sensitivity.
    """

    def __init__(self, inner: NoisyCodec, *, side: SideEntry, clip_norm: float) -> None:
        super().__init__(inner, clip_norm=clip_norm)
        if inner.spec.clip_norm < side.norm:
            raise ConfigurationError(
                f"the inner codec's norm bound is {inner.spec.clip_norm}, update and entry "
                f"together have norm up to {side.norm} in units of C; plan it with that clip_norm"
            )
        self.side = side

    @property
    def dimension(self) -> int:
        """Coordinates of an update, d, and its entry: d + 1."""
        return self.inner.dimension

    def digest(self) -> bytes:
        """Of the inner codec, C and kappa; 32 bytes."""
        return hashlib.sha256(
            b"securefl side entry 1\0"
            + self.inner.digest()
            + struct.pack("<2d", self.clip_norm, self.side.kappa)
        ).digest()

    def encode(
        self,
        values: NDArray[np.floating[Any]],
        *,
        weight: int = 1,
        share: float = 1.0,
        round_seed: bytes = b"",
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> RingVector:
        """The update clipped to C and the entry cut to [0, 1]; ``share`` scales both.

        Args:
            values: float[d + 1], finite, the entry last.
            weight: 1, as the inner codec's.
            share: in [0, 1].
            round_seed: as the inner codec's.
            random_bytes: as the inner codec's.

        Raises:
            ConfigurationError: as the inner codec.
        """
        if getattr(values, "shape", None) != (self.dimension,):
            raise ConfigurationError(
                f"this codec encodes {self.dimension} numbers, an update and its entry, found "
                f"{getattr(values, 'shape', type(values).__name__)}"
            )
        vector = finite_float64(values)
        entry = min(max(float(vector[-1]), 0.0), 1.0)
        update = clip_by_norm(vector[:-1], self.clip_norm).values / self.clip_norm
        joint = np.append(update, self.side.kappa * entry) * check_share(share)
        return self.inner.encode(
            joint, weight=weight, round_seed=round_seed, random_bytes=random_bytes
        )

    def decode(
        self,
        aggregate: AggregateSum,
        *,
        round_seed: bytes = b"",
        denominator: float | None = None,
    ) -> AggregateUpdate:
        """The mean update in its own units and the mean entry, which noise may carry past [0, 1].

        float64[d + 1]; see :meth:`NoisyCodec.decode <securefl.encoding.noisy.NoisyCodec.decode>`.
        """
        decoded = self.inner.decode(aggregate, round_seed=round_seed, denominator=denominator)
        mean = decoded.mean * self.clip_norm
        mean[-1] = decoded.mean[-1] / self.side.kappa
        return AggregateUpdate(mean=mean, weight=decoded.weight, survivors=decoded.survivors)
