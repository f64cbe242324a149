"""How fine and how wide: resolution, sensitivity, noise and modulus of a codec with noise.

Pure arithmetic on a handful of numbers, whose result is a
:class:`~securefl.encoding.noisy_spec.NoisySpec`.
All lengths are in integer steps, r steps per clip norm C.

* Sensitivity. A vector of norm r, rounded at random in D coordinates, has norm at most
  Delta2 = min{ r + sqrt(D), sqrt(r^2 + D/4 + sqrt(2 ln(1/beta)) (r + sqrt(D)/2)) }, the second one
  except with probability beta (Kairouz, Liu, Steinke 2021, *The distributed discrete Gaussian
  mechanism*, proposition 22).
* Noise. z Delta2 is the standard deviation of h shares, so a share has variance (z Delta2)^2 / h,
  rounded up to a multiple of 2^-20.
* Range. Over the random signs an entry of the rotated sum of N units is sub-Gaussian with variance
  r^2 N^2 / b; rounding adds n/4 and noise n mu_share for n clients. With
  k = sqrt(2 ln(2D/p)) a modulus of 2k standard deviations leaves no entry of D outside, except
  with probability p. For the noise, whose tail is a little heavier than a Gaussian's, this is a
  heuristic; a wrap costs accuracy, never privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from securefl.encoding.rotation import block_size
from securefl.encoding.tables import MAX_TICKS, TICKS, Mechanism
from securefl.errors import ConfigurationError
from securefl.modular import MAX_MODULUS

__all__ = [
    "MAX_INFLATION",
    "Contribution",
    "NoisePlan",
    "check_counts",
    "check_modulus",
    "inflation_limit",
    "padded_size",
    "positive",
]

MAX_INFLATION = 1.05
"""Largest Delta2 / r: beyond it too much of the noise would pay for rounding."""

_RECORDS_FAILURE = 2.0**-60
_FINEST = 1.0005  # Delta2 / r below which a finer resolution gains nothing
_LONGEST = 1 << 30  # bound on r + sqrt(D): sums of squares then stay far below 2^63
_MIN_SIGMA = 2.0  # of a discrete Gaussian share: below, sums of them are too far from one
_MOST = 1 << 40  # clients, coordinates or units: far beyond use, and floats hold them exactly
_HALVINGS = 60


class Contribution(StrEnum):
    """What a client's vector is made of, and with it who is the unit of privacy."""

    CLIENT = "client"
    """One vector, clipped here; the unit is the client."""

    RECORDS = "records"
    """A sum of vectors that the caller has clipped; the unit is the record."""

    @property
    def rounding_failure(self) -> float:
        """beta: e^(-1/2) for a rounding that is repeated until it holds, 2^-60 for one that is not.

        It enters Delta2; only the second one is a probability of failure.
        """
        return math.exp(-0.5) if self is Contribution.CLIENT else _RECORDS_FAILURE

    @property
    def default_inflation(self) -> float:
        """Delta2 / r that a plan aims at when it may choose the bits."""
        return 1.005 if self is Contribution.CLIENT else 1.01


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisePlan:
    """Everything about a codec with noise but its resolution r and its modulus m.

    Attributes: as of :class:`~securefl.encoding.noisy_spec.NoisySpec`, and ``max_inflation``, the
    largest Delta2 / r that is accepted.
    """

    padded: int
    block: int
    noise_multiplier: float
    honest_shares: int
    max_clients: int
    contribution: Contribution
    units: float
    mechanism: Mechanism
    wrap_probability: float
    max_inflation: float

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "units", "wrap_probability"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        if not 1 <= self.units <= _MOST:
            raise ConfigurationError(f"units must be in 1..2^40, found {self.units}")
        if self.wrap_probability >= 1:
            raise ConfigurationError(
                f"wrap_probability must be below 1, found {self.wrap_probability}"
            )

    def l2(self, r: float) -> float:
        """Delta2, rounded up by a few units in the last place."""
        root, c = math.sqrt(self.padded), self._spread
        likely = math.sqrt(r * r + self.padded / 4 + c * (r + root / 2))
        return min(r + root, likely) * (1 + 2.0**-50)

    def share_ticks(self, r: float) -> int:
        """Variance of one share in multiples of 2^-20, rounded up."""
        deviation = self.noise_multiplier * self.l2(r)
        variance = deviation * deviation / self.honest_shares
        if not variance * TICKS < 2.0**64:
            return 1 << 64  # out of every range; an infinity has no ceiling
        return max(1, math.ceil(variance * TICKS * (1 + 2.0**-50)))

    def needed_modulus(self, r: float) -> float:
        """Smallest m that keeps the sum and its noise, except with the wrap probability."""
        n = self.max_clients
        variance = (r * self.units) ** 2 / self.block + n / 4 + n * (self.share_ticks(r) / TICKS)
        k = math.sqrt(2 * math.log(2 * self.padded / self.wrap_probability))
        return 2 * k * math.sqrt(variance)

    def check(self, r: float, modulus: int) -> None:
        """Refuses an r and m that do not go together.

        Raises:
            ConfigurationError: with the numbers.
        """
        self._check_length(r)
        inflation = self.l2(r) / r
        if inflation > self.max_inflation:
            raise ConfigurationError(
                f"rounding would lengthen a vector to {inflation:.4f} times its clip norm, "
                f"expected at most {self.max_inflation}: {r:.6g} steps per clip norm are too few "
                f"for {self.padded} coordinates; take at least "
                f"{self.resolution_at(self.max_inflation):.6g}, with more bits if they do not fit"
            )
        self._check_noise(r)
        needed = self.needed_modulus(r)
        if needed > modulus:
            raise ConfigurationError(
                f"a sum could wrap: {self.units:.6g} units of {r:.6g} steps and "
                f"{self.max_clients} shares of standard deviation "
                f"{math.sqrt(self.share_ticks(r) / TICKS):.4g} need a modulus of {needed:.6g}, "
                f"found {modulus}; take more bits or fewer steps"
            )

    def coarsest(self, inflation: float) -> float:
        """An r with Delta2 / r at most ``inflation``; the smallest, for Skellam noise.

        Shares of discrete Gaussian noise must not be too small, and for them r may have to rise.
        """
        r = self.resolution_at(inflation)
        if self.mechanism is Mechanism.DISCRETE_GAUSSIAN:
            return max(r, _MIN_SIGMA * math.sqrt(self.honest_shares) / self.noise_multiplier)
        return r

    def resolution_at(self, inflation: float) -> float:
        """The smallest r with Delta2 / r at most ``inflation`` > 1."""
        root, c = math.sqrt(self.padded), self._spread
        a, rest = inflation * inflation - 1, self.padded / 4 + c * root / 2
        r = min(root / (inflation - 1), (c + math.sqrt(c * c + 4 * a * rest)) / (2 * a))
        while self.l2(r) > inflation * r:
            r *= 1 + 2.0**-40
        return r

    def fewest_bits(self, r: float) -> int:
        """The smallest power of two that holds r.

        Raises:
            ConfigurationError: if it has more than 64 bits, or as :meth:`check`.
        """
        self._check_length(r)
        self._check_noise(r)
        bits = max(1, math.ceil(math.log2(self.needed_modulus(r))))
        if bits > 64:
            raise ConfigurationError(
                f"{self.units:.6g} units of {r:.6g} steps need a modulus of {bits} bits, at most "
                "64 are possible; lower the resolution or the number of units"
            )
        self.check(r, 1 << bits)
        return 1 << bits

    def largest_resolution(self, modulus: int) -> float:
        """The largest r that m holds, up to the finest that is worth having.

        Raises:
            ConfigurationError: as :meth:`check`, if not even the coarsest acceptable r fits.
        """
        low = self.coarsest(self.max_inflation)
        self.check(low, modulus)
        high = max(low, self.resolution_at(_FINEST))
        if self._fits(high, modulus):
            return high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._fits(middle, modulus) else (low, middle)
        return low

    def _fits(self, r: float, modulus: int) -> bool:
        return (
            r + math.sqrt(self.padded) <= _LONGEST
            and self.share_ticks(r) <= MAX_TICKS
            and self.needed_modulus(r) <= modulus
        )

    @property
    def _spread(self) -> float:
        """sqrt(2 ln(1/beta)): 1 for clients, about 9.12 for records."""
        if self.contribution is Contribution.CLIENT:
            return 1.0
        return math.sqrt(2 * math.log(1 / self.contribution.rounding_failure)) * (1 + 2.0**-50)

    def _check_length(self, r: float) -> None:
        if r + math.sqrt(self.padded) > _LONGEST:
            raise ConfigurationError(
                f"at most 2^30 steps fit between 0 and the longest vector, found {r:.6g} per clip "
                f"norm and {self.padded} coordinates; lower the resolution"
            )

    def _check_noise(self, r: float) -> None:
        ticks = self.share_ticks(r)
        deviation = math.sqrt(ticks / TICKS)
        if ticks > MAX_TICKS:
            raise ConfigurationError(
                f"a noise share has a standard deviation of at most 2^16 steps, found "
                f"{self.noise_multiplier} * {self.l2(r):.6g} / sqrt({self.honest_shares}) or more: "
                "lower the resolution, or spread the noise over more honest shares"
            )
        if self.mechanism is Mechanism.DISCRETE_GAUSSIAN and deviation < _MIN_SIGMA:
            raise ConfigurationError(
                f"a discrete Gaussian share needs a parameter of at least {_MIN_SIGMA:g} steps, "
                f"found {deviation:.4g}: the sum of smaller ones is no discrete Gaussian; raise "
                "the resolution or take Skellam noise"
            )


