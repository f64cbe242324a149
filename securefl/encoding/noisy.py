"""Steps 2, 3 and 8 with noise: every client adds a share, and only the sum is private enough.

The distributed mechanisms of Kairouz, Liu, Steinke 2021 (*The distributed discrete Gaussian
mechanism for federated learning with secure aggregation*) and Agarwal, Kairouz, Liu 2021 (*The
Skellam mechanism for differentially private federated learning*). A client clips to norm C, rotates
(:mod:`securefl.encoding.rotation`), scales to r integer steps per C, rounds at random, adds one
fresh share of integer noise and reduces modulo m. The guarantee lives in the integers: rounding
lengthens vectors, so the noise is scaled to the bound Delta2 on the norm of the *integers*, never
to r, and everything after the sum is post-processing.

Two contributions, two roundings:

* ``CLIENT``: one clipped vector. The whole vector is rounded again until its squares sum to at most
  Delta2^2, tested in exact integers. This test alone carries the bound; no floating-point error
  before it can matter.
* ``RECORDS``: a sum of clipped records, rounded by coins that do not depend on the data. One record
  then moves the integers by at most Delta2 except with probability 2^-60 over the coins
  (``docs/proofs/rounded-sums.md``). The caller clips records: two sums that differ in one record
  must differ by at most C (1 - RECORDS_MARGIN); what remains covers float64.

The adversary is whoever sees the opened sum, and ``colluding`` clients that know their shares. One
share alone hides its client by its own noise only: the server must see nothing but the sum, and
that is the work of the protocol that masks it. This module knows no keys, no sampling of clients or
records, no composition and no ledger.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from securefl.encoding.clip import clip_by_norm
from securefl.encoding.contract import (
    AggregateUpdate,
    check_aggregate,
    check_share,
    divisor_of,
)
from securefl.encoding.noise import CHUNK, draw, random_words
from securefl.encoding.noise_plan import MAX_INFLATION, Contribution
from securefl.encoding.noisy_spec import NoisySpec
from securefl.encoding.rotation import Rotation
from securefl.encoding.tables import Mechanism, noise_table
from securefl.errors import ConfigurationError
from securefl.modular import RingVector, reduce_in_place, ring_dtype
from securefl.round import AggregateSum

if TYPE_CHECKING:
    from accounting.events import DistributedDiscreteGaussian, Skellam

__all__ = [
    "MAX_INFLATION",
    "RECORDS_MARGIN",
    "Contribution",
    "Mechanism",
    "NoisyCodec",
    "NoisySpec",
]

RECORDS_MARGIN = 2.0**-11
"""Part of C that a change of one record in a float sum must leave free (``RECORDS``)."""

_MAX_DRAWS = 32


class NoisyCodec:
    """Encodes updates to Z_m with one share of noise each, and decodes the opened sum.

    Nothing that :meth:`encode` returns may be used twice: a repeated round encodes anew, with new
    noise, and is a new release.

    >>> spec = NoisySpec.plan(dimension=3, clip_norm=1.0, noise_multiplier=2.0, honest_shares=2,
    ...                       max_clients=3, units=3, contribution=Contribution.CLIENT)
    >>> codec, seed = NoisyCodec(spec), bytes(32)
    >>> from securefl.round import ClientId
    >>> vectors = [codec.encode(np.array([0.5, 0.0, -0.5]), round_seed=seed) for _ in range(3)]
    >>> opened = AggregateSum(vector=vectors[0] + vectors[1] + vectors[2],
    ...                       survivors=(ClientId(1), ClientId(2), ClientId(3)), min_honest=2)
    >>> codec.decode(opened, round_seed=seed).mean.shape
    (3,)
    >>> event = codec.event(survivors=3, colluding=1)  # the noise of the two honest shares
    >>> round(event.mu**0.5 / event.l2, 6)
    2.0
    """

    def __init__(self, spec: NoisySpec) -> None:
        self.spec = spec
        self._rotation = Rotation(dimension=spec.dimension)
        self._most_squares = int(Fraction(spec.l2) ** 2)  # floor(Delta2^2), exactly

    @property
    def dimension(self) -> int:
        """d, coordinates of an update."""
        return self.spec.dimension

    @property
    def modulus(self) -> int:
        """The ring's m."""
        return self.spec.modulus

    @property
    def length(self) -> int:
        """Entries of an encoded vector."""
        return self.spec.length

    @property
    def delta_slack(self) -> float:
        """See :attr:`NoisySpec.delta_slack`."""
        return self.spec.delta_slack

    def digest(self) -> bytes:
        """The specification's digest; 32 bytes."""
        return self.spec.digest()

    def event(self, survivors: int, colluding: int = 0) -> Skellam | DistributedDiscreteGaussian:
        """See :meth:`NoisySpec.event`."""
        return self.spec.event(survivors, colluding)

    def encode(
        self,
        values: NDArray[np.floating[Any]],
        *,
        weight: int = 1,
        share: float = 1.0,
        round_seed: bytes = b"",
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> RingVector:
        """One client's integers with their share of noise, modulo m. Used once, then dropped.

        Args:
            values: float32[d] or float64[d], finite. One client's update, which is clipped to C
                here; or a sum of clipped records, which is not, unless it is so long that float64
                could blur one record in it: then it is shortened to that length, which moves two
                sums no further apart.
            weight: 1. Under differential privacy clients count alike: a weight by the number of
                records would change the sensitivity and tell that number.
            share: factor in [0, 1] on the *clipped* vector of one client: min(n_k / cap, 1) with a
                public cap. What one client adds stays within C. 1 for sums of records.
            round_seed: the round's public seed, at least 16 bytes: it gives the signs.
            random_bytes: secret source of coins and noise; never a seeded one.

        Returns:
            RingVector[D] modulo m.

        Raises:
            ConfigurationError: on NaN or infinity (never replaced by zero), a wrong shape, another
                weight, a share out of range, or a short seed. No finite update is refused for its
                length: who refuses tells about the data.
        """
        spec = self.spec
        if getattr(values, "shape", None) != (spec.dimension,):
            raise ConfigurationError(
                f"this codec encodes {spec.dimension} coordinates, found an update of shape "
                f"{getattr(values, 'shape', type(values).__name__)}"
            )
        if weight != 1:
            raise ConfigurationError(
                f"a codec with noise carries no weights: weight must be 1, found {weight!r}; scale "
                "the update by min(n_k / cap, 1) with a public cap instead"
            )
        bounded = self._bounded(values)
        if check_share(share) != 1.0:
            self._check_scalable(share)
            bounded *= share
        bounded *= spec.resolution / spec.clip_norm
        turned = self._rotation.apply(bounded, round_seed=round_seed)
        if spec.contribution is Contribution.CLIENT:
            integers = self._round_until_short(turned, random_bytes)
        else:
            integers = _round(turned, random_bytes)
        integers += self._share(random_bytes)
        return _reduced(integers, spec.modulus)

    def _share(self, random_bytes: Callable[[int], bytes]) -> NDArray[np.int64]:
        """This client's noise; int64[D], fresh."""
        spec = self.spec
        return draw(noise_table(spec.mechanism, spec.share_ticks), spec.padded, random_bytes)

    def encode_zero(
        self, *, round_seed: bytes = b"", random_bytes: Callable[[int], bytes] = os.urandom
    ) -> RingVector:
        """The noise share of a client without data: :meth:`encode` of zeros, step by step.

        For a client that a secret coin left out. It sends what it would send otherwise, so that
        neither its message nor the noise in the sum follows the coin.
        """
        zeros = np.zeros(self.spec.dimension)
        return self.encode(zeros, round_seed=round_seed, random_bytes=random_bytes)

    def decode(
        self,
        aggregate: AggregateSum,
        *,
        round_seed: bytes = b"",
        denominator: float | None = None,
    ) -> AggregateUpdate:
        """The opened sum as a noisy mean: post-processing, which costs nothing more.

        Args:
            aggregate: the sum over its survivors, in this codec's ring and length.
            round_seed: as in :meth:`encode`.
            denominator: public positive divisor; by default the number of survivors. Where clients
                or records are sampled it must be the expected number, fixed beforehand.

        Raises:
            ConfigurationError: on another ring or length, more than n_max survivors (the sum could
                have wrapped), or a denominator that is not positive and finite.
        """
        spec, survivors = self.spec, aggregate.survivors
        check_aggregate(
            aggregate, modulus=spec.modulus, length=spec.length, max_clients=spec.max_clients
        )
        divisor = divisor_of(len(survivors), denominator)
        steps = aggregate.vector.centred().astype(np.float64)
        steps *= spec.clip_norm / (spec.resolution * divisor)
        mean = self._rotation.invert(steps, round_seed=round_seed)
        return AggregateUpdate(mean=mean, weight=divisor, survivors=survivors)

    def _round_until_short(
        self, turned: NDArray[np.float64], random_bytes: Callable[[int], bytes]
    ) -> NDArray[np.int64]:
        """Rounded again as a whole until the exact sum of squares is at most Delta2^2."""
        for _ in range(_MAX_DRAWS):
            integers = _round(turned, random_bytes)
            if self._is_short(integers):
                return integers
        # Towards zero nothing gets longer than r < Delta2.
        integers = np.trunc(turned).astype(np.int64)
        if not self._is_short(integers):
            raise ConfigurationError(
                f"an update of {_squares(integers)} squared steps passed its bound of "
                f"{self._most_squares}: this is a defect of the encoder, report it"
            )
        return integers

    def _is_short(self, integers: NDArray[np.int64]) -> bool:
        return _squares(integers) <= self._most_squares

    def _bounded(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The vector, projected onto the ball that its contribution must stay in.

        For a client that ball is the clip norm. For a sum of records it is the longest vector in
        which float64 still resolves one record; a projection onto a ball moves no two points
        further apart, so a record moves the projected sum by no more than it moved the sum.
        """
        spec, limit = self.spec, self._longest_sum
        if spec.contribution is Contribution.CLIENT:
            limit = spec.clip_norm
        return clip_by_norm(values, limit).values

    @property
    def _longest_sum(self) -> float:
        """Norm up to which the error of a sum's rotation stays within the margin of a record."""
        spec = self.spec
        # Rotation and scaling: norm 2^-42 relative; addition of a coin: 2^-52 per coordinate.
        # Four times the error in every coordinate must stay within the margin r 2^-11.
        room = spec.resolution * RECORDS_MARGIN / (4 * math.sqrt(spec.padded)) - 2.0**-52
        return room * 2.0**42 * spec.clip_norm / spec.resolution

    def _check_scalable(self, share: float) -> None:
        if self.spec.contribution is Contribution.RECORDS:
            raise ConfigurationError(
                f"a sum of records is not scaled: share must be 1, found {share}; the unit is the "
                "record, and its part in the sum is what the sensitivity is about"
            )


def _round(values: NDArray[np.float64], random_bytes: Callable[[int], bytes]) -> NDArray[np.int64]:
    """floor(v + U), U uniform on the multiples of 2^-53 in [0, 1), fresh for every coordinate.

    That is v rounded down or up, up with the probability of its fraction.
    """
    integers = np.empty(len(values), dtype=np.int64)
    for start in range(0, len(values), CHUNK):
        piece = values[start : start + CHUNK]
        coins = (random_words(len(piece), random_bytes) >> np.uint64(11)).astype(np.float64)
        coins *= 2.0**-53
        coins += piece
        integers[start : start + CHUNK] = np.floor(coins, out=coins)
    return integers


def _squares(integers: NDArray[np.int64]) -> int:
    """The sum of squares, in integer arithmetic; norms below 2^31 cannot overflow it."""
    return int(np.dot(integers, integers))


def _reduced(integers: NDArray[np.int64], modulus: int) -> RingVector:
    """Signed integers modulo m. They may lie outside [-m/2, m/2): noise has no bound."""
    if modulus & (modulus - 1) == 0:
        words = integers.view(np.uint64).astype(ring_dtype(modulus))
        reduce_in_place(words, modulus)
        return RingVector(words, modulus)
    return RingVector(np.mod(integers, np.int64(modulus)).astype(ring_dtype(modulus)), modulus)
