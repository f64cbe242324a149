"""Federated statistics: means, variances and histograms of everybody's records, by one secure sum.

Each client adds up its own records' vectors (:mod:`securefl.training.statistics`), rounds them to
integers and sends them through :func:`~securefl.simulation.secure_sum.secure_sum`, so that the
server sees masked vectors and the sum. The result equals that of the pooled records of the clients
that stayed, up to rounding.

Without noise nothing here is private: a sum hides the clients behind each other, not a record from
whoever reads the result, and two queries whose clients differ by one show that one. The number of
records is opened with every mean.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.protocols.lightsecagg.params import most_input_bits as most_lightsecagg_bits
from securefl.protocols.paillier.params import most_input_bits as most_paillier_bits
from securefl.simulation.secure_sum import SecureSum, secure_sum
from securefl.training.statistics import (
    Bounds,
    Histogram,
    HistogramQuery,
    MeanQuery,
    Means,
    Moments,
    MomentsQuery,
    Query,
)

__all__ = [
    "SecureStatistic",
    "SumSettings",
    "federated_histogram",
    "federated_mean",
    "federated_moments",
    "secure_statistic",
]

T = TypeVar("T")

Tables = Mapping[int, NDArray[np.floating[Any]]]

_MOST_BITS = 62
_LEAST_FRACTION = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SumSettings:
    """How the sum is formed; see :func:`~securefl.simulation.secure_sum.secure_sum`.

    Attributes:
        protocol, adversary, threshold, degree, drop, experimental_active_graph: its arguments.
    """

    protocol: str = "secagg"
    adversary: str = "semi-honest"
    threshold: int | None = None
    degree: int | None = None
    drop: Mapping[str, Collection[int]] | None = None
    experimental_active_graph: bool = False

    def most_bits(self, clients: int) -> int:
        """Bits of the largest integers that this protocol adds up."""
        if self.protocol == "lightsecagg":
            return most_lightsecagg_bits(clients)
        if self.protocol in ("paillier", "paillier-threshold"):
            return min(_MOST_BITS, most_paillier_bits(clients))
        return _MOST_BITS

    def sum(self, vectors: Mapping[int, NDArray[np.uint64]], *, bits: int) -> SecureSum:
        """The secure sum of integers in 0..2^bits - 1."""
        return secure_sum(
            vectors,
            bits=bits,
            protocol=self.protocol,
            adversary=self.adversary,
            threshold=self.threshold,
            degree=self.degree,
            drop=self.drop,
            experimental_active_graph=self.experimental_active_graph,
        )


_DEFAULT = SumSettings()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SecureStatistic(Generic[T]):
    """A statistic and how it came about.

    Attributes:
        value: the statistic.
        survivors: the clients whose records are in it, ascending.
        error: largest error of one of its sums against the pooled records, from rounding.
        bytes_up, bytes_down: of the secure sum, all clients together.
    """

    value: T
    survivors: tuple[int, ...]
    error: float
    bytes_up: int = field(repr=False)
    bytes_down: int = field(repr=False)


def secure_statistic(
    query: Query[T],
    records: Tables,
    *,
    max_records: int,
    min_count: int,
    settings: SumSettings = _DEFAULT,
) -> SecureStatistic[T]:
    """One statistic over the records of all clients that stay.

    Args:
        query: what to ask.
        records: by client id, at least 3: what ``query.total`` takes.
        max_records: most records of one client, public. A client with more refuses.
        min_count: fewest records that a result may rest on. The sum is opened before this is known:
            it keeps thin results from being used, and is no protection from the server.
        settings: protocol, adversary, dropouts.

    Raises:
        TooFewRecords: if fewer than ``min_count`` records have a value.
        BelowThreshold: if too few clients were left; no sum was opened.
        ConfigurationError: for input that cannot be summed; names the client.
    """
    codec = _FixedPoint.plan(
        clients=len(records), max_records=max_records, bits=settings.most_bits(len(records))
    )
    vectors = {
        client: codec.encode(_total(query, table, client, max_records))
        for client, table in records.items()
    }
    opened = settings.sum(vectors, bits=codec.bits)
    sums = codec.decode(opened.sum, clients=len(opened.survivors))
    return SecureStatistic(
        value=query.result(sums, min_count=min_count),
        survivors=opened.survivors,
        error=codec.error(len(opened.survivors)),
        bytes_up=opened.total_bytes_up,
        bytes_down=opened.total_bytes_down,
    )


def federated_mean(
    tables: Tables,
    *,
    bounds: Bounds,
    max_records: int,
    min_count: int = 1,
    settings: SumSettings = _DEFAULT,
) -> SecureStatistic[Means]:
    """The mean of every feature: tables float[n_k, F] by client, NaN where a cell is missing.

    >>> tables = {k: np.array([[float(k)], [np.nan]]) for k in range(4)}
    >>> found = federated_mean(tables, bounds=Bounds.of(0, 10), max_records=100)
    >>> found.value.count.tolist(), found.value.mean.round(6).tolist()
    ([4.0], [1.5])
    """
    query = MeanQuery(bounds=bounds)
    return secure_statistic(
        query, tables, max_records=max_records, min_count=min_count, settings=settings
    )


def federated_moments(
    tables: Tables,
    *,
    bounds: Bounds,
    max_records: int,
    min_count: int = 2,
    settings: SumSettings = _DEFAULT,
) -> SecureStatistic[Moments]:
    """Mean and variance of every feature, which is all that standardisation needs.

    As :func:`federated_mean`; ``value.standardise(table)`` applies the result.
    """
    query = MomentsQuery(bounds=bounds)
    return secure_statistic(
        query, tables, max_records=max_records, min_count=min_count, settings=settings
    )


def federated_histogram(
    values: Tables,
    *,
    query: HistogramQuery,
    max_records: int,
    min_count: int = 1,
    settings: SumSettings = _DEFAULT,
) -> SecureStatistic[Histogram]:
    """Counts in public bins: values float[n_k] by client, NaN where a value is missing.

    >>> values = {k: np.array([0.1 * k, 0.95]) for k in range(4)}
    >>> found = federated_histogram(values, query=HistogramQuery.even(0, 1, 4), max_records=9)
    >>> found.value.counts.tolist()
    [3.0, 1.0, 0.0, 4.0]
    """
    return secure_statistic(
        query, values, max_records=max_records, min_count=min_count, settings=settings
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _FixedPoint:
    """Sums of numbers in [-R, R] as integers that are never negative and never wrap.

    Attributes:
        max_records: R.
        fraction: steps per unit are 2^fraction.
        bits: 2^bits is above every sum there can be.
    """

    max_records: int
    fraction: int
    bits: int

    @classmethod
    def plan(cls, *, clients: int, max_records: int, bits: int) -> _FixedPoint:
        if isinstance(max_records, bool) or max_records < 1:
            raise ConfigurationError(f"max_records must be at least 1, found {max_records}")
        fraction = min(32, bits - (2 * clients * max_records).bit_length())
        if fraction < _LEAST_FRACTION:
            raise ConfigurationError(
                f"sums of {clients} clients with up to {max_records} records need "
                f"{(2 * clients * max_records).bit_length() + _LEAST_FRACTION} bits for an error "
                f"of 2^-{_LEAST_FRACTION}, this protocol carries {bits}; lower max_records or take "
                'protocol "secagg"'
            )
        return cls(max_records=max_records, fraction=fraction, bits=bits)

    @property
    def offset(self) -> int:
        """What stands for a sum of zero."""
        return self.max_records << self.fraction

    def error(self, clients: int) -> float:
        """Half a step per client."""
        return clients * 0.5 ** (self.fraction + 1)

    def encode(self, sums: NDArray[np.float64]) -> NDArray[np.uint64]:
        steps = np.rint(sums * 2.0**self.fraction).astype(np.int64)
        return (steps + self.offset).astype(np.uint64)

    def decode(self, total: NDArray[np.uint64], *, clients: int) -> NDArray[np.float64]:
        steps = total.astype(np.int64) - clients * self.offset
        return steps.astype(np.float64) * 0.5**self.fraction


def _total(
    query: Query[T], table: NDArray[np.floating[Any]], client: int, max_records: int
) -> NDArray[np.float64]:
    """One client's sums; refused, on the client, if they are out of the public bounds."""
    if not isinstance(table, np.ndarray) or table.dtype.kind != "f":
        found = getattr(table, "dtype", type(table).__name__)
        raise ConfigurationError(
            f"client {client}: records must be an array of floats, found {found}"
        )
    if len(table) > max_records:
        raise ConfigurationError(
            f"client {client} has {len(table)} records, the public max_records is {max_records}"
        )
    if np.isinf(table).any():
        raise ConfigurationError(
            f"client {client}: records contain infinity; NaN says that a cell is missing"
        )
    try:
        return query.total(table)
    except ConfigurationError as error:
        raise ConfigurationError(f"client {client}: {error}") from error
