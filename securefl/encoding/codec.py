"""Steps 3 and 8: an update as a vector over Z_m, and the opened sum as a mean.

The plain codec: clip to norm C, Q integer steps per C, times an integer weight, modulo m. With
weights the vector carries one more entry, the weight itself, so that a secure sum of
(w_k x_k, w_k) yields the weighted mean while no message ever holds a client's w_k. The codec
refuses at construction every combination in which a sum could wrap around the modulus:

    2 n_max w_max Q + 1 <= m.

Its adversary is a careless configuration, not a person: whoever sees one encoded vector sees the
update. Hiding is the work of the protocol that masks it, and what the opened sum itself gives away
is bounded by differential privacy only, of which this codec adds none: :meth:`UpdateCodec.event`
says so. This module knows no keys, no masks and no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from securefl.encoding.clip import clip_by_norm
from securefl.encoding.contract import (
    AggregateUpdate,
    Codec,
    check_aggregate,
    check_share,
    divisor_of,
)
from securefl.encoding.fixed_point import (
    MAX_RESOLUTION,
    Rounding,
    check_resolution,
    from_steps,
    rounding_error,
    to_steps,
)
from securefl.errors import ConfigurationError, PeerProtocolError
from securefl.modular import RingVector
from securefl.round import AggregateSum, ClientId

if TYPE_CHECKING:
    from accounting.events import NonPrivate

__all__ = ["AggregateUpdate", "Codec", "CodecSpec", "UpdateCodec", "Weighting", "sum_encoded"]

_MERSENNE_31 = (1 << 31) - 1
_FORMAT = "securefl plain codec 1"


class Weighting(StrEnum):
    """Whether clients count alike, or each by an integer weight inside its vector."""

    EQUAL = "equal"
    WEIGHTED = "weighted"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """Everything two clients must agree on before their vectors may be added.

    Attributes:
        dimension: d, coordinates of an update, >= 1.
        clip_norm: C, positive and finite, in the units of the update.
        resolution: Q, integer steps per clip norm, 1..2^32.
        max_clients: n_max, most clients that one sum may contain, >= 1.
        modulus: m, 2^b with 1 <= b <= 64, or 2^31 - 1.
        weighting: equal, or weighted with the weight as last entry.
        max_weight: w_max >= 1; 1 for equal weights.
        rounding: nearest or stochastic.

    Raises:
        ConfigurationError: with the numbers, if 2 n_max w_max Q + 1 > m (a sum could wrap), or an
            attribute is out of its range.
    """

    dimension: int
    clip_norm: float
    resolution: int
    max_clients: int
    modulus: int
    weighting: Weighting = Weighting.EQUAL
    max_weight: int = 1
    rounding: Rounding = Rounding.NEAREST

    def __post_init__(self) -> None:
        for name in ("dimension", "max_clients", "max_weight", "modulus"):
            _check_positive_int(name, getattr(self, name))
        check_resolution(self.resolution)
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ConfigurationError(
                f"clip_norm must be positive and finite, found {self.clip_norm}"
            )
        object.__setattr__(self, "clip_norm", float(self.clip_norm))
        object.__setattr__(self, "weighting", Weighting(self.weighting))
        object.__setattr__(self, "rounding", Rounding(self.rounding))
        if self.weighting is Weighting.EQUAL and self.max_weight != 1:
            raise ConfigurationError(
                f"equal weights mean max_weight = 1, found {self.max_weight}; "
                "use Weighting.WEIGHTED to carry weights"
            )
        _check_modulus(self.modulus)
        needed = _needed_modulus(self.max_clients, self.max_weight, self.resolution)
        if needed > self.modulus:
            raise ConfigurationError(
                f"a sum could wrap: 2 * {self.max_clients} clients * weight {self.max_weight} * "
                f"{self.resolution} steps + 1 = {needed} exceeds the modulus {self.modulus}; "
                "lower the resolution or take more bits"
            )

    @classmethod
    def plan(
        cls,
        *,
        dimension: int,
        clip_norm: float,
        max_clients: int,
        bits: int | None = None,
        modulus: int | None = None,
        resolution: int | None = None,
        weighting: Weighting = Weighting.EQUAL,
        max_weight: int = 1,
        rounding: Rounding = Rounding.NEAREST,
    ) -> Self:
        """Chooses what is left open: the largest Q for a modulus, or the fewest bits for a Q.

        Give ``bits`` (m = 2^bits) or ``modulus`` and get the largest resolution that cannot wrap,
        at most 2^32. Give ``resolution`` alone and get the smallest power of two. Give none: 32
        bits. Give both and they are checked.

        Raises:
            ConfigurationError: if nothing fits, with the numbers.

        >>> CodecSpec.plan(dimension=650, clip_norm=1.0, max_clients=10, bits=16).resolution
        3276
        >>> CodecSpec.plan(dimension=650, clip_norm=1.0, max_clients=10, resolution=1000).modulus
        32768
        """
        _check_positive_int("max_clients", max_clients)
        _check_positive_int("max_weight", max_weight)
        if bits is not None and modulus is not None:
            raise ConfigurationError(f"give bits or modulus, not both: {bits} and {modulus}")
        if bits is not None:
            if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 64:
                raise ConfigurationError(f"bits must be an int in 1..64, found {bits}")
            modulus = 1 << bits
        if resolution is not None and modulus is None:
            check_resolution(resolution)
            modulus = _fewest_bits(_needed_modulus(max_clients, max_weight, resolution))
        if modulus is None:
            modulus = 1 << 32
        if resolution is None:
            _check_modulus(modulus)
            resolution = min(MAX_RESOLUTION, (modulus - 1) // (2 * max_clients * max_weight))
            if resolution < 1:
                raise ConfigurationError(
                    f"modulus {modulus} is too small for {max_clients} clients of weight up to "
                    f"{max_weight}: even one step per clip norm needs "
                    f"{_needed_modulus(max_clients, max_weight, 1)}; take more bits"
                )
        return cls(
            dimension=dimension,
            clip_norm=clip_norm,
            resolution=resolution,
            max_clients=max_clients,
            modulus=modulus,
            weighting=weighting,
            max_weight=max_weight,
            rounding=rounding,
        )

    @property
    def length(self) -> int:
        """Entries of an encoded vector: d, or d + 1 where a weight is carried."""
        return self.dimension + (1 if self.weighting is Weighting.WEIGHTED else 0)

    @property
    def bits(self) -> int:
        """Bits of one entry on the wire: ceil(log2 m)."""
        return (self.modulus - 1).bit_length()

    def digest(self) -> bytes:
        """SHA-256 over the canonical JSON of all attributes; 32 bytes.

        It enters the round's context, so that clients with different codecs are never summed.
        """
        fields: dict[str, Any] = {
            "format": _FORMAT,
            "dimension": self.dimension,
            "clip_norm": self.clip_norm,
            "resolution": self.resolution,
            "max_clients": self.max_clients,
            "modulus": self.modulus,
            "weighting": self.weighting.value,
            "max_weight": self.max_weight,
            "rounding": self.rounding.value,
        }
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).digest()


class UpdateCodec:
    """Encodes updates to Z_m and decodes the opened sum, without adding noise.

    >>> spec = CodecSpec.plan(dimension=3, clip_norm=10.0, max_clients=2,
    ...                       weighting=Weighting.WEIGHTED, max_weight=10)
    >>> codec = UpdateCodec(spec)
    >>> a = codec.encode(np.array([1.0, 2.0, 3.0]), weight=6)
    >>> b = codec.encode(np.array([4.0, 5.0, 6.0]), weight=4)
    >>> opened = AggregateSum(vector=sum_encoded([a, b]), min_honest=2,
    ...                       survivors=(ClientId(1), ClientId(2)))
    >>> codec.decode(opened).mean.round(3).tolist()
    [2.2, 3.2, 4.2]

    With equal weights the same two updates give their plain mean:

    >>> codec = UpdateCodec(CodecSpec.plan(dimension=3, clip_norm=10.0, max_clients=2))
    >>> a, b = codec.encode(np.array([1.0, 2.0, 3.0])), codec.encode(np.array([4.0, 5.0, 6.0]))
    >>> opened = AggregateSum(vector=sum_encoded([a, b]), min_honest=2,
    ...                       survivors=(ClientId(1), ClientId(2)))
    >>> codec.decode(opened).mean.round(3).tolist()
    [2.5, 3.5, 4.5]
    """

    def __init__(self, spec: CodecSpec) -> None:
        self.spec = spec

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
        """0: without noise there is no event that could fail."""
        return 0.0

    def digest(self) -> bytes:
        """The specification's digest; 32 bytes."""
        return self.spec.digest()

    @property
    def sensitivity(self) -> float:
        """Largest Euclidean norm of one client's encoded vector, in integer steps.

        Times C/Q it is in the units of the update. It exceeds w_max Q because rounding moves each
        coordinate by up to half a step (a whole one, stochastically) and because the weight entry
        counts too. A noise that is to hide one client must be scaled to this number, not to C.
        """
        spec = self.spec
        per_coordinate = 0.5 if spec.rounding is Rounding.NEAREST else 1.0
        root = math.sqrt(spec.dimension)
        vector = min(spec.resolution + per_coordinate * root, spec.resolution * root)
        if spec.weighting is Weighting.EQUAL:
            return vector
        return spec.max_weight * math.sqrt(vector**2 + 1.0)

    def event(self, survivors: int, colluding: int = 0) -> NonPrivate:
        """The privacy event of one opened sum: none is added here, so ``accounting.NonPrivate()``.

        survivors, colluding: clients in the sum and those assumed to tell; they would matter to a
        codec with noise, and are checked so that a caller's mistake shows here too.

        Raises:
            ConfigurationError: unless 0 <= colluding <= survivors <= n_max and survivors >= 1.
        """
        from accounting.events import NonPrivate  # noqa: PLC0415  # keeps scipy out of the masking client

        if not (1 <= survivors <= self.spec.max_clients and 0 <= colluding <= survivors):
            raise ConfigurationError(
                f"expected 0 <= colluding <= survivors <= {self.spec.max_clients} and at least "
                f"one survivor, found {colluding} colluding of {survivors}"
            )
        return NonPrivate()

    def error_bound(self, clients: int) -> float:
        """Largest error of one coordinate of the decoded *sum* of ``clients`` clipped updates.

        n w_max C/(2Q) to the nearest step, n w_max C/Q stochastically (plus 2^-18 of a step each
        for float64), in the units of the update. Of the mean: :attr:`mean_error_bound`.
        """
        if not 1 <= clients <= self.spec.max_clients:
            raise ConfigurationError(
                f"clients must be in 1..{self.spec.max_clients}, found {clients}"
            )
        return clients * self.spec.max_weight * self.mean_error_bound

    @property
    def mean_error_bound(self) -> float:
        """Largest error of one coordinate of the decoded (weighted) mean, whatever the weights."""
        return rounding_error(
            clip_norm=self.spec.clip_norm,
            resolution=self.spec.resolution,
            rounding=self.spec.rounding,
        )

    def encode(
        self,
        values: NDArray[np.floating[Any]],
        *,
        weight: int = 1,
        share: float = 1.0,
        round_seed: bytes = b"",
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> RingVector:
        """One client's update as integers modulo m, ready to be masked. Used once, then dropped.

        Args:
            values: float32[d] or float64[d], finite; clipped to C here.
            weight: w in 0..w_max (1 for equal weights). The result is w times the rounded update,
                and w itself as last entry. A zero weight sends zeros.
            share: factor in [0, 1] on the clipped update; it changes no weight and no divisor.
            round_seed: public seed of the round. The plain codec has no public randomness and
                leaves it unread; codecs that rotate or select coordinates need it.
            random_bytes: secret coins for stochastic rounding.

        Returns:
            RingVector[d] or RingVector[d + 1] modulo m.

        Raises:
            ConfigurationError: on NaN or infinity, a wrong length, or a weight or share out of
                range.
        """
        del round_seed  # part of every codec's contract
        spec = self.spec
        if getattr(values, "shape", None) != (spec.dimension,):
            raise ConfigurationError(
                f"this codec encodes {spec.dimension} coordinates, found an update of shape "
                f"{getattr(values, 'shape', type(values).__name__)}"
            )
        self._check_weight(weight)
        steps = to_steps(
            clip_by_norm(values, spec.clip_norm).values * check_share(share),
            clip_norm=spec.clip_norm,
            resolution=spec.resolution,
            rounding=spec.rounding,
            random_bytes=random_bytes,
        )
        if spec.weighting is Weighting.WEIGHTED:
            # |steps| <= Q and w Q <= (m - 1)/2 < 2^63: int64 holds the product exactly.
            steps = np.append(steps * np.int64(weight), np.int64(weight))
        return RingVector.from_signed(steps, spec.modulus)

    def decode(
        self,
        aggregate: AggregateSum,
        *,
        round_seed: bytes = b"",
        denominator: float | None = None,
    ) -> AggregateUpdate:
        """The opened sum as a mean.

        Args:
            aggregate: the sum over its survivors, in this codec's ring and length.
            round_seed: as in :meth:`encode`.
            denominator: public divisor instead of the number of survivors, positive; equal weights
                only.

        Returns:
            The mean: weighted by the decoded weights where they are carried.

        Raises:
            ConfigurationError: on another ring or length, more than n_max survivors, a weighted
                sum of weight zero, or a denominator that does not apply.
            PeerProtocolError: if the sum lies outside what its survivors could have encoded: at
                least one of them sent something else. The secure sum hides which one.
        """
        del round_seed  # part of every codec's contract
        spec, survivors = self.spec, aggregate.survivors
        check_aggregate(
            aggregate, modulus=spec.modulus, length=spec.length, max_clients=spec.max_clients
        )
        signed = aggregate.vector.centred()
        if spec.weighting is Weighting.WEIGHTED:
            if denominator is not None:
                raise ConfigurationError(
                    f"a weighted sum is divided by its own sum of weights; found denominator "
                    f"{denominator}: use equal weights with a public denominator"
                )
            total = int(signed[-1])
            _check_reachable(signed[-1:], 0, len(survivors) * spec.max_weight, survivors)
            if total == 0:
                raise ConfigurationError(
                    f"the weights of all {len(survivors)} survivors are zero: there is no mean; "
                    "skip the round"
                )
            signed, divisor, reach = signed[:-1], float(total), total
        else:
            divisor, reach = divisor_of(len(survivors), denominator), len(survivors)
        limit = reach * spec.resolution
        _check_reachable(signed, -limit, limit, survivors)
        decoded = from_steps(signed, clip_norm=spec.clip_norm, resolution=spec.resolution)
        return AggregateUpdate(mean=decoded / divisor, weight=divisor, survivors=survivors)

    def _check_weight(self, weight: int) -> None:
        if isinstance(weight, bool) or not isinstance(weight, (int, np.integer)):
            raise ConfigurationError(f"weight must be an int, found {type(weight).__name__}")
        if self.spec.weighting is Weighting.EQUAL and weight != 1:
            raise ConfigurationError(
                f"this codec carries no weights: weight must be 1, found {weight}"
            )
        if not 0 <= weight <= self.spec.max_weight:
            raise ConfigurationError(f"weight must be in 0..{self.spec.max_weight}, found {weight}")


def sum_encoded(vectors: Sequence[RingVector]) -> RingVector:
    """The plain sum of encoded vectors modulo m: what a secure sum must equal bit for bit.

    An oracle for tests and for simulations that skip the protocol. It hides nothing.

    Raises:
        ConfigurationError: on an empty list, or different moduli or lengths.
    """
    if not vectors:
        raise ConfigurationError("a sum needs at least one vector, found none")
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total


def _check_reachable(
    signed: NDArray[np.int64], low: int, high: int, survivors: tuple[ClientId, ...]
) -> None:
    """Refuses a sum that honest encoders could not have produced."""
    found_low, found_high = int(signed.min()), int(signed.max())
    if found_low < low or found_high > high:
        raise PeerProtocolError(
            f"an entry of the sum lies in [{found_low}, {found_high}], its {len(survivors)} "
            f"survivors can reach [{low}, {high}] at most: one of them did not encode with this "
            "codec (the sum hides which); discard the round",
            culprits=(),
        )


def _check_positive_int(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be an int >= 1, found {value!r}")


def _check_modulus(modulus: int) -> None:
    power_of_two = modulus & (modulus - 1) == 0 and 2 <= modulus <= 1 << 64
    if not (power_of_two or modulus == _MERSENNE_31):
        raise ConfigurationError(
            f"modulus must be 2^b with 1 <= b <= 64, or 2^31 - 1; found {modulus}"
        )


def _needed_modulus(max_clients: int, max_weight: int, resolution: int) -> int:
    """2 n_max w_max Q + 1: every sum of n_max vectors has its own residue."""
    return 2 * max_clients * max_weight * resolution + 1


def _fewest_bits(needed: int) -> int:
    bits = (needed - 1).bit_length()
    if bits > 64:
        raise ConfigurationError(
            f"the sum needs a modulus of {needed}, which has more than 64 bits; lower the "
            "resolution, the number of clients or the largest weight"
        )
    return 1 << bits
