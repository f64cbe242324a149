"""Who takes part in a round, and what the rounds together give away about one client.

Four rules: everybody, each client by a coin, a fixed number, or whole groups. A rule is public
configuration: the server knows every cohort. Drawing a cohort is therefore no privacy by itself;
what a rule may be *accounted* as is its ``sample_rate``, and only secret coins give one. A cohort
of a fixed size is never Poisson sampling.

:class:`Exposure` watches the other danger. A secure sum hides a client among the survivors of one
round. Two sums whose survivors differ by one client show that client's update, as far as updates
change little from round to round: in general client u is exposed once the unit vector e_u lies in
the row space of the participation matrix, whose rows are the survivors of the rounds (So et al.
2023, *Securing secure aggregation: mitigating multi-round privacy leakage in federated learning*,
section 3). Groups that always take part together can never be told apart. Differential privacy is
the general answer: it bounds what all rounds together show.

This module knows no protocol, no model and no records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.training.randomness import RandomBytes, poisson_sample

__all__ = [
    "BatchPartition",
    "Everyone",
    "Exposure",
    "FixedCohort",
    "Participation",
    "PoissonCohort",
    "planned_exposure",
]

_PRIME = (1 << 31) - 1
_TAG = 0xC0804


class Participation(Protocol):
    """Which clients are asked in which round; clients are 0..clients-1."""

    @property
    def clients(self) -> int:
        """All clients there are."""
        ...

    @property
    def sample_rate(self) -> float | None:
        """Rate q if a release may be accounted as a Poisson sample of clients; else None."""
        ...

    def cohort(self, round_index: int) -> tuple[int, ...]:
        """The clients of one round, ascending; may be empty."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Everyone:
    """All clients in every round."""

    clients: int

    def __post_init__(self) -> None:
        _check_clients(self.clients)

    @property
    def sample_rate(self) -> float | None:
        """None: there is no sampling."""
        return None

    def cohort(self, round_index: int) -> tuple[int, ...]:
        """See :class:`Participation`."""
        del round_index
        return tuple(range(self.clients))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonCohort:
    """Every client by a coin of its own, with probability q: the size of the cohort is random.

    Attributes:
        clients: all clients there are.
        rate: q in (0, 1].
        seed: of public coins: reproducible, and no amplification, since everybody knows the cohort.
        random_bytes: secret coins instead of the seed's; then ``sample_rate`` is q, towards those
            who do not see the cohort.
    """

    clients: int
    rate: float
    seed: int = 0
    random_bytes: RandomBytes | None = None

    def __post_init__(self) -> None:
        _check_clients(self.clients)
        _check_seed(self.seed)
        if not (math.isfinite(self.rate) and 0.0 < self.rate <= 1.0):
            raise ConfigurationError(f"the rate must be in (0, 1], found {self.rate}")

    @property
    def sample_rate(self) -> float | None:
        """See :class:`Participation`."""
        return None if self.random_bytes is None else self.rate

    def cohort(self, round_index: int) -> tuple[int, ...]:
        """See :class:`Participation`; with secret coins another draw on every call."""
        if self.random_bytes is not None:
            return _ids(poisson_sample(self.clients, self.rate, self.random_bytes))
        draws = _generator(self.seed, round_index).random(self.clients)
        return _ids(np.flatnonzero(draws < self.rate))


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedCohort:
    """A cohort of exactly ``size`` clients, drawn without replacement by public coins.

    Not Poisson sampling: whether one client takes part depends on the others, and the amplification
    bound of Poisson samples does not hold. ``sample_rate`` is None.
    """

    clients: int
    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_clients(self.clients)
        _check_seed(self.seed)
        if isinstance(self.size, bool) or not 1 <= self.size <= self.clients:
            raise ConfigurationError(
                f"the size of a cohort must be in 1..{self.clients} (all clients), found "
                f"{self.size}"
            )

    @property
    def sample_rate(self) -> float | None:
        """None: a fixed size is not Poisson sampling."""
        return None

    def cohort(self, round_index: int) -> tuple[int, ...]:
        """See :class:`Participation`."""
        rng = _generator(self.seed, round_index)
        return _ids(np.sort(rng.choice(self.clients, self.size, replace=False)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPartition:
    """Fixed groups of clients that always take part together (So et al. 2023, section 4).

    No matter how many rounds are seen, sums tell groups apart and never two members of one. That
    holds while the members of a group also drop out together: a member that vanishes alone makes a
    row of its own, which :class:`Exposure` notices.

    Attributes:
        clients: all clients there are.
        group_size: members per group, >= 2; where it does not divide the clients, the first groups
            have one more.
        groups_per_round: groups drawn for each round.
        seed: of the groups and of the draws; public.
    """

    clients: int
    group_size: int
    groups_per_round: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_clients(self.clients)
        _check_seed(self.seed)
        if isinstance(self.group_size, bool) or not 2 <= self.group_size <= self.clients:
            raise ConfigurationError(
                f"group_size must be in 2..{self.clients} (all clients), found {self.group_size}: "
                "a group of one would be seen alone"
            )
        most = self.clients // self.group_size
        if isinstance(self.groups_per_round, bool) or not 1 <= self.groups_per_round <= most:
            raise ConfigurationError(
                f"groups_per_round must be in 1..{most} ({self.clients} clients in groups of "
                f"{self.group_size}), found {self.groups_per_round}"
            )

    @property
    def sample_rate(self) -> float | None:
        """None: groups are not drawn client by client."""
        return None

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The groups, each ascending."""
        order = _generator(self.seed, 1 << 32).permutation(self.clients)
        parts = np.array_split(order, self.clients // self.group_size)
        return tuple(_ids(np.sort(part)) for part in parts)

    def cohort(self, round_index: int) -> tuple[int, ...]:
        """See :class:`Participation`: the members of this round's groups."""
        groups = self.groups
        drawn = _generator(self.seed, round_index).choice(
            len(groups), self.groups_per_round, replace=False
        )
        return tuple(sorted(client for group in drawn for client in groups[group]))


class Exposure:
    """Which clients' updates the sums seen so far determine, if updates stay the same.

    Keeps the reduced row echelon form of the participation matrix modulo 2^31 - 1. A client is
    exposed once its unit vector is a row of it. (Modulo a prime an answer can differ from the
    rational one only where the prime divides a minor of the 0/1 matrix.) One row costs time and
    memory in proportion to rounds times clients.

    >>> exposure = Exposure(4)
    >>> exposure.add([0, 1, 2, 3]), exposure.add([0, 1, 2])
    ((), (3,))
    """

    def __init__(self, clients: int) -> None:
        _check_clients(clients)
        self._rows = np.zeros((0, clients), dtype=np.int64)
        self._pivots: list[int] = []
        self._exposed: set[int] = set()

    @property
    def exposed(self) -> tuple[int, ...]:
        """All exposed clients, ascending."""
        return tuple(sorted(self._exposed))

    def add(self, survivors: Iterable[int]) -> tuple[int, ...]:
        """Adds one opened sum; returns the clients that it newly exposes, ascending.

        Raises:
            ConfigurationError: if a survivor is not one of the clients.
        """
        clients = self._rows.shape[1]
        members = sorted(set(survivors))
        if members and (members[0] < 0 or members[-1] >= clients):
            raise ConfigurationError(
                f"survivors must be in 0..{clients - 1}, found {members[0]} to {members[-1]}"
            )
        row = np.zeros(clients, dtype=np.int64)
        row[members] = 1
        self._insert(row)
        alone = np.flatnonzero((self._rows != 0).sum(axis=1) == 1)
        found = {self._pivots[index] for index in alone} - self._exposed
        self._exposed |= found
        return tuple(sorted(found))

    def _insert(self, row: NDArray[np.int64]) -> None:
        """One step of Gauss-Jordan elimination; products stay below 2^62."""
        for index, pivot in enumerate(self._pivots):
            if row[pivot]:
                row = (row - row[pivot] * self._rows[index]) % _PRIME
        nonzero = np.flatnonzero(row)
        if not nonzero.size:
            return
        pivot = int(nonzero[0])
        row = row * pow(int(row[pivot]), -1, _PRIME) % _PRIME
        factors = self._rows[:, pivot : pivot + 1].copy()
        self._rows = (self._rows - factors * row) % _PRIME
        self._rows = np.vstack([self._rows, row])
        self._pivots.append(pivot)


def planned_exposure(participation: Participation, *, rounds: int) -> tuple[int, ...]:
    """Clients that the planned cohorts of ``rounds`` rounds would expose, if nobody drops out.

    >>> planned_exposure(Everyone(clients=10), rounds=100)
    ()
    >>> len(planned_exposure(FixedCohort(clients=10, size=6, seed=1), rounds=30))
    10

    Raises:
        ConfigurationError: if the cohorts follow secret coins: they cannot be known before.
    """
    if participation.sample_rate is not None:
        raise ConfigurationError(
            "cohorts that follow secret coins cannot be planned; watch the rounds with Exposure"
        )
    exposure = Exposure(participation.clients)
    for round_index in range(rounds):
        exposure.add(participation.cohort(round_index))
        if len(exposure.exposed) == participation.clients:
            break
    return exposure.exposed


def _ids(indices: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(index) for index in indices)


def _generator(seed: int, round_index: int) -> np.random.Generator:
    return np.random.default_rng((seed, round_index, _TAG))


def _check_clients(clients: int) -> None:
    if isinstance(clients, bool) or clients < 1:
        raise ConfigurationError(f"clients must be at least 1, found {clients}")


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or seed < 0:
        raise ConfigurationError(f"seed must be >= 0, found {seed}")
