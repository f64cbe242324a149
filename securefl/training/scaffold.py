"""SCAFFOLD: control variates against the drift of local steps (Karimireddy et al. 2020,
*SCAFFOLD: stochastic controlled averaging for federated learning*, algorithm 1, option II).

Every client keeps a control c_k, an estimate of its own gradient; the server keeps c, the mean of
all of them. Local steps follow g - c_k + c, so that a client with unusual records does not run
towards its own optimum. After K steps of rate r from w to y

    c_k' = c_k - c + (w - y) / (K r),    the client sends (y - w, c_k' - c_k),
    w <- w + mean(y - w),    c <- c + (survivors / clients) mean(c_k' - c_k).

Both parts go through one secure sum of twice the length. The global control c is public: it is the
second half of what all clients start from, so that clients that were given different ones are
never summed. c_k never leaves the client; it is a trace of its records and is kept over rounds.

Lost updates matter here: c is the mean of the c_k only while both change together. A client
therefore keeps its new control when its update is in an opened sum (:meth:`settle`), and forgets
it otherwise. This module knows no codec.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefl.errors import CheckpointError, ConfigurationError
from securefl.training.apply import ServerOptimiser, ServerStep
from securefl.training.local import LocalSGD, ModelUpdate
from securefl.training.payload import bounded, check_length

__all__ = ["Scaffold", "ScaffoldTrainer"]

_CONTROL = "control"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaffold:
    """SCAFFOLD as an :class:`~securefl.training.payload.Algorithm`; clients count alike.

    Attributes:
        clients: N, all that could take part, public, >= 1.
        control_scale: what a change of a control is multiplied by on its way, positive and public.
            It cancels; about learning rate times local steps gives it the size of an update, so
            that the clipping bound C suits both halves.
    """

    clients: int
    control_scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.clients, bool) or self.clients < 1:
            raise ConfigurationError(f"clients must be at least 1, found {self.clients}")
        if not (math.isfinite(self.control_scale) and self.control_scale > 0):
            raise ConfigurationError(
                f"control_scale must be positive and finite, found {self.control_scale}"
            )

    def payload(self, dimension: int) -> int:
        """See :class:`~securefl.training.payload.Algorithm`: twice the model."""
        return 2 * dimension

    def clip_norm(self, clip_norm: float) -> float:
        """See :class:`~securefl.training.payload.Algorithm`: C for each of the two halves."""
        return math.sqrt(2.0) * clip_norm

    def begin(self, model: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :class:`~securefl.training.payload.Algorithm`: the model, and c = 0."""
        return np.concatenate([model, np.zeros_like(model)])

    def trainer(self, local: LocalSGD, *, clip_norm: float) -> ScaffoldTrainer:
        """See :class:`~securefl.training.payload.Algorithm`.

        Raises:
            ConfigurationError: with momentum or a proximal term: (w - y)/(K r) is then no mean of
                gradients.
        """
        if local.momentum or local.proximal:
            raise ConfigurationError(
                f"SCAFFOLD's controls are mean gradients of plain SGD: momentum and proximal must "
                f"be 0, found {local.momentum} and {local.proximal}"
            )
        return ScaffoldTrainer(self, local, clip_norm=clip_norm)

    def server(self, optimiser: ServerOptimiser, *, clip_norm: float) -> ServerStep:
        """See :class:`~securefl.training.payload.Algorithm`."""
        del clip_norm
        return _ScaffoldServer(algorithm=self, optimiser=optimiser)


class ScaffoldTrainer:
    """One client with its control: a :class:`~securefl.training.payload.StatefulTrainer`.

    Args:
        algorithm: the numbers all clients share.
        local: the client's plain SGD.
        clip_norm: C, for each half of the payload.
    """

    def __init__(self, algorithm: Scaffold, local: LocalSGD, *, clip_norm: float) -> None:
        self._algorithm, self._local, self._clip_norm = algorithm, local, clip_norm
        self._control = np.zeros(local.model.dim, dtype=np.float32)
        self._pending: NDArray[np.float32] | None = None

    @property
    def control(self) -> NDArray[np.float32]:
        """A copy of c_k, float32[d]. Computed from the client's records."""
        return self._control.copy()

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        """(y - w, scale (c_k' - c_k)) from ``start`` = (w, c), float32[2 d].

        An update of which nobody said whether it was included counts as lost.
        """
        d = self._local.model.dim
        check_length("start", start, 2 * d)
        model, shared = start[:d], start[d:]
        update = self._local.train(
            model, round_index=round_index, correction=shared - self._control
        )
        path = update.steps * self._local.learning_rate
        # c_k' - c_k = -c - (y - w)/(K r); what is sent is what is kept, clipped or not.
        scale = self._algorithm.control_scale
        change = (-shared - update.values / np.float32(path)) * np.float32(scale)
        change = bounded(change, self._clip_norm)
        self._pending = self._control + change / np.float32(scale)
        values = np.concatenate([bounded(update.values, self._clip_norm), change])
        return dataclasses.replace(update, values=values.astype(np.float32))

    def settle(self, *, included: bool) -> None:
        """Keeps the new control if the last update is in an opened sum, forgets it otherwise."""
        if included and self._pending is not None:
            self._control = self._pending
        self._pending = None

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The control."""
        return {_CONTROL: self.control}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            CheckpointError: if it is not a finite float32[d].
        """
        control = state.get(_CONTROL)
        if (
            control is None
            or control.shape != self._control.shape
            or control.dtype != np.float32
            or not np.isfinite(control).all()
        ):
            found = "nothing" if control is None else f"{control.dtype}{list(control.shape)}"
            raise CheckpointError(
                f"client {self._local.client}: expected a control of {len(self._control)} finite "
                f"float32, found {found}"
            )
        self._control, self._pending = control.copy(), None


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScaffoldServer:
    algorithm: Scaffold
    optimiser: ServerOptimiser

    def apply(
        self,
        weights: NDArray[np.floating[Any]],
        mean_update: NDArray[np.floating[Any]],
        *,
        survivors: int = 1,
    ) -> NDArray[np.float32]:
        check_length("mean_update", mean_update, len(weights))
        if not 1 <= survivors <= self.algorithm.clients:
            raise ConfigurationError(
                f"survivors must be in 1..{self.algorithm.clients} (all clients), found {survivors}"
            )
        d = len(weights) // 2
        share = survivors / self.algorithm.clients / self.algorithm.control_scale
        shared = weights[d:] + share * mean_update[d:]
        if not np.isfinite(shared).all():
            raise ConfigurationError("the new control contains NaN or infinity")
        model = self.optimiser.apply(weights[:d], mean_update[:d], survivors=survivors)
        return np.concatenate([model, shared.astype(np.float32)])

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return self.optimiser.state_dict()

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.optimiser.load_state_dict(state)
