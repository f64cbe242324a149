"""How records are dealt to clients: IID, label-skewed, size-skewed, or as they naturally lie.

Dirichlet label skew follows Hsu et al. (2019, *Measuring the effects of non-identical data
distribution for federated visual classification*), shards follow McMahan et al. (2017, section 3).
A partition is public configuration: it is a function of a seed, every record goes to exactly one
client, and its digest is recorded with the run. In a real deployment nobody deals records; they
are where they are. This module knows labels and sites, not records.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError

__all__ = ["Partition", "PartitionKind", "dirichlet", "iid", "natural", "quantity", "shards"]

_ATTEMPTS = 10_000
_FORMAT = b"securefl partition 1"


class PartitionKind(StrEnum):
    """How the records were dealt."""

    IID = "iid"
    DIRICHLET = "dirichlet"
    SHARDS = "shards"
    QUANTITY = "quantity"
    NATURAL = "natural"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partition:
    """Disjoint index sets that together cover all records.

    Attributes:
        indices: one ascending int64 array per client.
        kind: how they were dealt.
        seed: of the draw (0 where there was none).

    Raises:
        ConfigurationError: if the sets are not a partition of 0..n-1.
    """

    indices: tuple[NDArray[np.int64], ...]
    kind: PartitionKind
    seed: int

    def __post_init__(self) -> None:
        if not self.indices:
            raise ConfigurationError("a partition needs at least one client, found none")
        together = np.sort(np.concatenate(self.indices))
        if not np.array_equal(together, np.arange(together.size)):
            raise ConfigurationError(
                "the clients' records must be disjoint and cover 0..n-1: some record is missing "
                "or dealt twice"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Records per client."""
        return tuple(len(part) for part in self.indices)

    def digest(self) -> bytes:
        """SHA-256 over kind, seed, sizes and indices; 32 bytes."""
        digest = hashlib.sha256(_FORMAT)
        header = np.array([self.seed, len(self.indices), *self.sizes], dtype="<i8")
        digest.update(self.kind.value.encode().ljust(16, b"\0") + header.tobytes())
        for part in self.indices:
            digest.update(part.astype("<i8").tobytes())
        return digest.digest()


def iid(records: int, *, clients: int, seed: int, min_size: int = 1) -> Partition:
    """A random partition into sizes that differ by at most one."""
    _check(records, clients, min_size)
    order = _generator(seed).permutation(records)
    return _partition(np.array_split(order, clients), PartitionKind.IID, seed)


def dirichlet(
    labels: NDArray[np.int64], *, clients: int, alpha: float, seed: int, min_size: int = 1
) -> Partition:
    """Label skew: each class is split among the clients in Dirichlet(alpha) proportions.

    labels: int64[n]. alpha > 0: small means that a client sees few classes (.1), large tends to
    IID. Draws are repeated until every client has ``min_size`` records.
    """
    _check(len(labels), clients, min_size)
    _check_alpha(alpha)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def draw(rng: np.random.Generator) -> list[NDArray[np.int64]]:
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
        for records in members:
            cuts = _cuts(rng.dirichlet(np.full(clients, alpha)), len(records))
            pieces = np.split(rng.permutation(records), cuts)
            for part, piece in zip(parts, pieces, strict=True):
                part.append(piece)
        return [np.concatenate(part) for part in parts]

    return _partition(_redraw(draw, seed, min_size), PartitionKind.DIRICHLET, seed)


def shards(
    labels: NDArray[np.int64], *, clients: int, per_client: int, seed: int, min_size: int = 1
) -> Partition:
    """Records sorted by label, cut into clients x per_client shards; each client gets that many.

    labels: int64[n]. per_client >= 1; 2 is the pathological split of the FedAvg paper.
    """
    if per_client < 1:
        raise ConfigurationError(f"per_client must be at least 1, found {per_client}")
    _check(len(labels), clients * per_client, 1)
    rng = _generator(seed)
    # Shuffled first, so that which records of a class share a shard is random too.
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    pieces = np.array_split(order, clients * per_client)
    hands = np.split(rng.permutation(len(pieces)), clients)
    parts = [np.concatenate([pieces[shard] for shard in hand]) for hand in hands]
    if min(len(part) for part in parts) < min_size:
        raise ConfigurationError(
            f"{clients} clients with {per_client} shards each hold "
            f"{min(len(part) for part in parts)} records at least, min_size is {min_size}"
        )
    return _partition(parts, PartitionKind.SHARDS, seed)


def quantity(
    records: int, *, clients: int, alpha: float, seed: int, min_size: int = 1
) -> Partition:
    """Size skew: client sizes in Dirichlet(alpha) proportions, contents IID."""
    _check(records, clients, min_size)
    _check_alpha(alpha)

    def draw(rng: np.random.Generator) -> list[NDArray[np.int64]]:
        cuts = _cuts(rng.dirichlet(np.full(clients, alpha)), records)
        return np.split(rng.permutation(records), cuts)

    return _partition(_redraw(draw, seed, min_size), PartitionKind.QUANTITY, seed)


def natural(groups: NDArray[np.int64], *, min_size: int = 1) -> Partition:
    """One client per group (hospital, device, author), in ascending order of the group's number."""
    parts = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    if not parts:
        raise ConfigurationError("natural partition of no records")
    smallest = min(len(part) for part in parts)
    if smallest < min_size:
        raise ConfigurationError(
            f"the smallest group has {smallest} records, min_size is {min_size}"
        )
    return _partition(parts, PartitionKind.NATURAL, 0)


def _partition(parts: Sequence[NDArray[np.int64]], kind: PartitionKind, seed: int) -> Partition:
    ordered = tuple(np.sort(part).astype(np.int64) for part in parts)
    return Partition(indices=ordered, kind=kind, seed=seed)


def _redraw(
    draw: Callable[[np.random.Generator], list[NDArray[np.int64]]], seed: int, min_size: int
) -> list[NDArray[np.int64]]:
    """The first draw in which every client has ``min_size`` records."""
    rng = _generator(seed)
    for _ in range(_ATTEMPTS):
        parts = draw(rng)
        if min(len(part) for part in parts) >= min_size:
            return parts
    raise ConfigurationError(
        f"no draw out of {_ATTEMPTS} gave every client {min_size} records; raise alpha, or lower "
        "min_size or the number of clients"
    )


def _cuts(proportions: NDArray[np.float64], records: int) -> NDArray[np.int64]:
    """Where to cut ``records`` into pieces of the given proportions."""
    return np.rint(np.cumsum(proportions)[:-1] * records).astype(np.int64)


def _generator(seed: int) -> np.random.Generator:
    if seed < 0:
        raise ConfigurationError(f"seed must be >= 0, found {seed}")
    return np.random.Generator(np.random.PCG64(seed))


def _check(records: int, clients: int, min_size: int) -> None:
    if clients < 1 or min_size < 1:
        raise ConfigurationError(
            f"clients and min_size must be at least 1, found {clients} and {min_size}"
        )
    if records < clients * min_size:
        raise ConfigurationError(f"{records} records cannot give {clients} clients {min_size} each")


def _check_alpha(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigurationError(f"alpha must be positive and finite, found {alpha}")
