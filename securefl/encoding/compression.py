"""Fewer coordinates, before clipping: linear, and agreed by all clients before masking.

A secure sum adds vectors entry by entry, so a compression must be one linear map that is the same
for all: C(x) + C(y) = C(x + y). Three are offered: the same random coordinates for all (Konečný et
al. 2016, *Federated learning: strategies for improving communication efficiency*, section 3), the
largest coordinates of a public vector such as the previous mean update, and random coordinates of
the rotated vector, a sketch. Fewer bits per coordinate are the codec's own business.

Not offered, because they are no such map or tell something by themselves: each client's own
largest coordinates (their positions differ and show where its data acts), a scale or a sign with a
scale per client (their sum has no common unit), and entropy coding of what was masked (it looks
uniform). Feeding the error of a round into the next update is left out as well: under differential
privacy the clip would have to follow the residual.

Compression is not privacy: what is kept is sent as it is, and what is left out today may be kept
tomorrow. Select first, then clip: the norm that noise must cover is that of what is sent. This
module knows no integers, no noise and no keys.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from securefl.encoding.clip import clip_by_norm, finite_float64
from securefl.encoding.contract import AggregateUpdate, Codec
from securefl.encoding.rotation import Rotation, public_bytes
from securefl.errors import ConfigurationError
from securefl.modular import RingVector
from securefl.round import AggregateSum

if TYPE_CHECKING:
    from accounting.events import Event

__all__ = ["CompressedCodec", "Compression", "RandomK", "SharedTopK", "Sketch"]

_Float = TypeVar("_Float", np.float32, np.float64)
_LONGEST = 2.0**500


class Compression(Protocol):
    """A linear map from d to k coordinates and a map back; public, and the same for all clients."""

    @property
    def dimension(self) -> int:
        """d, coordinates before."""

    @property
    def kept(self) -> int:
        """k, coordinates after."""

    def compress(self, values: NDArray[_Float], *, round_seed: bytes) -> NDArray[_Float]:
        """[d] to [k], linear."""

    def expand(self, values: NDArray[np.float64], *, round_seed: bytes) -> NDArray[np.float64]:
        """[k] back to [d]."""

    def digest(self) -> bytes:
        """32 bytes that differ where compressions differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomK:
    """k coordinates drawn from the round's public seed, the same for all clients of the round.

    Unbiased: a coordinate is kept with probability k/d and comes back times d/k, so the expanded
    vector is the original one on average over seeds. Noise in what is sent is multiplied as well.

    Attributes:
        dimension: d >= 1.
        kept: k, 1 .. d.

    >>> x = np.arange(1.0, 6.0)
    >>> small = RandomK(dimension=5, kept=2).compress(x, round_seed=bytes(16))
    >>> RandomK(dimension=5, kept=2).expand(small, round_seed=bytes(16)).tolist()
    [0.0, 0.0, 7.5, 10.0, 0.0]
    """

    dimension: int
    kept: int

    def __post_init__(self) -> None:
        _check_sizes(self.dimension, self.kept, self.dimension)

    def compress(self, values: NDArray[_Float], *, round_seed: bytes) -> NDArray[_Float]:
        """The kept coordinates in ascending order."""
        _check_length(values, self.dimension)
        return values[self._indices(round_seed)]

    def expand(self, values: NDArray[np.float64], *, round_seed: bytes) -> NDArray[np.float64]:
        """The kept coordinates in their places, times d/k; zeros elsewhere."""
        _check_length(values, self.kept)
        full = np.zeros(self.dimension)
        full[self._indices(round_seed)] = values * (self.dimension / self.kept)
        return full

    def digest(self) -> bytes:
        """SHA-256 of the kind and the sizes."""
        return _digest(b"random-k 1", self.dimension, self.kept)

    def _indices(self, round_seed: bytes) -> NDArray[np.int64]:
        return _chosen(round_seed, b"securefl random-k 1", self.dimension, self.kept)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharedTopK:
    """The k coordinates in which a public vector was largest. Biased: the others stay at zero.

    Attributes:
        dimension: d >= 1.
        indices: int64[k], ascending and distinct, in 0 .. d - 1.

    The vector must be public already, as the decoded mean of an earlier round is: a choice that
    follows private values is a release of its own that nobody has paid for.

    >>> top = SharedTopK.of(np.array([0.1, -3.0, 2.0, 0.0]), kept=2)
    >>> top.compress(np.array([5.0, 6.0, 7.0, 8.0]), round_seed=b"").tolist()
    [6.0, 7.0]
    """

    dimension: int
    indices: NDArray[np.int64]

    def __post_init__(self) -> None:
        indices = np.array(self.indices)
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise ConfigurationError(
                f"indices must be integers with one axis, found {indices.dtype} of shape "
                f"{indices.shape}"
            )
        indices = indices.astype(np.int64)
        _check_sizes(self.dimension, len(indices), self.dimension)
        if (
            int(indices[0]) < 0
            or int(indices[-1]) >= self.dimension
            or (np.diff(indices) < 1).any()
        ):
            raise ConfigurationError(
                f"indices must be ascending and distinct in 0..{self.dimension - 1}, found "
                f"{int(indices.min())}..{int(indices.max())}"
            )
        indices.flags.writeable = False
        object.__setattr__(self, "indices", indices)

    @classmethod
    def of(cls, public: NDArray[np.floating[Any]], *, kept: int) -> Self:
        """The k largest magnitudes of a public vector; of equal ones those with lower index.

        Raises:
            ConfigurationError: if the vector is not finite, or k not in 1 .. d.
        """
        magnitudes = np.abs(finite_float64(public))
        _check_sizes(len(magnitudes), kept, len(magnitudes))
        # A stable sort: the tie rule must not depend on the machine.
        order = np.argsort(-magnitudes, kind="stable")[:kept]
        return cls(dimension=len(magnitudes), indices=np.sort(order))

    @property
    def kept(self) -> int:
        """k, coordinates after."""
        return len(self.indices)

    def compress(self, values: NDArray[_Float], *, round_seed: bytes) -> NDArray[_Float]:
        """The kept coordinates in ascending order; the seed is not read."""
        del round_seed  # part of every compression's contract
        _check_length(values, self.dimension)
        return values[self.indices]

    def expand(self, values: NDArray[np.float64], *, round_seed: bytes) -> NDArray[np.float64]:
        """The kept coordinates in their places, zeros elsewhere."""
        del round_seed  # part of every compression's contract
        _check_length(values, self.kept)
        full = np.zeros(self.dimension)
        full[self.indices] = values
        return full

    def digest(self) -> bytes:
        """SHA-256 of the kind, the sizes and the indices."""
        rest = self.indices.astype("<i8").tobytes()
        return _digest(b"shared top-k 1", self.dimension, self.kept, rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """k random coordinates of the rotated vector: unbiased, with an error that is spread evenly.

    Where a few coordinates carry the update, :class:`RandomK` keeps them or loses them; after the
    rotation every coordinate carries a little of each.

    Attributes:
        dimension: d >= 1.
        kept: k, 1 .. D, where D is d padded to the rotation's blocks.
    """

    dimension: int
    kept: int

    def __post_init__(self) -> None:
        _check_sizes(self.dimension, self.kept, self._rotation.padded)

    def compress(self, values: NDArray[_Float], *, round_seed: bytes) -> NDArray[_Float]:
        """The kept coordinates of the rotated vector."""
        _check_length(values, self.dimension)
        return self._rotation.apply(values, round_seed=round_seed)[self._indices(round_seed)]

    def expand(self, values: NDArray[np.float64], *, round_seed: bytes) -> NDArray[np.float64]:
        """Zeros for what was left out, times D/k, rotated back."""
        _check_length(values, self.kept)
        full = np.zeros(self._rotation.padded)
        full[self._indices(round_seed)] = values * (len(full) / self.kept)
        return self._rotation.invert(full, round_seed=round_seed)

    def digest(self) -> bytes:
        """SHA-256 of the kind and the sizes."""
        return _digest(b"sketch 1", self.dimension, self.kept)

    @property
    def _rotation(self) -> Rotation:
        # Not the signs of the codec that follows: two rotations with one seed would interact.
        return Rotation(dimension=self.dimension, label=b"securefl sketch rotation 1")

    def _indices(self, round_seed: bytes) -> NDArray[np.int64]:
        return _chosen(round_seed, b"securefl sketch 1", self._rotation.padded, self.kept)


class CompressedCodec:
    """A codec of k coordinates behind a compression from d: select, then clip, round and mask.

    >>> from securefl.encoding.codec import CodecSpec, UpdateCodec
    >>> from securefl.round import ClientId
    >>> inner = UpdateCodec(CodecSpec.plan(dimension=2, clip_norm=10.0, max_clients=2))
    >>> codec = CompressedCodec(SharedTopK.of(np.array([0.0, 1.0, 2.0]), kept=2), inner)
    >>> vector = codec.encode(np.array([7.0, 3.0, 4.0]))
    >>> opened = AggregateSum(vector=vector, survivors=(ClientId(1),), min_honest=1)
    >>> codec.decode(opened).mean.round(3).tolist()
    [0.0, 3.0, 4.0]
    """

    def __init__(self, compression: Compression, codec: Codec) -> None:
        if codec.dimension != compression.kept:
            raise ConfigurationError(
                f"the compression keeps {compression.kept} coordinates, the codec encodes "
                f"{codec.dimension}: plan the codec for what is kept"
            )
        self.compression = compression
        self.codec = codec

    @property
    def dimension(self) -> int:
        """d, coordinates of an update before compression."""
        return self.compression.dimension

    @property
    def modulus(self) -> int:
        """The ring's m."""
        return self.codec.modulus

    @property
    def length(self) -> int:
        """Entries of an encoded vector."""
        return self.codec.length

    @property
    def delta_slack(self) -> float:
        """The inner codec's."""
        return self.codec.delta_slack

    def digest(self) -> bytes:
        """SHA-256 over both digests; 32 bytes."""
        parts = self.compression.digest() + self.codec.digest()
        return hashlib.sha256(b"securefl compressed codec 1" + parts).digest()

    def encode(
        self,
        values: NDArray[np.floating[Any]],
        *,
        weight: int = 1,
        share: float = 1.0,
        round_seed: bytes = b"",
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> RingVector:
        """The compressed update, encoded by the inner codec; arguments and errors are its own.

        NaN and infinity are refused wherever they stand, also where they would be left out.
        """
        if getattr(values, "shape", None) != (self.dimension,):
            raise ConfigurationError(
                f"this codec encodes {self.dimension} coordinates, found an update of shape "
                f"{getattr(values, 'shape', type(values).__name__)}"
            )
        # Rotating numbers near the largest float would give infinity, and an error would tell of
        # them: so long a vector is shortened first. Its real bound is the inner codec's.
        vector = clip_by_norm(values, _LONGEST).values
        small: NDArray[np.float64] = self.compression.compress(vector, round_seed=round_seed)
        return self.codec.encode(
            small, weight=weight, share=share, round_seed=round_seed, random_bytes=random_bytes
        )

    def encode_zero(
        self, *, round_seed: bytes = b"", random_bytes: Callable[[int], bytes] = os.urandom
    ) -> RingVector:
        """:meth:`encode` of zeros: with a noisy codec the share of a client without data."""
        zeros = np.zeros(self.dimension)
        return self.encode(zeros, round_seed=round_seed, random_bytes=random_bytes)

    def decode(
        self,
        aggregate: AggregateSum,
        *,
        round_seed: bytes = b"",
        denominator: float | None = None,
    ) -> AggregateUpdate:
        """The inner codec's mean, expanded to d coordinates."""
        small = self.codec.decode(aggregate, round_seed=round_seed, denominator=denominator)
        return AggregateUpdate(
            mean=self.compression.expand(small.mean, round_seed=round_seed),
            weight=small.weight,
            survivors=small.survivors,
        )

    def event(self, survivors: int, colluding: int = 0) -> Event:
        """The inner codec's event: leaving coordinates out neither adds nor saves privacy loss."""
        return self.codec.event(survivors, colluding)


@lru_cache(maxsize=4)
def _chosen(round_seed: bytes, label: bytes, size: int, kept: int) -> NDArray[np.int64]:
    """int64[kept], ascending: the places of the smallest of ``size`` public 64-bit keys."""
    keys = np.frombuffer(public_bytes(round_seed, label, 8 * size), dtype="<u8")
    largest = np.partition(keys, kept - 1)[kept - 1]
    below = np.flatnonzero(keys < largest)
    # Equal keys are as good as impossible, and still must not be chosen differently elsewhere.
    equal = np.flatnonzero(keys == largest)[: kept - len(below)]
    indices = np.sort(np.concatenate([below, equal])).astype(np.int64)
    indices.flags.writeable = False
    return indices


def _check_sizes(dimension: int, kept: int, most: int) -> None:
    for name, value in (("dimension", dimension), ("kept", kept)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{name} must be an int >= 1, found {value!r}")
    if kept > most:
        raise ConfigurationError(f"kept must be at most {most}, found {kept}")


def _check_length(values: NDArray[Any], length: int) -> None:
    if values.shape != (length,):
        raise ConfigurationError(f"expected {length} coordinates, found shape {values.shape}")


def _digest(kind: bytes, dimension: int, kept: int, rest: bytes = b"") -> bytes:
    sizes = dimension.to_bytes(8, "little") + kept.to_bytes(8, "little")
    return hashlib.sha256(b"securefl compression: " + kind + b"\0" + sizes + rest).digest()
