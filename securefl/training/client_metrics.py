"""How well a model serves single clients, without telling which client it serves badly.

A mean accuracy hides the worst client. Each client evaluates the model on its own records and keeps
the result; what leaves it is one vector of zeros and ones: the bin its accuracy falls into, and the
bin of its loss. The sum of these vectors, through a secure sum, is a histogram of the clients, from
which the worst tenth, the median and the spread are read to within a bin (the fairness measures of
Li et al. 2020, *Fair resource allocation in federated learning*, section 4).

The histogram is exact unless noise was added: it then says that *some* client has an accuracy in a
bin, computed from private records. With few clients that is much. This module knows no protocol.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.training.local import FlatModel, evaluate
from securefl.training.statistics import Histogram, HistogramQuery

__all__ = ["ClientFigures", "ClientMetrics", "ClientMetricsQuery", "measure_client"]

_TENTH = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFigures:
    """What one client measured on its own records. Private to the client.

    Attributes:
        loss: mean cross-entropy in nats; infinite where it overflowed.
        accuracy: in [0, 1].
    """

    loss: float
    accuracy: float


def measure_client(
    model: FlatModel,
    vector: NDArray[np.float32],
    x: NDArray[np.float32],
    y: NDArray[np.int64],
) -> ClientFigures:
    """Loss and accuracy of the model ``vector`` on one client's records."""
    model.load(vector)
    loss, accuracy = evaluate(model, x, y)
    return ClientFigures(loss=loss if math.isfinite(loss) else math.inf, accuracy=accuracy)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClientMetrics:
    """What the clients' histograms say about a model; every figure to within a bin.

    Attributes:
        accuracy: of the clients' accuracies, bins over [0, 1].
        loss: of their losses, bins over [0, cap]; a loss above the cap is in the last bin.
    """

    accuracy: Histogram
    loss: Histogram

    def summary(self) -> dict[str, Any]:
        """Plain figures for a record: worst and best tenth, median, spread, number of clients.

        ``spread`` is the ninth decile minus the first. ``resolution`` is the width of a bin.
        """
        return {
            "clients": round(float(self.accuracy.counts.sum())),
            "accuracy": {
                "worst_tenth": self.accuracy.mean_of_lowest(_TENTH),
                "median": self.accuracy.median,
                "best_tenth": self.accuracy.mean_of_highest(_TENTH),
                "spread": self.accuracy.quantile(0.9) - self.accuracy.quantile(0.1),
                "resolution": self.accuracy.width,
            },
            "loss": {
                "worst_tenth": self.loss.mean_of_highest(_TENTH),
                "median": self.loss.median,
                "best_tenth": self.loss.mean_of_lowest(_TENTH),
                "spread": self.loss.quantile(0.9) - self.loss.quantile(0.1),
                "resolution": self.loss.width,
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientMetricsQuery:
    """The clients' histograms as a :class:`~securefl.training.statistics.Query`.

    One "record" is one client: float[1, 2], its accuracy and its loss.

    Attributes:
        bins: of each of the two histograms, >= 2.
        loss_cap: public, positive; losses above it count as it.
    """

    bins: int = 20
    loss_cap: float = 5.0

    def __post_init__(self) -> None:
        if isinstance(self.bins, bool) or self.bins < 2:
            raise ConfigurationError(f"bins must be at least 2, found {self.bins}")
        if not (math.isfinite(self.loss_cap) and self.loss_cap > 0.0):
            raise ConfigurationError(f"loss_cap must be positive and finite, found {self.loss_cap}")

    @property
    def length(self) -> int:
        """See :class:`~securefl.training.statistics.Query`."""
        return 2 * self.bins

    @property
    def norm(self) -> float:
        """See :class:`~securefl.training.statistics.Query`: one bin in each histogram."""
        return math.sqrt(2.0)

    def record(self, figures: ClientFigures) -> NDArray[np.float64]:
        """One client's record, float64[1, 2]."""
        return np.array([[figures.accuracy, min(figures.loss, self.loss_cap)]], dtype=np.float64)

    def total(self, records: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """See :class:`~securefl.training.statistics.Query`."""
        if records.shape[1:] != (2,):
            raise ConfigurationError(
                f"expected accuracy and loss per client, found {records.shape}"
            )
        parts = [query.total(records[:, i]) for i, query in enumerate(self._queries)]
        return np.concatenate(parts)

    def result(self, sums: NDArray[np.float64], *, min_count: int) -> ClientMetrics:
        """See :class:`~securefl.training.statistics.Query`."""
        if sums.shape != (self.length,):
            raise ConfigurationError(f"expected {self.length} counts, found shape {sums.shape}")
        halves = sums[: self.bins], sums[self.bins :]
        accuracy, loss = (
            query.result(half, min_count=min_count)
            for query, half in zip(self._queries, halves, strict=True)
        )
        return ClientMetrics(accuracy=accuracy, loss=loss)

    @property
    def _queries(self) -> Sequence[HistogramQuery]:
        return (
            HistogramQuery.even(0.0, 1.0, self.bins),
            HistogramQuery.even(0.0, self.loss_cap, self.bins),
        )
