"""One draw of noise for a whole sum, in place of one share per client. **For simulations only.**

A sum of independent Skellam shares is Skellam with the sum of their variances (Agarwal, Kairouz,
Liu 2021, *The Skellam mechanism for differentially private federated learning*), so a sum over many
clients may be simulated by rounding every vector and drawing the noise once: the opened sum has the
same distribution, at a fraction of the work. Nothing else has: each encoded vector is bare. No
client of a deployment may use this, and its records say that it was used. Discrete Gaussians are
refused, since a sum of them is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from securefl.encoding.noisy import Mechanism, NoisyCodec, NoisySpec
from securefl.errors import ConfigurationError
from securefl.modular import RingVector

__all__ = ["SummedNoiseCodec"]


class SummedNoiseCodec(NoisyCodec):
    """Encodes without noise; :meth:`add_noise` adds what all shares of a sum would have been.

    Raises:
        ConfigurationError: on construction, for a mechanism whose sums are not of its own kind, or
            if the noise of a full sum is too wide for one draw.
    """

    def __init__(self, spec: NoisySpec) -> None:
        if spec.mechanism is not Mechanism.SKELLAM:
            raise ConfigurationError(
                f"one draw can stand for a sum of Skellam shares only, found {spec.mechanism}"
            )
        super().__init__(spec)
        self._at_once(spec.max_clients)

    def _share(self, random_bytes: Callable[[int], bytes]) -> NDArray[np.int64]:
        return np.zeros(self.spec.padded, dtype=np.int64)

    def add_noise(
        self, total: RingVector, shares: int, random_bytes: Callable[[int], bytes]
    ) -> RingVector:
        """``total`` and the noise of ``shares`` shares, modulo m."""
        spec = self.spec
        if not 1 <= shares <= spec.max_clients:
            raise ConfigurationError(f"shares must be in 1..{spec.max_clients}, found {shares}")
        return total + self._at_once(shares).encode_zero(
            round_seed=bytes(32), random_bytes=random_bytes
        )

    def _at_once(self, shares: int) -> NoisyCodec:
        """A codec whose one share has the variance of ``shares`` (up to 2^-20, upwards)."""
        z = self.spec.noise_multiplier * math.sqrt(shares / self.spec.honest_shares)
        return NoisyCodec(replace(self.spec, noise_multiplier=z, honest_shares=1, max_clients=1))
