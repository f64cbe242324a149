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

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from securefl.encoding.clip import clip_by_norm, finite_float64, l2_norm
from securefl.encoding.codec import AggregateUpdate
from securefl.encoding.noise import CHUNK, draw, random_words
from securefl.encoding.noise_plan import (
    MAX_INFLATION,
    Contribution,
    NoisePlan,
    check_counts,
    check_modulus,
    inflation_limit,
    padded_size,
    positive,
)
from securefl.encoding.rotation import Rotation, block_size
from securefl.encoding.tables import TICKS, Mechanism, noise_table, table_bound
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

_FORMAT = "securefl noisy codec 1"
_MAX_DRAWS = 32
# Total variation distance per noise value, times 1 + e^20: a claim of epsilon <= 20.
_SAMPLER_FAILURE = 2.0**-106 * 2.0**29


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisySpec:
    """Everything two clients must agree on before their noisy vectors may be added.

    Attributes:
        dimension: d, coordinates of an update, >= 1.
        clip_norm: C > 0, norm bound of one unit, in the units of the update.
        noise_multiplier: z > 0: standard deviation of the noise of ``honest_shares`` shares over
            the integer sensitivity Delta2. (A release costs what z says, whatever the resolution;
            a coarse one costs accuracy.)
        honest_shares: h, shares whose sum carries z, 1 .. max_clients. Of fewer shares the event
            says what they are worth.
        max_clients: n_max, most clients (so, shares) that one sum may contain.
        contribution: a clipped vector, or a sum of clipped records.
        units: most clipped units in one sum, >= 1: clients with data, or an upper bound on the
            sampled records. It decides the range, not the privacy.
        mechanism: Skellam or discrete Gaussian.
        resolution: r > 0, integer steps per clip norm.
        modulus: m, any up to 2^63, or 2^64.
        wrap_probability: p in (0, 1), bound on the probability that any entry of an honest sum
            wraps around m.

    Raises:
        ConfigurationError: with the numbers, if an attribute is out of its range, Delta2 / r
            exceeds 1.05, a share's standard deviation exceeds 2^16 (or is below 2 for discrete
            Gaussians), or m is too small for the sum and its noise.

    >>> spec = NoisySpec.plan(dimension=26_010, clip_norm=1.0, noise_multiplier=1.0,
    ...                       honest_shares=100, max_clients=100, units=100,
    ...                       contribution=Contribution.CLIENT)
    >>> spec.padded, spec.bits, round(spec.inflation, 3)
    (26624, 15, 1.005)
    """

    dimension: int
    clip_norm: float
    noise_multiplier: float
    honest_shares: int
    max_clients: int
    contribution: Contribution
    units: float
    resolution: float
    modulus: int
    mechanism: Mechanism = Mechanism.SKELLAM
    wrap_probability: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "contribution", Contribution(self.contribution))
        object.__setattr__(self, "mechanism", Mechanism(self.mechanism))
        for name in ("clip_norm", "noise_multiplier", "resolution", "units", "wrap_probability"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        check_counts(self.dimension, self.honest_shares, self.max_clients)
        check_modulus(self.modulus)
        self._plan.check(self.resolution, self.modulus)

    @classmethod
    def plan(
        cls,
        *,
        dimension: int,
        clip_norm: float,
        noise_multiplier: float,
        honest_shares: int,
        max_clients: int,
        contribution: Contribution,
        units: float,
        mechanism: Mechanism = Mechanism.SKELLAM,
        bits: int | None = None,
        modulus: int | None = None,
        resolution: float | None = None,
        max_inflation: float | None = None,
        wrap_probability: float = 1e-6,
    ) -> Self:
        """Chooses what is left open.

        With neither ``bits`` nor ``modulus``: the fewest bits with Delta2 / r at most
        ``max_inflation`` (1.005 for clients, 1.01 for records), then the smallest such r, or the
        given one. With one of them: the largest r that fits, though none finer than
        Delta2 / r = 1.0005, since that gains nothing. It takes well below a millisecond.

        Raises:
            ConfigurationError: if nothing fits, with the numbers; as the constructor.
        """
        contribution, mechanism = Contribution(contribution), Mechanism(mechanism)
        check_counts(dimension, honest_shares, max_clients)
        if bits is not None and modulus is not None:
            raise ConfigurationError(f"give bits or modulus, not both: {bits} and {modulus}")
        if bits is not None:
            if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 64:
                raise ConfigurationError(f"bits must be an int in 1..64, found {bits!r}")
            modulus = 1 << bits
        sizes = NoisePlan(
            padded=padded_size(dimension),
            block=block_size(dimension),
            noise_multiplier=noise_multiplier,
            honest_shares=honest_shares,
            max_clients=max_clients,
            contribution=contribution,
            units=units,
            mechanism=mechanism,
            wrap_probability=wrap_probability,
            max_inflation=inflation_limit(max_inflation),
        )
        if modulus is None:
            if resolution is None:
                target = contribution.default_inflation if max_inflation is None else max_inflation
                resolution = sizes.coarsest(min(target, MAX_INFLATION))
            modulus = sizes.fewest_bits(positive("resolution", resolution))
        elif resolution is None:
            check_modulus(modulus)
            resolution = sizes.largest_resolution(modulus)
        else:
            check_modulus(modulus)
            sizes.check(positive("resolution", resolution), modulus)
        return cls(
            dimension=dimension,
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            honest_shares=honest_shares,
            max_clients=max_clients,
            contribution=contribution,
            units=units,
            resolution=resolution,
            modulus=modulus,
            mechanism=mechanism,
            wrap_probability=wrap_probability,
        )

    @property
    def _plan(self) -> NoisePlan:
        return NoisePlan(
            padded=self.padded,
            block=self.block,
            noise_multiplier=self.noise_multiplier,
            honest_shares=self.honest_shares,
            max_clients=self.max_clients,
            contribution=self.contribution,
            units=self.units,
            mechanism=self.mechanism,
            wrap_probability=self.wrap_probability,
            max_inflation=MAX_INFLATION,
        )

    @property
    def block(self) -> int:
        """b, order of one Hadamard transform."""
        return block_size(self.dimension)

    @property
    def padded(self) -> int:
        """D, coordinates after padding."""
        return padded_size(self.dimension)

    @property
    def length(self) -> int:
        """Entries of an encoded vector: D."""
        return self.padded

    @property
    def bits(self) -> int:
        """Bits of one entry on the wire: ceil(log2 m)."""
        return (self.modulus - 1).bit_length()

    @property
    def beta(self) -> float:
        """The rounding's failure probability in Delta2, see :class:`Contribution`."""
        return self.contribution.rounding_failure

    @property
    def l2(self) -> float:
        """Delta2, bound on the Euclidean norm of one unit's integers (zero-out)."""
        return self._plan.l2(self.resolution)

    @property
    def l1(self) -> float:
        """Delta1 = min(sqrt(D) Delta2, Delta2^2): an integer is at most its square."""
        return min(math.sqrt(self.padded) * self.l2, self.l2 * self.l2) * (1 + 2.0**-50)

    @property
    def inflation(self) -> float:
        """Delta2 / r: how much rounding costs, in standard deviations of noise."""
        return self.l2 / self.resolution

    @property
    def share_ticks(self) -> int:
        """Variance parameter of one share in multiples of 2^-20, rounded up."""
        return self._plan.share_ticks(self.resolution)

    @property
    def mu_share(self) -> float:
        """Variance parameter of one share, exact: the Skellam mu, or s^2."""
        return self.share_ticks / TICKS

    @property
    def share_std(self) -> float:
        """Standard deviation of one share in integer steps (of a discrete Gaussian, its s)."""
        return math.sqrt(self.mu_share)

    @property
    def sigma_share(self) -> float:
        """The parameter s of one discrete Gaussian share, rounded down."""
        return _below(self.share_std)

    @property
    def reach(self) -> int:
        """Largest magnitude of one entry of one client, noise included, before it is reduced.

        For sums of records: as long as a client's sum holds at most ``units`` of them. A protocol
        that adds the numbers between -m/2 and m/2 themselves, in slots of a cryptosystem, and not
        residues modulo m, needs ``2 * reach < modulus``: otherwise a client whose entry wraps moves
        that sum by m, and the sum tells more than the sum.
        """
        one = self.l2 if self.contribution is Contribution.CLIENT else self.resolution * self.units
        return math.ceil(one) + 1 + table_bound(self.share_ticks)

    @property
    def delta_slack(self) -> float:
        """Probability per release that is charged to delta besides the event.

        For sums of records the 2^-60 with which a rounding may exceed Delta2; and for both the
        distance of all noise values of a release from their law, times 1 + e^20, which serves every
        claim of epsilon up to 20.
        """
        rounding = self.beta if self.contribution is Contribution.RECORDS else 0.0
        return rounding + self.padded * self.max_clients * _SAMPLER_FAILURE

    def event(self, survivors: int, colluding: int = 0) -> Skellam | DistributedDiscreteGaussian:
        """What one opened sum releases: the noise of ``survivors - colluding`` shares.

        No sampling, no composition and no :attr:`delta_slack` are in it. Adjacency is zero-out: a
        client that is left out would take its share away.

        Raises:
            ConfigurationError: unless 0 <= colluding < survivors <= n_max.
        """
        from accounting.events import (  # noqa: PLC0415  # keeps scipy out of the masking client
            DistributedDiscreteGaussian,
            Skellam,
        )

        for name, value in (("survivors", survivors), ("colluding", colluding)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigurationError(f"{name} must be an int, found {value!r}")
        if not 0 <= colluding < survivors <= self.max_clients:
            raise ConfigurationError(
                f"expected 0 <= colluding < survivors <= {self.max_clients}, found {colluding} "
                f"colluding of {survivors}: without an honest share there is no noise"
            )
        honest = survivors - colluding
        if self.mechanism is Mechanism.SKELLAM:
            mu = Fraction(honest * self.share_ticks, TICKS)
            return Skellam(
                mu=float(mu) if Fraction(float(mu)) <= mu else _below(float(mu)),
                l2=self.l2,
                l1=self.l1,
            )
        return DistributedDiscreteGaussian(
            sigma_share=self.sigma_share,
            shares=honest,
            l2=self.l2,
            l1=self.l1,
            dim=self.padded,
        )

    def digest(self) -> bytes:
        """SHA-256 over the canonical JSON of all attributes; 32 bytes.

        It enters the round's context, so that clients with different codecs are never summed.
        """
        fields: dict[str, Any] = {
            "format": _FORMAT,
            "dimension": self.dimension,
            "clip_norm": self.clip_norm,
            "noise_multiplier": self.noise_multiplier,
            "honest_shares": self.honest_shares,
            "max_clients": self.max_clients,
            "contribution": self.contribution.value,
            "units": self.units,
            "resolution": self.resolution,
            "modulus": self.modulus,
            "mechanism": self.mechanism.value,
            "wrap_probability": self.wrap_probability,
        }
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).digest()


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
        round_seed: bytes = b"",
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> RingVector:
        """One client's integers with their share of noise, modulo m. Used once, then dropped.

        Args:
            values: float32[d] or float64[d], finite. One client's update, which is clipped to C
                here; or a sum of clipped records, which is not.
            weight: 1. Under differential privacy clients count alike: a weight by the number of
                records would change the sensitivity and tell that number.
            round_seed: the round's public seed, at least 16 bytes: it gives the signs.
            random_bytes: secret source of coins and noise; never a seeded one.

        Returns:
            RingVector[D] modulo m.

        Raises:
            ConfigurationError: on NaN or infinity (never replaced by zero), a wrong shape, another
                weight, a short seed, or a sum so long that float64 could blur one record in it.
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
        if spec.contribution is Contribution.CLIENT:
            bounded = clip_by_norm(values, spec.clip_norm).values
        else:
            bounded = finite_float64(values)
            self._check_sum(bounded)
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
        if aggregate.vector.modulus != spec.modulus or len(aggregate.vector) != spec.length:
            raise ConfigurationError(
                f"expected {spec.length} entries mod {spec.modulus}, found "
                f"{len(aggregate.vector)} entries mod {aggregate.vector.modulus}"
            )
        if not 1 <= len(survivors) <= spec.max_clients:
            raise ConfigurationError(
                f"this codec decodes sums of 1..{spec.max_clients} clients, found "
                f"{len(survivors)}: more could have wrapped around the modulus"
            )
        divisor = float(len(survivors)) if denominator is None else float(denominator)
        if not (math.isfinite(divisor) and divisor > 0):
            raise ConfigurationError(
                f"denominator must be positive and finite, found {denominator}"
            )
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

    def _check_sum(self, values: NDArray[np.float64]) -> None:
        """Refuses a sum so long that the error of its rotation could pass the margin."""
        spec = self.spec
        # Rotation and scaling: norm 2^-42 relative; addition of a coin: 2^-52 per coordinate.
        # Four times the error in every coordinate must stay within the margin r 2^-11.
        room = spec.resolution * RECORDS_MARGIN / (4 * math.sqrt(spec.padded)) - 2.0**-52
        longest = room * 2.0**42 * spec.clip_norm / spec.resolution
        norm = l2_norm(values)
        if not norm <= longest:
            raise ConfigurationError(
                f"a sum of norm {norm:.4g} is too long for float64: with C = {spec.clip_norm} and "
                f"{spec.padded} coordinates one record is resolved up to {longest:.4g}; clip the "
                "records, or sum fewer of them at a time"
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


def _below(value: float) -> float:
    return math.nextafter(value, 0.0)
