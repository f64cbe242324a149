"""FedNova: clients may take different numbers of steps without bending the objective (Wang et al.
2020, *Tackling the objective inconsistency problem in heterogeneous federated optimization*).

A client's update D_k is a sum of its gradients with coefficients that add up to a_k (times the
learning rate): a_k is its number of steps for plain SGD, more with momentum, less with a proximal
term. Averaging D_k lets those who take many steps decide. FedNova averages D_k / a_k and stretches
the result by the mean a:

    w <- w + (sum_k p_k a_k) (sum_k p_k D_k / a_k).

Both sums come from one secure sum of (D_k / a_k, a_k), weighted inside the masked vector by p_k; no
a_k is in any message. With equal a_k it is FedAvg. This module knows no codec.
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
from securefl.training.local import LocalSGD, ModelUpdate, Trainer
from securefl.training.payload import bounded, check_length

__all__ = ["NormalisedAveraging", "path_length"]


def path_length(
    steps: int, *, learning_rate: float, momentum: float = 0.0, proximal: float = 0.0
) -> float:
    """a: by how much the coefficients of a local run's gradients add up to, in units of the rate.

    The local steps are linear in the gradients, so the sum is what a run sees whose gradients all
    are 1: w - w_0 = -rate a. Wang et al. (2020, section 4) give it in closed form for each case.

    >>> path_length(5, learning_rate=0.1)
    5.0
    >>> round(path_length(3, learning_rate=0.1, momentum=0.5), 12)  # 1 + 1.5 + 1.75
    4.25
    """
    if steps < 1:
        raise ConfigurationError(f"steps must be at least 1, found {steps}")
    position, velocity = 0.0, 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0 + proximal * position
        position -= learning_rate * velocity
    if not (proximal or momentum):
        return float(steps)
    return -position / learning_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalisedAveraging:
    """FedNova as an :class:`~securefl.training.payload.Algorithm`.

    Attributes:
        longest: public bound on a_k, positive; a client whose path is longer refuses to send.
        reference: what D_k / a_k is multiplied by before it is clipped and encoded, positive and
            public. It cancels; near the usual a_k it keeps the numbers at the size of an update,
            so that the clipping bound C has its usual meaning.
    """

    longest: float
    reference: float = 1.0

    def __post_init__(self) -> None:
        for name in ("longest", "reference"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} must be positive and finite, found {value}")

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
        return _NovaTrainer(algorithm=self, local=local, clip_norm=clip_norm)

    def server(self, optimiser: ServerOptimiser, *, clip_norm: float) -> ServerStep:
        """See :class:`~securefl.training.payload.Algorithm`."""
        return _NovaServer(algorithm=self, optimiser=optimiser, clip_norm=clip_norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class _NovaTrainer:
    algorithm: NormalisedAveraging
    local: LocalSGD
    clip_norm: float

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        local, algorithm = self.local, self.algorithm
        update = local.train(start, round_index=round_index)
        a = path_length(
            update.steps,
            learning_rate=local.learning_rate,
            momentum=local.momentum,
            proximal=local.proximal,
        )
        if not 0.0 < a <= algorithm.longest:  # also NaN
            raise ConfigurationError(
                f"client {local.client}, round {round_index}: {update.steps} local steps make a "
                f"path of length {a:.6g}, the public bound is {algorithm.longest:.6g}; raise the "
                "bound or lower steps, momentum or proximal"
            )
        values = bounded(
            (update.values * (algorithm.reference / a)).astype(np.float32), self.clip_norm
        )
        length = self.clip_norm * a / algorithm.longest
        return dataclasses.replace(update, values=np.append(values, np.float32(length)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _NovaServer:
    algorithm: NormalisedAveraging
    optimiser: ServerOptimiser
    clip_norm: float

    def apply(
        self,
        weights: NDArray[np.floating[Any]],
        mean_update: NDArray[np.floating[Any]],
        *,
        survivors: int = 1,
    ) -> NDArray[np.float32]:
        check_length("mean_update", mean_update, len(weights) + 1)
        a = float(mean_update[-1]) * self.algorithm.longest / self.clip_norm
        stretched = mean_update[:-1] * (a / self.algorithm.reference)
        return self.optimiser.apply(weights, stretched, survivors=survivors)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return self.optimiser.state_dict()

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.optimiser.load_state_dict(state)
