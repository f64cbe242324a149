"""A clipping norm that follows the updates, at the price of the sum that is released anyway.

Andrew, Thakkar, McMahan, Ramaswamy 2021 (*Differentially private learning with adaptive clipping*):
each client also says whether its update was shorter than the norm, the noised share b of those who
say yes is compared with a target quantile, and C <- C exp(-rate (b - target)). Here the bit travels
in the same vector as the update, in units of C:

    (x / C,  kappa (1[not clipped] - 1/2)),   of norm at most sqrt(1 + kappa^2 / 4),

so one sum, one share of noise per client and one event pay for both, and every integer parameter of
the codec stays what it is while C moves. kappa is chosen so that the noise of b is a twentieth (the
paper's choice). The new C is computed from the noised sum: post-processing. It tells something
about the distribution of norms; the same event pays for that.

A client that takes no part sends an encoded zero, in this entry too. This module knows no clients
and draws no noise.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from securefl.encoding.clip import clip_by_norm
from securefl.encoding.contract import AggregateUpdate, check_share
from securefl.encoding.joint import JointCodec
from securefl.encoding.noisy import NoisyCodec
from securefl.errors import ConfigurationError
from securefl.modular import RingVector
from securefl.round import AggregateSum

__all__ = ["AdaptiveClip", "AdaptiveCodec"]

_NOISE_OF_SHARE = 1 / 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveClip:
    """How the norm moves.

    Attributes:
        start: the first C > 0, in the units of the update.
        kappa: length of the bit's entry, in units of C, > 0.
        expected: public expected number of clients with an update in a round, > 0.
        target_quantile: share of updates that are not to be clipped, in (0, 1).
        rate: of the exponential steps, > 0.
    """

    start: float
    kappa: float
    expected: float
    target_quantile: float = 0.5
    rate: float = 0.2

    def __post_init__(self) -> None:
        for name in ("start", "kappa", "expected", "rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} must be positive and finite, found {value}")
        if not 0 < self.target_quantile < 1:
            raise ConfigurationError(
                f"target_quantile must be in (0, 1), found {self.target_quantile}"
            )

    @classmethod
    def plan(
        cls,
        *,
        start: float,
        noise_multiplier: float,
        expected: float,
        target_quantile: float = 0.5,
        rate: float = 0.2,
    ) -> Self:
        """The kappa with which the noise of b has standard deviation 1/20.

        The noise of the sum is z sqrt(1 + kappa^2/4) in units of C; divided by kappa ``expected``
        that is the noise of b. Where the noise alone passes 1/20 of the expected clients, kappa is
        2 (half of the squared norm for the bit), and b is noisier.
        """
        inverse_square = (_NOISE_OF_SHARE * expected / noise_multiplier) ** 2 - 0.25
        kappa = 2.0 if inverse_square <= 0.25 else 1 / math.sqrt(inverse_square)
        return cls(
            start=start, kappa=kappa, expected=expected, target_quantile=target_quantile, rate=rate
        )

    @property
    def norm(self) -> float:
        """Norm bound of one client's vector in units of C: sqrt(1 + kappa^2/4)."""
        return math.sqrt(1 + self.kappa**2 / 4)

    def next_norm(self, norm: float, mean_entry: float) -> float:
        """C for the next round.

        Args:
            norm: this round's C.
            mean_entry: the decoded entry, divided by ``expected``.
        """
        # A share is in [0, 1]; beyond it there is only noise, which must not move the norm far.
        share = min(max(mean_entry / self.kappa + 0.5, 0.0), 1.0)
        return norm * math.exp(-self.rate * (share - self.target_quantile))


class AdaptiveCodec(JointCodec):
    """A codec of d + 1 entries around one whose norm is :attr:`AdaptiveClip.norm`.

    Attributes:
        clip_norm: this round's C, public; part of the digest.
        next_clip_norm: C for the next round, known once a sum was decoded.

    Raises:
        ConfigurationError: on construction, if C is not positive and finite.
    """

    def __init__(self, inner: NoisyCodec, *, clip: AdaptiveClip, clip_norm: float) -> None:
        super().__init__(inner, clip_norm=clip_norm)
        self.clip = clip
        self.next_clip_norm = float(clip_norm)

    @property
    def dimension(self) -> int:
        """d, coordinates of an update; the inner codec has one more."""
        return self.inner.dimension - 1

    def digest(self) -> bytes:
        """Of the inner codec, of how the norm moves, and of this round's norm; 32 bytes."""
        clip = self.clip
        numbers = (self.clip_norm, clip.kappa, clip.expected, clip.target_quantile, clip.rate)
        return hashlib.sha256(
            b"securefl adaptive clip 1\0" + self.inner.digest() + struct.pack("<5d", *numbers)
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
        """The update clipped to C and the bit, in units of C. As the inner codec's otherwise.

        ``share`` scales the update and not the bit: the norm follows a quantile over clients, each
        of whom counts once.
        """
        clipped = clip_by_norm(values, self.clip_norm)
        entry = self.clip.kappa * (-0.5 if clipped.was_clipped else 0.5)
        vector = np.append(clipped.values * (check_share(share) / self.clip_norm), entry)
        return self.inner.encode(
            vector, weight=weight, round_seed=round_seed, random_bytes=random_bytes
        )

    def decode(
        self,
        aggregate: AggregateSum,
        *,
        round_seed: bytes = b"",
        denominator: float | None = None,
    ) -> AggregateUpdate:
        """The mean update in its own units; :attr:`next_clip_norm` is set.

        ``denominator`` is :attr:`AdaptiveClip.expected` and no other.
        """
        if denominator != self.clip.expected:
            raise ConfigurationError(
                f"adaptive clipping divides by the expected {self.clip.expected} clients, found "
                f"denominator {denominator}"
            )
        decoded = self.inner.decode(aggregate, round_seed=round_seed, denominator=denominator)
        self.next_clip_norm = self.clip.next_norm(self.clip_norm, float(decoded.mean[-1]))
        return AggregateUpdate(
            mean=decoded.mean[:-1] * self.clip_norm,
            weight=decoded.weight,
            survivors=decoded.survivors,
        )
