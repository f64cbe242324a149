"""q-FedAvg: clients with a large loss count more (Li et al. 2020, *Fair resource allocation in
federated learning*, algorithm 2).

With L one over the local learning rate, D_k = w_k - w and F_k the client's loss at w,

    w <- w + sum_k F_k^q L D_k / sum_k h_k,    h_k = q F_k^(q-1) ||L D_k||^2 + L F_k^q.

Both sums are means of one vector (F_k^q D_k, h_k / L) up to a common factor, so one secure sum does
it, and no F_k is in any message. q = 0 is FedAvg; larger q flattens the spread between clients and
costs average accuracy. F_k is measured on the client's records without noise: in
:class:`FairAveraging` it is hidden in the sum, like everything else there, and not private.

:class:`PrivateFairAveraging` is for user-level differential privacy. Everything a client sends is
in the one vector that is clipped and noised, h_k included, and both bounds follow from public
numbers: with the loss capped at F_max and D clipped to C, f = (F/F_max)^q is at most 1, and for
q >= 1

    h = f + q f ||D||^2 / (F lr)  <=  1 + q C^2 / (F_max lr).

The codec enforces them again; nothing rests on this module. It knows no codec.
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
from securefl.training.local import (
    LocalSGD,
    ModelUpdate,
    Trainer,
    TrainingDiverged,
    check_positive,
    evaluate,
)
from securefl.training.payload import bounded, check_length

__all__ = ["FairAveraging", "PrivateFairAveraging", "largest_h"]

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
        q, cap = self.algorithm.q, self.algorithm.loss_cap
        loss = _capped_loss(self.local, start, cap, round_index)
        update = self.local.train(start, round_index=round_index)
        factor = (loss / cap) ** q
        delta = update.values.astype(np.float64)
        h = _curvature(q, loss, cap, delta, self.local.learning_rate)
        payload = np.append(factor * delta, self.unit * h)
        return dataclasses.replace(update, values=payload.astype(np.float32))


def _capped_loss(
    local: LocalSGD, start: NDArray[np.float32], cap: float, round_index: int
) -> float:
    """F_k at the global model, in [1e-10, F_max]."""
    local.model.load(start)
    measured, _ = evaluate(local.model, local.x, local.y)
    if not math.isfinite(measured):
        raise TrainingDiverged(
            client=local.client, round_index=round_index, what="the loss of the global model"
        )
    return min(max(measured, _LEAST_LOSS), cap)


def _curvature(
    q: float, loss: float, cap: float, delta: NDArray[np.float64], learning_rate: float
) -> float:
    """The paper's h_k over L F_max^q: f + q f ||D||^2 / (F lr), f = (F / F_max)^q."""
    factor: float = (loss / cap) ** q
    return factor + q * (factor / loss) * float(delta @ delta) / learning_rate


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
        h = self._mean_h(float(mean_update[-1]))
        return self.optimiser.apply(weights, mean_update[:-1] / h, survivors=survivors)

    def _mean_h(self, entry: float) -> float:
        h = entry / self.unit
        if not h > 0.0:  # also NaN
            raise ConfigurationError(
                f"the mean of h_k must be positive, found {h}: all losses are far below loss_cap "
                "for this q, and nothing is left after rounding; lower loss_cap or take more bits"
            )
        return h

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return self.optimiser.state_dict()

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.optimiser.load_state_dict(state)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateFairAveraging:
    """q-FedAvg under user-level differential privacy: (f D, h / room) in one noised vector.

    A client sends f times its update clipped to C and one entry in [0, 1]; the server divides one
    noised mean by the other, which is post-processing. What it divides by is never below the
    deviation of its own noise: below that the entry says nothing, and a step over it would be of
    any length. There is no q = 0 here: then h is 1 for whoever takes part, and all that its sum
    would tell is how many did. DP-FedAvg has the public expected number in that place, and a plan
    with q = 0 is that of DP-FedAvg.

    Attributes:
        q: > 0 and finite.
        loss_cap: F_max, public, positive.
        clip_norm: C, norm bound of an update before f, positive.
        learning_rate: of the local steps, 1/L, positive.
        floor: least mean of h that the server divides by, positive: its noise's deviation.
    """

    q: float
    loss_cap: float
    clip_norm: float
    learning_rate: float
    floor: float

    def __post_init__(self) -> None:
        for name in ("q", "loss_cap", "clip_norm", "learning_rate", "floor"):
            check_positive(name, getattr(self, name))

    @property
    def room(self) -> float:
        """Largest h: see :func:`largest_h`."""
        return largest_h(self.q, self.loss_cap, self.clip_norm, self.learning_rate)

    def payload(self, dimension: int) -> int:
        """Entries of what a client sends: the update and h."""
        return dimension + 1

    def trainer(self, local: LocalSGD) -> Trainer:
        """The client's side."""
        return _PrivateFairTrainer(algorithm=self, local=local)

    def server(self, optimiser: ServerOptimiser) -> ServerStep:
        """The server's side."""
        return _PrivateFairServer(optimiser=optimiser, unit=1.0 / self.room, floor=self.floor)


def largest_h(q: float, loss_cap: float, clip_norm: float, learning_rate: float) -> float:
    """1 + q C^2 / (F_max lr), from public numbers alone.

    No h is larger for q >= 1. For q < 1 a loss near zero would have a larger one, and counts as
    this.
    """
    return 1.0 + q * clip_norm**2 / (loss_cap * learning_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PrivateFairTrainer:
    """Local SGD, then (f D, h / room) with D clipped, so that h is that of what is sent."""

    algorithm: PrivateFairAveraging
    local: LocalSGD

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        fair, local = self.algorithm, self.local
        loss = _capped_loss(local, start, fair.loss_cap, round_index)
        update = local.train(start, round_index=round_index)
        factor = (loss / fair.loss_cap) ** fair.q
        delta = bounded(update.values, fair.clip_norm).astype(np.float64)
        h = _curvature(fair.q, loss, fair.loss_cap, delta, local.learning_rate)
        payload = np.append(factor * delta, min(h / fair.room, 1.0))
        return dataclasses.replace(update, values=payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PrivateFairServer(_FairServer):
    """The same with noised means, of which the second counts as ``floor`` at least."""

    floor: float

    def _mean_h(self, entry: float) -> float:
        return max(entry / self.unit, self.floor)
