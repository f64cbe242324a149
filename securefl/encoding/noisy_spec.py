"""What two clients must agree on before their noisy vectors may be added, and what a sum costs.

:class:`NoisySpec` states the whole mechanism of :mod:`securefl.encoding.noisy`: clip norm, noise,
shares, resolution and modulus; with them the sensitivity of the integers and the privacy event of
an opened sum (Kairouz, Liu, Steinke 2021; Agarwal, Kairouz, Liu 2021). It refuses every combination
that could not keep its word. It knows no vectors, no keys, no sampling and no ledger.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Self

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
from securefl.encoding.rotation import block_size
from securefl.encoding.tables import TICKS, Mechanism, table_bound
from securefl.errors import ConfigurationError

if TYPE_CHECKING:
    from accounting.events import DistributedDiscreteGaussian, Skellam

__all__ = ["NoisySpec"]

_FORMAT = "securefl noisy codec 1"
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


def _below(value: float) -> float:
    return math.nextafter(value, 0.0)
