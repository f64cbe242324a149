"""Federated statistics: means, variances and histograms of everybody's records, by one secure sum.

Each client adds up its own records' vectors (:mod:`securefl.training.statistics`), rounds them to
integers and sends them through :func:`~securefl.simulation.secure_sum.secure_sum`, so that the
server sees masked vectors and the sum. The result equals that of the pooled records of the clients
that stayed, up to rounding.

Without noise nothing here is private: a sum hides the clients behind each other, not a record from
whoever reads the result, and two queries whose clients differ by one show that one. The number of
records is opened with every mean. With :class:`StatisticPrivacy` every client adds a share of noise
before its vector is masked, and one record is protected from everybody who sees the result, the
server and the assumed colluders included (:mod:`securefl.encoding.noisy`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

import accounting
from securefl.encoding.noisy import RECORDS_MARGIN, Contribution, NoisyCodec, NoisySpec
from securefl.errors import BelowThreshold, ConfigurationError
from securefl.modular import RingVector, ring_dtype
from securefl.primitives.field import PRIME
from securefl.protocols.lightsecagg.params import FIELD_BITS
from securefl.protocols.lightsecagg.params import most_input_bits as most_lightsecagg_bits
from securefl.protocols.paillier.params import most_input_bits as most_paillier_bits
from securefl.protocols.secagg.choice import least_alive
from securefl.round import AggregateSum, ClientId
from securefl.simulation.secure_sum import SecureSum, default_threshold, secure_sum
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
    "StatisticPrivacy",
    "SumSettings",
    "federated_histogram",
    "federated_mean",
    "federated_moments",
    "private_statistic",
    "secure_statistic",
]

T = TypeVar("T")

Tables = Mapping[int, NDArray[np.floating[Any]]]

_MOST_BITS = 62
_PRIME_FIELD = ("lightsecagg", "peersum")
_PAILLIER = ("paillier", "paillier-threshold")
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

    def fewest(self, clients: int) -> int:
        """Fewest survivors of an opened sum: the threshold, or the default of ``secure_sum``."""
        if self.threshold is not None:
            return self.threshold
        usual = default_threshold(clients)
        if self.adversary == "active" and self.protocol == "secagg":
            return max(usual, least_alive(clients, 1))
        return usual

    def in_ring(self, spec: NoisySpec, clients: int) -> NoisySpec:
        """The codec in the ring in which this protocol adds residues, never plain numbers.

        Where a client's entry wraps around the modulus, a sum of plain numbers would tell how many
        did, which no event pays for. So masks are taken in the codec's own ring, and a slot of a
        Paillier plaintext, which holds numbers, is so wide that no entry can wrap.

        Raises:
            ConfigurationError: if the ring is too small, with the numbers.
        """
        if self.protocol in _PRIME_FIELD:
            modulus, most = PRIME, FIELD_BITS
        elif self.protocol in _PAILLIER:
            modulus = max(spec.modulus, 1 << (2 * spec.reach).bit_length())
            most = self.most_bits(clients)
        else:
            return spec
        try:
            fitting = replace(spec, modulus=modulus)  # refuses a ring that the sum could leave
        except ConfigurationError:
            fitting = spec
        if fitting.modulus != modulus or fitting.bits > most:
            raise ConfigurationError(
                f"this statistic needs sums of {fitting.bits} bits, "
                f'"{self.protocol}" carries {most} with {clients} clients; lower max_records'
            )
        return fitting

    def most_bits(self, clients: int) -> int:
        """Bits of the largest integers that this protocol adds up."""
        if self.protocol in _PRIME_FIELD:
            return most_lightsecagg_bits(clients)  # the same field in both
        if self.protocol in _PAILLIER:
            return min(_MOST_BITS, most_paillier_bits(clients))
        return _MOST_BITS

    def sum(
        self,
        vectors: Mapping[int, NDArray[np.uint64]],
        *,
        bits: int | None = None,
        modulus: int | None = None,
    ) -> SecureSum:
        """The secure sum of integers in 0..2^bits - 1, or of residues of the protocol's ring."""
        return secure_sum(
            vectors,
            bits=bits,
            modulus=modulus,
            protocol=self.protocol,
            adversary=self.adversary,
            threshold=self.threshold,
            degree=self.degree,
            drop=self.drop,
            experimental_active_graph=self.experimental_active_graph,
        )


