"""What a run asks of its clients besides updates: how well they are served, and how to scale.

Both are statistics by secure sums (:mod:`securefl.simulation.statistics`) with the protocol of the
run, and both are without noise, so they belong to runs without differential privacy. Below full
fidelity the same integers are added in clear, and the record says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from securefl.config import Fidelity, RunConfig
from securefl.errors import ConfigurationError
from securefl.round import ClientId
from securefl.simulation.plain import PlainRun
from securefl.simulation.statistics import SumSettings, Tables, secure_statistic
from securefl.training.client_metrics import ClientMetricsQuery, measure_client
from securefl.training.data import Dataset, TrainTest
from securefl.training.partition import Partition
from securefl.training.statistics import Bounds, MomentsQuery, Query

__all__ = ["ClientView", "standardised"]

T = TypeVar("T")

_LEAST_RECORDS = 2


class ClientView:
    """How single clients are served, as histograms that a secure sum opens.

    Args:
        config: of the sweep.
        run: the clients' records and training.
        clients: all of them.
    """

    def __init__(self, config: RunConfig, run: PlainRun, clients: tuple[ClientId, ...]) -> None:
        self._config, self._run, self._clients = config, run, clients
        section = config.client_metrics
        self._query = ClientMetricsQuery(bins=section.bins, loss_cap=section.loss_cap)

    def due(self, round_index: int) -> bool:
        """Whether a round's record says how clients are served."""
        every = self._config.client_metrics.every
        return every is not None and (round_index + 1) % every == 0

    def measure(self, vector: NDArray[np.float32]) -> dict[str, Any]:
        """Worst and best tenth, median and spread of the clients' figures for a model.

        Every client measures on the records it keeps out of training, or else on its training
        records, and nobody drops out: the sum is formed for the record, not within a round.
        """
        return self._summed(dict.fromkeys(self._clients, vector))

    def tuned(self, vector: NDArray[np.float32]) -> dict[str, Any] | None:
        """The same after every client trained the model on for itself; None if not asked for."""
        steps = self._config.client_metrics.fine_tune_steps
        if steps is None:
            return None
        models = {}
        for client in self._clients:
            update = self._run.local(client, steps=steps).train(vector, round_index=_TUNING)
            models[client] = vector + update.values
        return self._summed(models)

    def _summed(self, vectors: Mapping[ClientId, NDArray[np.float32]]) -> dict[str, Any]:
        tables = {}
        for client, vector in vectors.items():
            trained, held_out = self._run.records(client)
            records = trained if held_out is None else held_out
            figures = measure_client(self._run.model, vector, records.x, records.y)
            tables[int(client)] = self._query.record(figures)
        found = _ask(self._config, self._query, tables, max_records=1, min_count=1)
        return {
            **found.summary(),
            "measured_on": "held-out records" if self._config.training.held_out else "own records",
            "source": f"{_source(self._config)}, {self._query.bins} bins, no noise",
        }


# A round number that no run reaches: the shuffles of fine-tuning are none of a round's.
_TUNING = (1 << 31) - 1


def standardised(config: RunConfig, dataset: TrainTest, partition: Partition) -> TrainTest:
    """The data set with measured columns scaled by their federated mean and deviation.

    Measured columns are those that are no code's indicator (``name=level``) and no indicator of a
    missing cell; where there is a column ``<name> missing``, the cells it marks count as missing
    and become 0. Only the clients' training records enter; the test records are scaled alike.

    Raises:
        ConfigurationError: if the records have no named columns.
        TooFewRecords: if a column has no two values.
    """
    train = dataset.train
    if not train.feature_names:
        raise ConfigurationError(
            f'data.standardise = "federated" needs named features, {train.name} has none'
        )
    columns = [
        index
        for index, name in enumerate(train.feature_names)
        if "=" not in name and not name.endswith(" missing")
    ]
    tables = {
        client: _cells(train, columns)[indices] for client, indices in enumerate(partition.indices)
    }
    # The loaders' public bounds bring every measured column into [-1, 1].
    query = MomentsQuery(bounds=Bounds.of(np.full(len(columns), -1.0), np.ones(len(columns))))
    moments = _ask(config, query, tables, max_records=len(train), min_count=_LEAST_RECORDS)

    def scaled(part: Dataset) -> Dataset:
        x = part.x.copy()
        x[:, columns] = moments.standardise(_cells(part, columns))
        return replace(part, x=x)

    return TrainTest(train=scaled(train), test=scaled(dataset.test))


def _cells(records: Dataset, columns: list[int]) -> NDArray[np.float64]:
    """The measured columns, NaN where the record says that the cell is missing."""
    names = records.feature_names
    cells = records.x[:, columns].astype(np.float64)
    for position, column in enumerate(columns):
        missing = f"{names[column]} missing"
        if missing in names:
            cells[records.x[:, names.index(missing)] == 1.0, position] = np.nan
    return cells


def _ask(
    config: RunConfig, query: Query[T], tables: Tables, *, max_records: int, min_count: int
) -> T:
    """The statistic over all clients, through the run's protocol where it has one."""
    if config.aggregation.fidelity is not Fidelity.PROTOCOL:
        total = np.sum([query.total(table) for table in tables.values()], axis=0)
        return query.result(total, min_count=min_count)
    wanted = config.aggregation
    settings = SumSettings(
        protocol=wanted.protocol,
        adversary="active" if wanted.encrypted else wanted.adversary,
        experimental_active_graph=wanted.experimental_active_graph,
    )
    return secure_statistic(
        query, tables, max_records=max_records, min_count=min_count, settings=settings
    ).value


def _source(config: RunConfig) -> str:
    if config.aggregation.fidelity is Fidelity.PROTOCOL:
        return f"secure histogram ({config.aggregation.protocol})"
    return "histogram summed in clear (simulation)"
