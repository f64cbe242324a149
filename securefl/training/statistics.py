"""What a federation may ask of its records at once: means, variances, histograms, as sums.

A :class:`Query` turns a client's records into one vector per record and adds them up; the sum over
all clients is the whole statistic, so it goes through a secure sum like an update does. Values are
brought into *public* bounds first, never into bounds read off the records:
u = (2 x - a - b)/(b - a) clipped to [-1, 1]. A record then gives (present, u, u^2) per feature,
missing cells give zeros, and with S0, S1, S2 the three sums

    mean = S1 / S0,    variance = max(S2 / S0 - (S1 / S0)^2, 1e-4)      (in units of u),

which is what pooling the records would give. The sum hides the clients behind each other and is
not private by itself: a mean over few records says much about each. ``norm`` bounds one record's
vector, which is what noise must be scaled to. This module knows no codec, no protocol and no noise;
:mod:`securefl.simulation.statistics` sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from securefl.errors import ConfigurationError, SecureFLError

__all__ = [
    "LEAST_VARIANCE",
    "Bounds",
    "Histogram",
    "HistogramQuery",
    "MeanQuery",
    "Means",
    "Moments",
    "MomentsQuery",
    "Query",
    "TooFewRecords",
]

LEAST_VARIANCE = 1e-4
"""Floor of a variance in units of u: a constant feature is not divided by zero."""

T_co = TypeVar("T_co", covariant=True)


class TooFewRecords(SecureFLError):
    """A statistic would rest on fewer records than was asked for; it is not returned.

    Attributes:
        needed: fewest records.
        had: how many there were (an estimate where noise was added).
    """

    def __init__(self, message: str, *, needed: int, had: float) -> None:
        super().__init__(message)
        self.needed = needed
        self.had = had


class Query(Protocol[T_co]):
    """A statistic that is a sum over records."""

    @property
    def length(self) -> int:
        """Entries of one record's vector; each lies in [-1, 1]."""
        ...

    @property
    def norm(self) -> float:
        """Largest Euclidean norm of one record's vector."""
        ...

    def total(self, records: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The sum of one client's vectors, float64[length]."""
        ...

    def result(self, sums: NDArray[np.float64], *, min_count: int) -> T_co:
        """The statistic from the sums over all clients.

        Raises:
            TooFewRecords: if it rests on fewer than ``min_count`` records.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """Public bounds of F features: from what the numbers mean, never from the records.

    Attributes:
        low, high: float64[F], finite, low < high.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = np.array(getattr(self, name), dtype=np.float64)  # a copy: nobody changes it
            object.__setattr__(self, name, value)
        if self.low.ndim != 1 or self.low.shape != self.high.shape or not self.low.size:
            raise ConfigurationError(
                f"bounds need one low and one high per feature, found shapes {self.low.shape} and "
                f"{self.high.shape}"
            )
        bad = ~(np.isfinite(self.low) & np.isfinite(self.high) & (self.low < self.high))
        if bad.any():
            first = int(np.argmax(bad))
            raise ConfigurationError(
                f"bounds must be finite with low < high; feature {first} has "
                f"{self.low[first]} and {self.high[first]}"
            )

    @classmethod
    def of(cls, low: ArrayLike, high: ArrayLike) -> Bounds:
        """Bounds from numbers or sequences.

        >>> Bounds.of([20, 80], [90, 220]).features
        2
        """
        return cls(
            low=np.atleast_1d(np.asarray(low, dtype=np.float64)),
            high=np.atleast_1d(np.asarray(high, dtype=np.float64)),
        )

    @property
    def features(self) -> int:
        """F."""
        return len(self.low)

    def unit(self, records: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Records float[n, F] as u in [-1, 1]; NaN stays NaN and means a missing cell.

        Raises:
            ConfigurationError: on another shape.
        """
        if records.ndim != 2 or records.shape[1] != self.features:
            raise ConfigurationError(
                f"records must have shape [n, {self.features}], found {records.shape}"
            )
        x = records.astype(np.float64)
        width = self.high - self.low
        u: NDArray[np.float64] = np.clip((2.0 * x - self.low - self.high) / width, -1.0, 1.0)
        return u

    def value(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Back from u to the features' own units."""
        middle: NDArray[np.float64] = 0.5 * (self.low + self.high + u * (self.high - self.low))
        return middle


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Means:
    """Means of F features over all clients.

    Attributes:
        count: float64[F], records with a value; a whole number unless noise was added.
        mean: float64[F], in the features' units, of the values clipped to the bounds.
    """

    count: NDArray[np.float64]
    mean: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Means and variances of F features over all clients.

    Attributes:
        bounds: the public bounds that values were clipped to.
        count: float64[F], records with a value; a whole number unless noise was added.
        unit_mean, unit_variance: float64[F], of u in [-1, 1].
    """

    bounds: Bounds = field(repr=False)
    count: NDArray[np.float64]
    unit_mean: NDArray[np.float64]
    unit_variance: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """In the features' own units, of the values clipped to the bounds."""
        return self.bounds.value(self.unit_mean)

    @property
    def variance(self) -> NDArray[np.float64]:
        """In the squares of the features' own units."""
        width: NDArray[np.float64] = 0.5 * (self.bounds.high - self.bounds.low)
        return self.unit_variance * width**2

    def standardise(self, records: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Records float[n, F] minus mean over deviation, float32; missing cells become 0."""
        u = self.bounds.unit(records)
        scaled = (u - self.unit_mean) / np.sqrt(self.unit_variance)
        return np.where(np.isnan(scaled), 0.0, scaled).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sums(Generic[T_co]):
    bounds: Bounds

    @property
    def powers(self) -> int:
        """Vectors per feature: the count, the sum, the sum of squares, ..."""
        raise NotImplementedError

    @property
    def length(self) -> int:
        """See :class:`Query`."""
        return self.powers * self.bounds.features

    @property
    def norm(self) -> float:
        """See :class:`Query`: every entry is at most 1."""
        return math.sqrt(self.length)

    def total(self, records: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """See :class:`Query`; records float[n, F], NaN where a cell is missing."""
        u = self.bounds.unit(records)
        present = ~np.isnan(u)
        filled = np.where(present, u, 0.0)
        parts = [present.sum(axis=0, dtype=np.float64)]
        parts += [(filled**power).sum(axis=0) for power in range(1, self.powers)]
        return np.concatenate(parts)

    def _checked(self, sums: NDArray[np.float64], min_count: int) -> NDArray[np.float64]:
        """The sums as float64[powers, F], refused where the count is too small."""
        if sums.shape != (self.length,):
            raise ConfigurationError(f"expected {self.length} sums, found shape {sums.shape}")
        if isinstance(min_count, bool) or min_count < 1:
            raise ConfigurationError(f"min_count must be at least 1, found {min_count}")
        table = sums.reshape(self.powers, self.bounds.features)
        feature = int(np.argmin(table[0]))
        had = float(table[0, feature])
        if not had >= min_count:
            raise TooFewRecords(
                f"feature {feature} has a value in {had:.6g} records, at least {min_count} are "
                "needed: drop the feature, or lower min_count if so few may be described",
                needed=min_count,
                had=had,
            )
        return table


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanQuery(_Sums[Means]):
    """The mean of every feature.

    Attributes:
        bounds: public.
    """

    @property
    def powers(self) -> int:
        """Count and sum."""
        return 2

    def result(self, sums: NDArray[np.float64], *, min_count: int) -> Means:
        """See :class:`Query`."""
        s0, s1 = self._checked(sums, min_count)
        # Noise may carry a mean past the bounds that every value keeps.
        return Means(count=s0, mean=self.bounds.value(np.clip(s1 / s0, -1.0, 1.0)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MomentsQuery(_Sums[Moments]):
    """Mean and variance of every feature: federated standardisation.

    Attributes:
        bounds: public.

    >>> query = MomentsQuery(bounds=Bounds.of(0, 10))
    >>> a, b = np.array([[2.0], [4.0]]), np.array([[6.0], [np.nan]])
    >>> found = query.result(query.total(a) + query.total(b), min_count=3)
    >>> found.count.tolist(), found.mean.tolist(), found.variance.round(3).tolist()
    ([3.0], [4.0], [2.667])
    """

    @property
    def powers(self) -> int:
        """Count, sum and sum of squares."""
        return 3

    def result(self, sums: NDArray[np.float64], *, min_count: int) -> Moments:
        """See :class:`Query`."""
        s0, s1, s2 = self._checked(sums, min_count)
        mean = np.clip(s1 / s0, -1.0, 1.0)
        variance = np.maximum(np.clip(s2 / s0, 0.0, 1.0) - mean**2, LEAST_VARIANCE)
        return Moments(bounds=self.bounds, count=s0, unit_mean=mean, unit_variance=variance)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """How values spread over public bins.

    Attributes:
        edges: float64[B + 1], ascending.
        counts: float64[B]; whole numbers unless noise was added, then possibly negative.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.float64]

    @property
    def width(self) -> float:
        """Widest bin: what a quantile may be off by."""
        return float(np.diff(self.edges).max())

    @property
    def median(self) -> float:
        """The value below which half of the counts lie, see :meth:`quantile`."""
        return self.quantile(0.5)

    def quantile(self, share: float) -> float:
        """The value below which ``share`` of the counts lie, evenly spread within each bin.

        For exact counts it differs from the quantile of the values by at most a bin's width plus
        the gap between neighbouring values. Negative counts count as zero.

        Raises:
            ConfigurationError: unless 0 <= share <= 1 and some count is positive.
        """
        if not 0.0 <= share <= 1.0:
            raise ConfigurationError(f"share must be in [0, 1], found {share}")
        counts, below = self._positive()
        filled = np.flatnonzero(counts)
        wanted = share * below[-1]
        index = int(min(np.searchsorted(below, wanted), filled[-1]))
        index = max(index, int(filled[0]))
        before = below[index] - counts[index]
        inside = 0.0 if counts[index] == 0.0 else (wanted - before) / counts[index]
        low, high = self.edges[index], self.edges[index + 1]
        return float(low + min(max(inside, 0.0), 1.0) * (high - low))

    def mean_of_lowest(self, share: float) -> float:
        """Mean of the lowest ``share`` of the counts, every value at the middle of its bin.

        share: in (0, 1]. Off by at most half a bin's width for exact counts.
        """
        if not 0.0 < share <= 1.0:
            raise ConfigurationError(f"share must be in (0, 1], found {share}")
        counts, below = self._positive()
        wanted = share * below[-1]
        taken = np.clip(wanted - (below - counts), 0.0, counts)
        middles = 0.5 * (self.edges[:-1] + self.edges[1:])
        return float(taken @ middles / taken.sum())

    def mean_of_highest(self, share: float) -> float:
        """As :meth:`mean_of_lowest`, from the other end."""
        mirrored = Histogram(edges=-self.edges[::-1], counts=self.counts[::-1])
        return -mirrored.mean_of_lowest(share)

    def _positive(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        counts = np.maximum(self.counts, 0.0)
        below = np.cumsum(counts)
        if not below[-1] > 0.0:
            raise ConfigurationError("the histogram is empty: no count is positive")
        return counts, below


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HistogramQuery:
    """Counts in public bins; a value outside falls into the first or last.

    Attributes:
        edges: float64[B + 1], finite, strictly ascending, public.
    """

    edges: NDArray[np.float64]

    def __post_init__(self) -> None:
        edges = np.array(self.edges, dtype=np.float64)
        object.__setattr__(self, "edges", edges)
        if edges.ndim != 1 or len(edges) < 2 or not np.isfinite(edges).all():
            raise ConfigurationError(
                f"edges must be at least two finite numbers, found {edges.tolist()}"
            )
        if not (np.diff(edges) > 0).all():
            raise ConfigurationError(f"edges must be strictly ascending, found {edges.tolist()}")

    @classmethod
    def even(cls, low: float, high: float, bins: int) -> HistogramQuery:
        """Bins of one width from ``low`` to ``high``."""
        if isinstance(bins, bool) or bins < 1:
            raise ConfigurationError(f"bins must be at least 1, found {bins}")
        return cls(edges=np.linspace(low, high, bins + 1))

    @property
    def length(self) -> int:
        """See :class:`Query`."""
        return len(self.edges) - 1

    @property
    def norm(self) -> float:
        """See :class:`Query`: a record is in one bin, or in none."""
        return 1.0

    def total(self, records: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """See :class:`Query`; records float[n], NaN where the value is missing."""
        if records.ndim != 1:
            raise ConfigurationError(f"values must have shape [n], found {records.shape}")
        values = records[~np.isnan(records)]
        bins = np.clip(np.searchsorted(self.edges, values, side="right") - 1, 0, self.length - 1)
        return np.bincount(bins, minlength=self.length).astype(np.float64)

    def result(self, sums: NDArray[np.float64], *, min_count: int) -> Histogram:
        """See :class:`Query`."""
        if sums.shape != (self.length,):
            raise ConfigurationError(f"expected {self.length} counts, found shape {sums.shape}")
        if isinstance(min_count, bool) or min_count < 1:
            raise ConfigurationError(f"min_count must be at least 1, found {min_count}")
        had = float(sums.sum())
        if not had >= min_count:
            raise TooFewRecords(
                f"the histogram holds {had:.6g} values, at least {min_count} are needed",
                needed=min_count,
                had=had,
            )
        return Histogram(edges=self.edges, counts=sums)