def padded_size(dimension: int) -> int:
    """D, the next multiple of the block size."""
    block = block_size(dimension)
    return -(-dimension // block) * block


def positive(name: str, value: float) -> float:
    """The value as a float.

    Raises:
        ConfigurationError: unless it is positive and finite.
    """
    if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name} must be positive and finite, found {value!r}")
    return float(value)


def check_counts(dimension: int, honest_shares: int, max_clients: int) -> None:
    """Refuses counts that are no integers >= 1, and more honest shares than clients.

    Raises:
        ConfigurationError: with the numbers.
    """
    counts = {
        "dimension": dimension,
        "honest_shares": honest_shares,
        "max_clients": max_clients,
    }
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{name} must be an int >= 1, found {value!r}")
        if value > _MOST:
            raise ConfigurationError(f"{name} must be at most 2^40, found {value}")
    if honest_shares > max_clients:
        raise ConfigurationError(
            f"honest_shares must be at most max_clients = {max_clients}, found {honest_shares}: "
            "shares that cannot arrive carry no noise"
        )


def check_modulus(modulus: int) -> None:
    """Refuses a modulus in which signed integers cannot be reduced.

    Raises:
        ConfigurationError: with the number.
    """
    if isinstance(modulus, bool) or not isinstance(modulus, int):
        raise ConfigurationError(f"modulus must be an int, found {modulus!r}")
    if not (2 <= modulus <= 1 << 63 or modulus == MAX_MODULUS):
        raise ConfigurationError(f"modulus must be in 2..2^63, or 2^64, found {modulus}")


def inflation_limit(max_inflation: float | None) -> float:
    """The given limit on Delta2 / r, or 1.05.

    Raises:
        ConfigurationError: unless it is in (1, 1.05].
    """
    if max_inflation is None:
        return MAX_INFLATION
    if not 1 < max_inflation <= MAX_INFLATION:
        raise ConfigurationError(
            f"max_inflation must be above 1 and at most {MAX_INFLATION}, found {max_inflation}"
        )
    return float(max_inflation)
