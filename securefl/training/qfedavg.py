"""q-FedAvg: clients with a large loss count more (Li et al. 2020, *Fair resource allocation in
federated learning*, algorithm 2).

With L one over the local learning rate, D_k = w_k - w and F_k the client's loss at w,

    w <- w + sum_k F_k^q L D_k / sum_k h_k,    h_k = q F_k^(q-1) ||L D_k||^2 + L F_k^q.

Both sums are means of one vector (F_k^q D_k, h_k / L) up to a common factor, so one secure sum does
it, and no F_k is in any message. q = 0 is FedAvg; larger q flattens the spread between clients and
costs average accuracy. F_k is measured on the client's records without noise: like everything else
here it is hidden in the sum, not private. This module knows no codec.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.training.apply import ServerOptimiser, ServerStep
from securefl.training.local import LocalSGD, ModelUpdate, Trainer, TrainingDiverged, evaluate
from securefl.training.payload import check_length

__all__ = ["FairAveraging"]

_LEAST_LOSS = 1e-10
"""A loss of zero would have an infinite weight for q < 1; the published code adds the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FairAveraging:
    """q-FedAvg as an :class:`~securefl.training.payload.Algorithm`.

    Losses enter as (F_k / F_max)^q, a number in [0, 1]: the factor cancels, and the vector stays
    within the encoding's range whatever q is. A loss above F_max counts as F_max. Where a payload
    is longer than the range all the same, the codec scales it as a whole, so that such a client
    counts less in both sums and never in one alone.

    Attributes:
        q: >= 0 and finite; 0 is FedAvg.
        loss_cap: F_max, public, positive. About twice the loss of the first model is a good value:
            2 ln(classes) for a classifier that starts near zero.
        room: largest h_k / L that the range has room for, >= 1; 1 is what q = 0 needs.
    """

    q: float
    loss_cap: float
    room: float = 4.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.q) and self.q >= 0.0):
            raise ConfigurationError(f"q must be >= 0 and finite, found {self.q}")
        if not (math.isfinite(self.loss_cap) and self.loss_cap > 0.0):
            raise ConfigurationError(f"loss_cap must be positive and finite, found {self.loss_cap}")
        if not (math.isfinite(self.room) and self.room >= 1.0):
            raise ConfigurationError(f"room must be at least 1 and finite, found {self.room}")

    def payload(self, dimension: int) -> int:
        """See :class:`~securefl.training.payload.Algorithm`."""
        return dimension + 1

    def clip_norm(self, clip_norm: float) -> float:
        """See :class:`~securefl.training.payload.Algorithm`: C for each of the two parts."""
        return math.sqrt(2.0) * clip_norm

    def begin(self, model: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :class:`~securefl.training.payload.Algorithm`."""
        return model

    def trainer(self, local: LocalSGD, *, clip_norm: float) -> Trainer:
        """See :class:`~securefl.training.payload.Algorithm`."""
        return _FairTrainer(algorithm=self, local=local, unit=clip_norm / self.room)

    def server(self, optimiser: ServerOptimiser, *, clip_norm: float) -> ServerStep:
        """See :class:`~securefl.training.payload.Algorithm`."""
        return _FairServer(optimiser=optimiser, unit=clip_norm / self.room)


@dataclass(frozen=True, slots=True, kw_only=True)
class _FairTrainer:
    """Local SGD, then (f D, unit h) with f = (F/F_max)^q and h = f + q L f ||D||^2 / F."""

    algorithm: FairAveraging
    local: LocalSGD
    unit: float

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        local, cap = self.local, self.algorithm.loss_cap
        local.model.load(start)
        measured, _ = evaluate(local.model, local.x, local.y)
        if not math.isfinite(measured):
            raise TrainingDiverged(
                client=local.client, round_index=round_index, what="the loss of the global model"
            )
        loss = min(max(measured, _LEAST_LOSS), cap)
        update = local.train(start, round_index=round_index)
        factor = (loss / cap) ** self.algorithm.q
        delta = update.values.astype(np.float64)
        curvature = self.algorithm.q * (factor / loss) * float(delta @ delta) / local.learning_rate
        payload = np.append(factor * delta, self.unit * (factor + curvature))
        return dataclasses.replace(update, values=payload.astype(np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class _FairServer:
    """Divides the one mean by the other."""

    optimiser: ServerOptimiser
    unit: float

    def apply(
        self,
        weights: NDArray[np.floating[Any]],
        mean_update: NDArray[np.floating[Any]],
        *,
        survivors: int = 1,
    ) -> NDArray[np.float32]:
        check_length("mean_update", mean_update, len(weights) + 1)
        h = float(mean_update[-1]) / self.unit
        if not h > 0.0:  # also NaN
            raise ConfigurationError(
                f"the mean of h_k must be positive, found {h}: all losses are far below loss_cap "
                "for this q, and nothing is left after rounding; lower loss_cap or take more bits"
            )
        return self.optimiser.apply(weights, mean_update[:-1] / h, survivors=survivors)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return self.optimiser.state_dict()

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.optimiser.load_state_dict(state)