_DEFAULT = SumSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticPrivacy:
    """Differential privacy for one record in one statistic (zero-out: its vector becomes zero).

    Attributes:
        epsilon, delta: of this release, against the server and ``colluding`` clients, at the fewest
            survivors that are accepted. With more of them it costs less.
        colluding: clients assumed to tell their share of the noise; default one in twenty, at
            least one.
        ledger: charged before any record is read, at the worst price; settled at the realised one
            before the sum is decoded. Its header needs a ``delta_reserve``. Without a ledger the
            caller keeps the books: the event is in the result.
    """

    epsilon: float
    delta: float = 1e-5
    colluding: int | None = None
    ledger: accounting.Ledger | None = None

    def assumed(self, clients: int) -> int:
        """A: how many of ``clients`` collude."""
        return -(-clients // 20) if self.colluding is None else self.colluding


ADJACENCY = accounting.Adjacency.ZERO_OUT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SecureStatistic(Generic[T]):
    """A statistic and how it came about.

    Attributes:
        value: the statistic.
        survivors: the clients whose records are in it, ascending.
        error: largest error of one of its sums against the pooled records, from rounding; with
            noise the standard deviation.
        event: what was released: ``NonPrivate`` without noise.
        bytes_up, bytes_down: of the secure sum, all clients together.
    """

    value: T
    survivors: tuple[int, ...]
    error: float
    event: accounting.Event
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
        event=accounting.NonPrivate(),
        bytes_up=opened.total_bytes_up,
        bytes_down=opened.total_bytes_down,
    )


