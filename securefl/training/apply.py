"""Step 9: move the global model by the decoded mean update.

FedOpt (Reddi et al. 2021, *Adaptive federated optimization*, algorithm 1): minus the mean update
is treated as a gradient and handed to any torch optimiser. With plain SGD at rate 1 this is
FederatedAveraging, w <- w + mean. Adam and Adagrad are torch's; the paper's FedAdam, FedYogi and
FedAdagrad, without bias correction, are in ``fedopt``. What is done with the mean is
post-processing: it cannot weaken a privacy guarantee of the mean, nor create one. This module
knows no clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from securefl.errors import CheckpointError, ConfigurationError
from securefl.training.fedopt import FedAdagrad, FedAdam, FedYogi

__all__ = ["ServerOptimiser", "ServerStep"]

_NAME_KEY = "optimiser"


class ServerStep(Protocol):
    """What the server does with the decoded mean of a round.

    ``weights`` is what all clients started from: the model, and with some algorithms more than
    that. ``mean_update`` is the mean of what they sent, which may be longer than the model too.
    """

    def apply(
        self,
        weights: NDArray[np.floating[Any]],
        mean_update: NDArray[np.floating[Any]],
        *,
        survivors: int = 1,
    ) -> NDArray[np.float32]:
        """What the clients of the next round start from; the arguments are left unchanged."""
        ...

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The state as plain arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restores what :meth:`state_dict` returned."""
        ...


