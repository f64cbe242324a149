"""What an algorithm of federated learning is made of: what clients start from, send, and add.

Plain averaging sends the model's update and nothing else. Other algorithms send a little more in
the same vector: a loss weight (q-FedAvg), the length of the local path (FedNova), a control variate
(SCAFFOLD). An :class:`Algorithm` says how long that vector is, how the update of local training
becomes one, and how the server takes its mean apart. Everything stays inside one masked vector and
one secure sum: the server learns means and never a client's loss, step count or control.

None of the additions is private by itself, and none is covered by the noise of a private mode.
This module knows trainers and server steps, no codec and no protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.training.apply import ServerOptimiser, ServerStep
from securefl.training.local import LocalSGD, Trainer

__all__ = ["Algorithm", "Averaging", "StatefulTrainer", "bounded", "check_length"]


class Algorithm(Protocol):
    """How local training becomes a sum and the sum a new model; d is the model's dimension."""

    def payload(self, dimension: int) -> int:
        """Entries of the vector that a client sends."""
        ...

    def clip_norm(self, clip_norm: float) -> float:
        """Norm bound of that vector, where C bounds the model's part of it."""
        ...

    def begin(self, model: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the clients of the first round start from; its first d entries are the model."""
        ...

    def trainer(self, local: LocalSGD, *, clip_norm: float) -> Trainer:
        """The client's side: local training, and what makes a payload of its update."""
        ...

    def server(self, optimiser: ServerOptimiser, *, clip_norm: float) -> ServerStep:
        """The server's side: the mean payload taken apart, the model moved by ``optimiser``."""
        ...


class StatefulTrainer(Trainer, Protocol):
    """A trainer that remembers something from round to round."""

    def settle(self, *, included: bool) -> None:
        """Says whether the last update is in an opened sum; the trainer keeps or forgets it."""
        ...

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """What it remembers, as plain arrays. It was computed from the client's records."""
        ...

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restores what :meth:`state_dict` returned."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaging:
    """FedAvg, FedProx and FedSGD: the update as it is, and the server's optimiser on its mean."""

    def payload(self, dimension: int) -> int:
        """See :class:`Algorithm`."""
        return dimension

    def clip_norm(self, clip_norm: float) -> float:
        """See :class:`Algorithm`."""
        return clip_norm

    def begin(self, model: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :class:`Algorithm`."""
        return model

    def trainer(self, local: LocalSGD, *, clip_norm: float) -> Trainer:
        """See :class:`Algorithm`."""
        del clip_norm  # the codec's bound is the only one
        return local

    def server(self, optimiser: ServerOptimiser, *, clip_norm: float) -> ServerStep:
        """See :class:`Algorithm`."""
        del clip_norm
        return optimiser


def bounded(values: NDArray[np.float32], clip_norm: float) -> NDArray[np.float32]:
    """``values`` scaled to a norm of at most about ``clip_norm``.

    So that a long update does not make the codec scale the entries beside it. The codec's own
    clipping is the bound that counts; this one need not be exact.
    """
    norm = float(np.linalg.norm(values.astype(np.float64)))
    if norm <= clip_norm:
        return values
    return (values * (clip_norm / norm)).astype(np.float32)


def check_length(what: str, vector: NDArray[Any], expected: int) -> None:
    """Refuses a vector of another length than the algorithm's."""
    if vector.shape != (expected,):
        raise ConfigurationError(f"{what} must have shape ({expected},), found {vector.shape}")