def private_statistic(
    query: Query[T],
    records: Tables,
    *,
    privacy: StatisticPrivacy,
    max_records: int,
    min_count: int,
    settings: SumSettings = _DEFAULT,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> SecureStatistic[T]:
    """:func:`secure_statistic` with differential privacy for one record: one release.

    The noise is calibrated before anything is read, to the fewest survivors less the colluders.
    What a thin result says (``TooFewRecords``) is computed from noised numbers.

    Args:
        query: what to ask.
        records: by client id, at least 3: what ``query.total`` takes. Infinite cells count as
            missing ones.
        privacy: the target, the colluders and the ledger.
        max_records: most records of one client, public; see :func:`secure_statistic`.
        min_count: fewest records that a result may rest on.
        settings: protocol, adversary, dropouts.
        random_bytes: secret source of coins and noise; never a seeded one.

    Raises:
        accounting.BudgetExceeded: if the ledger does not cover it; nothing was read.
        accounting.CalibrationError: if no noise meets the target.
        TooFewRecords, BelowThreshold, ConfigurationError: as :func:`secure_statistic`. An error
            after the vectors left their clients leaves the reserved price charged.
    """
    release = _Release.plan(query, len(records), max_records, privacy, settings)
    codec, seed = NoisyCodec(release.spec), os.urandom(32)
    with _Charge(privacy.ledger, release) as charge:
        vectors = {
            client: codec.encode(
                _total(query, _finite_or_missing(table), client, max_records),
                round_seed=seed,
                random_bytes=random_bytes,
            ).values.astype(np.uint64)
            for client, table in records.items()
        }
        charge.sent = True
        opened = replace(settings, threshold=release.fewest).sum(
            vectors, modulus=release.spec.modulus
        )
        if len(opened.survivors) < release.fewest:
            raise BelowThreshold(needed=release.fewest, had=len(opened.survivors), phase="noise")
        event = charge.settle(opened, settings.protocol)
    aggregate = AggregateSum(
        vector=RingVector(
            opened.sum.astype(ring_dtype(release.spec.modulus)), release.spec.modulus
        ),
        survivors=tuple(ClientId(i) for i in range(len(opened.survivors))),
        min_honest=release.fewest - release.colluding,
    )
    sums = codec.decode(aggregate, round_seed=seed, denominator=1.0).mean
    return SecureStatistic(
        value=query.result(sums, min_count=min_count),
        survivors=opened.survivors,
        error=release.std(len(opened.survivors)),
        event=event,
        bytes_up=opened.total_bytes_up,
        bytes_down=opened.total_bytes_down,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Release:
    """One private statistic before anything is read: its noise, and what it will cost."""

    spec: NoisySpec
    clients: int
    fewest: int
    colluding: int

    @classmethod
    def plan(
        cls,
        query: Query[T],
        clients: int,
        max_records: int,
        privacy: StatisticPrivacy,
        settings: SumSettings,
    ) -> _Release:
        fewest, colluding = settings.fewest(clients), privacy.assumed(clients)
        if not 0 <= colluding < fewest:
            raise ConfigurationError(
                f"expected 0 <= colluding < {fewest} (fewest survivors of {clients} clients), "
                f"found {colluding}: without an honest share there is no noise"
            )

        def planned(noise_multiplier: float) -> _Release:
            spec = NoisySpec.plan(
                dimension=query.length,
                # The margin is what the codec needs to tell two float sums apart.
                clip_norm=query.norm / (1.0 - 2.0 * RECORDS_MARGIN),
                noise_multiplier=noise_multiplier,
                honest_shares=fewest - colluding,
                max_clients=clients,
                contribution=Contribution.RECORDS,
                units=float(clients * max_records),
            )
            return cls(spec=spec, clients=clients, fewest=fewest, colluding=colluding)

        found = accounting.calibrate(
            lambda z: planned(z).event(fewest),
            privacy.epsilon,
            privacy.delta,
            adjacency=ADJACENCY,
        )
        release = planned(found.value)
        # The ring decides nothing about the cost, and the search may try noise that fits none.
        return replace(release, spec=settings.in_ring(release.spec, clients))

    def event(self, survivors: int) -> accounting.Event:
        """The release with these survivors, of whom ``colluding`` tell their noise."""
        slack = accounting.ApproxDP(epsilon=0.0, delta=self.spec.delta_slack, adjacency=ADJACENCY)
        return accounting.Compose(events=(self.spec.event(survivors, self.colluding), slack))

    def std(self, survivors: int) -> float:
        """Standard deviation of one sum: the shares' noise, and a rounding's of each client."""
        step = self.spec.clip_norm / self.spec.resolution
        return float(step * np.sqrt(survivors * (self.spec.share_std**2 + 0.25)))


class _Charge:
    """A ledger's entry for one release: reserved on entering, settled or left charged."""

    def __init__(self, ledger: accounting.Ledger | None, release: _Release) -> None:
        self._ledger, self._release = ledger, release
        self._ticket: accounting.Ticket | None = None
        self.sent = False

    def __enter__(self) -> Self:
        if self._ledger is not None:
            event = self._release.event(self._release.fewest)
            key = f"statistic {os.urandom(16).hex()}"
            self._ticket = self._ledger.reserve(event, round=0, key=key)
        return self

    def settle(self, opened: SecureSum, protocol: str) -> accounting.Event:
        """Charges what the survivors make of it; only now may the sum be decoded."""
        event = self._release.event(len(opened.survivors))
        if self._ledger is not None and self._ticket is not None:
            digest = hashlib.sha256(b"".join(record.frame for record in opened.transcript))
            evidence = accounting.Evidence(
                planned=self._release.clients,
                survivors=len(opened.survivors),
                colluding_assumed=self._release.colluding,
                protocol=protocol,
                transcript=digest.hexdigest(),
                modulus=self._release.spec.modulus,
            )
            self._ledger.settle(self._ticket, event, evidence)
            self._ticket = None
        return event

    def __exit__(self, *error: object) -> None:
        if self._ledger is not None and self._ticket is not None:
            # Vectors that left their clients stay charged, opened or not.
            self._ledger.abort(self._ticket, opened=self.sent)


def federated_mean(
    tables: Tables,
    *,
    bounds: Bounds,
    max_records: int,
    min_count: int = 1,
    privacy: StatisticPrivacy | None = None,
    settings: SumSettings = _DEFAULT,
) -> SecureStatistic[Means]:
    """The mean of every feature: tables float[n_k, F] by client, NaN where a cell is missing.

    >>> tables = {k: np.array([[float(k)], [np.nan]]) for k in range(4)}
    >>> found = federated_mean(tables, bounds=Bounds.of(0, 10), max_records=100)
    >>> found.value.count.tolist(), found.value.mean.round(6).tolist()
    ([4.0], [1.5])
    """
    return _asked(MeanQuery(bounds=bounds), tables, max_records, min_count, privacy, settings)


def federated_moments(
    tables: Tables,
    *,
    bounds: Bounds,
    max_records: int,
    min_count: int = 2,
    privacy: StatisticPrivacy | None = None,
    settings: SumSettings = _DEFAULT,
) -> SecureStatistic[Moments]:
    """Mean and variance of every feature, which is all that standardisation needs.

    As :func:`federated_mean`; ``value.standardise(table)`` applies the result.
    """
    return _asked(MomentsQuery(bounds=bounds), tables, max_records, min_count, privacy, settings)


def federated_histogram(
    values: Tables,
    *,
    query: HistogramQuery,
    max_records: int,
    min_count: int = 1,
    privacy: StatisticPrivacy | None = None,
    settings: SumSettings = _DEFAULT,
) -> SecureStatistic[Histogram]:
    """Counts in public bins: values float[n_k] by client, NaN where a value is missing.

    >>> values = {k: np.array([0.1 * k, 0.95]) for k in range(4)}
    >>> found = federated_histogram(values, query=HistogramQuery.even(0, 1, 4), max_records=9)
    >>> found.value.counts.tolist()
    [3.0, 1.0, 0.0, 4.0]
    """
    return _asked(query, values, max_records, min_count, privacy, settings)


def _asked(
    query: Query[T],
    records: Tables,
    max_records: int,
    min_count: int,
    privacy: StatisticPrivacy | None,
    settings: SumSettings,
) -> SecureStatistic[T]:
    common: dict[str, Any] = {
        "max_records": max_records,
        "min_count": min_count,
        "settings": settings,
    }
    if privacy is None:
        return secure_statistic(query, records, **common)
    return private_statistic(query, records, privacy=privacy, **common)


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


def _finite_or_missing(table: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Infinite cells count as missing: a client that refuses tells, without noise, that it has one.

    What remains to be refused (kind, shape and number of records) is public.
    """
    if not isinstance(table, np.ndarray) or table.dtype.kind != "f":
        return table
    return np.where(np.isinf(table), np.nan, table)


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