class ServerOptimiser:
    """Any torch optimiser on the flat model vector.

    Args:
        make: builds the optimiser from a list with the one parameter vector.
        dimension: d >= 1.
        dtype: torch.float32 (default) or torch.float64, in which the step is computed.

    >>> server = ServerOptimiser.sgd(2)
    >>> server.apply(np.array([1.0, 2.0], dtype=np.float32), np.array([0.5, -0.5])).tolist()
    [1.5, 1.5]
    """

    def __init__(
        self,
        make: Callable[[list[nn.Parameter]], Optimizer],
        *,
        dimension: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dimension < 1:
            raise ConfigurationError(f"dimension must be at least 1, found {dimension}")
        if dtype not in (torch.float32, torch.float64):
            raise ConfigurationError(f"dtype must be float32 or float64, found {dtype}")
        self._parameter = nn.Parameter(torch.zeros(dimension, dtype=dtype))
        self._optimiser = make([self._parameter])

    @classmethod
    def sgd(
        cls, dimension: int, *, learning_rate: float = 1.0, momentum: float = 0.0
    ) -> ServerOptimiser:
        """Plain SGD, or FedAvgM with momentum. Rate 1 without momentum adds the mean as it is."""
        return cls(
            lambda p: torch.optim.SGD(p, lr=learning_rate, momentum=momentum), dimension=dimension
        )

    @classmethod
    def adam(
        cls,
        dimension: int,
        *,
        learning_rate: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> ServerOptimiser:
        """Torch's Adam on the pseudo-gradient."""
        return cls(
            lambda p: torch.optim.Adam(p, lr=learning_rate, betas=betas, eps=eps),
            dimension=dimension,
        )

    @classmethod
    def adagrad(
        cls, dimension: int, *, learning_rate: float = 1e-1, eps: float = 1e-10
    ) -> ServerOptimiser:
        """Torch's Adagrad on the pseudo-gradient."""
        return cls(lambda p: torch.optim.Adagrad(p, lr=learning_rate, eps=eps), dimension=dimension)

    @classmethod
    def fedadam(
        cls,
        dimension: int,
        *,
        learning_rate: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        tau: float = 1e-3,
    ) -> ServerOptimiser:
        """FedAdam of Reddi et al. (2021): no bias correction, tau below the line."""
        return cls(
            lambda p: FedAdam(p, lr=learning_rate, beta1=betas[0], beta2=betas[1], tau=tau),
            dimension=dimension,
        )

    @classmethod
    def fedyogi(
        cls,
        dimension: int,
        *,
        learning_rate: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        tau: float = 1e-3,
    ) -> ServerOptimiser:
        """FedYogi of Reddi et al. (2021)."""
        return cls(
            lambda p: FedYogi(p, lr=learning_rate, beta1=betas[0], beta2=betas[1], tau=tau),
            dimension=dimension,
        )

    @classmethod
    def fedadagrad(
        cls,
        dimension: int,
        *,
        learning_rate: float = 1e-1,
        beta1: float = 0.0,
        tau: float = 1e-3,
    ) -> ServerOptimiser:
        """FedAdagrad of Reddi et al. (2021)."""
        return cls(
            lambda p: FedAdagrad(p, lr=learning_rate, beta1=beta1, tau=tau), dimension=dimension
        )

    @property
    def learning_rate(self) -> float:
        """The rate of the next step; settable, for schedules."""
        return float(self._optimiser.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if not (np.isfinite(value) and value >= 0):
            raise ConfigurationError(f"learning_rate must be >= 0 and finite, found {value}")
        self._optimiser.param_groups[0]["lr"] = float(value)

    def apply(
        self,
        weights: NDArray[np.floating[Any]],
        mean_update: NDArray[np.floating[Any]],
        *,
        survivors: int = 1,
    ) -> NDArray[np.float32]:
        """The next global model; the arguments are left unchanged.

        Args:
            weights: float[d], the current global model.
            mean_update: float[d], the decoded mean of the clients' updates, finite.
            survivors: how many clients are in the mean; unread here, see :class:`ServerStep`.

        Returns:
            float32[d].

        Raises:
            ConfigurationError: on a wrong length, or NaN or infinity in either.
        """
        del survivors  # a mean is a mean
        shape = tuple(self._parameter.shape)
        for what, vector in (("weights", weights), ("mean_update", mean_update)):
            if vector.shape != shape:
                raise ConfigurationError(f"{what} must have shape {shape}, found {vector.shape}")
            if not np.isfinite(vector).all():
                raise ConfigurationError(f"{what} contains NaN or infinity")
        dtype = self._parameter.dtype
        with torch.no_grad():
            self._parameter.copy_(torch.from_numpy(np.array(weights)))
            self._parameter.grad = torch.from_numpy(np.negative(mean_update)).to(dtype)
        self._optimiser.step()
        return np.array(self._parameter.detach().numpy(), dtype=np.float32)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The optimiser's state as plain arrays (for ``numpy.savez``, no pickle).

        One entry per quantity of torch's (``momentum_buffer``, ``exp_avg``, ``step``, ...) and
        ``optimiser``, its class name. Hyperparameters belong to the run's configuration.
        """
        state: dict[str, NDArray[Any]] = {_NAME_KEY: np.array(type(self._optimiser).__name__)}
        for key, value in self._optimiser.state[self._parameter].items():
            if value is not None:
                state[key] = np.array(torch.as_tensor(value).numpy())
        return state

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            CheckpointError: if it belongs to another optimiser, another dimension, or is not
                finite.
        """
        expected, found = type(self._optimiser).__name__, str(state.get(_NAME_KEY, "none"))
        if found != expected:
            raise CheckpointError(
                f"the checkpoint holds the state of optimiser {found}, this run uses {expected}"
            )
        restored: dict[str, Any] = {}
        for key, value in state.items():
            if key == _NAME_KEY:
                continue
            if value.shape not in ((), tuple(self._parameter.shape)):
                raise CheckpointError(
                    f"optimiser state {key} has shape {value.shape}, expected () or "
                    f"{tuple(self._parameter.shape)}"
                )
            if value.dtype.kind != "f" or not np.isfinite(value).all():
                raise CheckpointError(f"optimiser state {key} is not an array of finite floats")
            restored[key] = torch.from_numpy(np.array(value))
        self._optimiser.state.clear()
        if restored:
            self._optimiser.state[self._parameter] = restored
