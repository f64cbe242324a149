"""Who takes part in the rounds of a run, which sums that makes, and what they show together.

The rules are those of :mod:`securefl.training.participation`, with public coins. Each size of
cohort has thresholds and a graph of its own; a cohort that is too small for any makes a lost round.
The opened sums are watched: which clients' updates they determine, if updates change little from
round to round.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefl.config import ParticipationConfig, RunConfig
from securefl.errors import CheckpointError, ConfigurationError
from securefl.round import ClientId
from securefl.simulation.schemes import Scheme, scheme_of
from securefl.training.participation import (
    BatchPartition,
    Everyone,
    Exposure,
    FixedCohort,
    Participation,
    PoissonCohort,
    planned_exposure,
)

__all__ = ["Cohorts", "participation_of"]

_SUMS = "participation/sums"
_LEAST = 3


def participation_of(config: ParticipationConfig, *, clients: int, seed: int) -> Participation:
    """The rule of a ``[participation]`` section, with the run's public seed."""
    if config.rate is not None:
        return PoissonCohort(clients=clients, rate=config.rate, seed=seed)
    if config.size is not None:
        return FixedCohort(clients=clients, size=config.size, seed=seed)
    if config.group_size is not None and config.groups is not None:
        return BatchPartition(
            clients=clients,
            group_size=config.group_size,
            groups_per_round=config.groups,
            seed=seed,
        )
    return Everyone(clients=clients)


class Cohorts:
    """The cohorts of one run.

    Args:
        config: of the sweep.
        seed: of the run, public.
        clients: how many there are.
        scheme: for cohorts of the planned size.
    """

    def __init__(self, config: RunConfig, *, seed: int, clients: int, scheme: Scheme) -> None:
        self._config, self._scheme = config, scheme
        self.rule = participation_of(config.participation, clients=clients, seed=seed)
        self._exposure = Exposure(clients)
        self._sums: list[NDArray[np.uint8]] = []
        self._small = lru_cache(maxsize=64)(self._scheme_for)

    def of(self, round_index: int) -> tuple[ClientId, ...]:
        """The clients that are asked in a round, ascending; may be empty."""
        return tuple(ClientId(client) for client in self.rule.cohort(round_index))

    def scheme(self, size: int) -> Scheme | None:
        """How a cohort of ``size`` clients is summed; None if so few cannot be."""
        return self._scheme if size == self._config.cohort_size else self._small(size)

    def _scheme_for(self, size: int) -> Scheme | None:
        config = self._config.for_cohort(size)
        if size < max(_LEAST, config.threshold):
            return None
        try:
            return scheme_of(config)
        except ConfigurationError:  # no safe thresholds exist for so few
            return None

    # -- what several sums show ------------------------------------------------------------------

    def opened(self, survivors: Iterable[ClientId]) -> None:
        """Takes note of an opened sum."""
        row = np.zeros(self.rule.clients, dtype=np.uint8)
        row[list(survivors)] = 1
        self._sums.append(row)
        self._exposure.add(np.flatnonzero(row).tolist())

    @property
    def exposed(self) -> int:
        """Clients whose update the opened sums determine, if updates stayed the same."""
        return len(self._exposure.exposed)

    def planned(self, rounds: int) -> int:
        """The same for the planned cohorts, if nobody drops out."""
        return len(planned_exposure(self.rule, rounds=rounds))

    # -- checkpoints -----------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[Any]]:
        """Who was in the opened sums: as bits, one row per sum."""
        rows = np.array(self._sums, dtype=np.uint8).reshape(len(self._sums), self.rule.clients)
        return {_SUMS: np.packbits(rows, axis=1)}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Takes its part out of a checkpoint's arrays.

        Raises:
            CheckpointError: if it is missing or of another shape.
        """
        bits, clients = arrays.pop(_SUMS, None), self.rule.clients
        if bits is None or bits.dtype != np.uint8 or bits.shape[1:] != (-(-clients // 8),):
            found = "nothing" if bits is None else f"{bits.dtype}{list(bits.shape)}"
            raise CheckpointError(
                f"the checkpoint must say who was in the opened sums of {clients} clients, "
                f"found {found}"
            )
        for row in np.unpackbits(bits, axis=1, count=clients):
            self.opened(ClientId(int(client)) for client in np.flatnonzero(row))
