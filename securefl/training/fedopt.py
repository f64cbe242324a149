"""The adaptive server optimisers of federated learning, as torch optimisers.

FedAdagrad, FedYogi and FedAdam (Reddi et al. 2021, *Adaptive federated optimization*, algorithm 2).
With the mean update D, which here is minus the gradient that torch hands over,

    m <- beta1 m + (1 - beta1) D
    v <- v + D^2                                   FedAdagrad
    v <- v - (1 - beta2) D^2 sign(v - D^2)         FedYogi
    v <- beta2 v + (1 - beta2) D^2                 FedAdam
    x <- x + rate m / (sqrt(v) + tau),             m = 0 and v = tau^2 at the start.

Torch's Adam and Adagrad differ: Adam corrects the bias of its first steps, and both start at v = 0
with a smaller constant below the line. In federated learning steps are few and tau is large: it
decides how adaptive a step is. This module knows tensors only, and no client.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from securefl.errors import ConfigurationError

__all__ = ["FedAdagrad", "FedAdam", "FedYogi"]


class _FedOpt(Optimizer, ABC):
    """Algorithm 2; what differs between the three is how v follows D^2."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        beta1: float,
        beta2: float,
        tau: float,
    ) -> None:
        for name, value in (("lr", lr), ("tau", tau)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} must be positive and finite, found {value}")
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            if not 0.0 <= value < 1.0:
                raise ConfigurationError(f"{name} must be in [0, 1), found {value}")
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "tau": tau})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads it by closure
        """One step on every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(
                        parameter,
                        lr=group["lr"],
                        beta1=group["beta1"],
                        beta2=group["beta2"],
                        tau=group["tau"],
                    )
        return loss

    def _move(
        self, parameter: Tensor, *, lr: float, beta1: float, beta2: float, tau: float
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["m"] = torch.zeros_like(parameter)
            state["v"] = torch.full_like(parameter, tau * tau)
        delta = -parameter.grad  # type: ignore[operator]  # step() looked for None
        m, v = state["m"], state["v"]
        m.mul_(beta1).add_(delta, alpha=1.0 - beta1)
        self._follow(v, delta * delta, beta2)
        parameter.addcdiv_(m, v.sqrt().add_(tau), value=lr)

    @abstractmethod
    def _follow(self, v: Tensor, square: Tensor, beta2: float) -> None:
        """Moves v, in place, by the squares of this round's mean update."""


class FedAdagrad(_FedOpt):
    """v adds up all squares. Without memory of the mean (beta1 = 0) as in the paper's runs."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float = 1e-1,
        beta1: float = 0.0,
        tau: float = 1e-3,
    ) -> None:
        super().__init__(params, lr=lr, beta1=beta1, beta2=0.0, tau=tau)

    def _follow(self, v: Tensor, square: Tensor, beta2: float) -> None:
        del beta2  # nothing is forgotten
        v.add_(square)


class FedYogi(_FedOpt):
    """v moves towards the squares by at most (1 - beta2) of one: a slow, additive memory."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float = 1e-2,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
    ) -> None:
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, tau=tau)

    def _follow(self, v: Tensor, square: Tensor, beta2: float) -> None:
        v.sub_(square * torch.sign(v - square), alpha=1.0 - beta2)


class FedAdam(_FedOpt):
    """v is a running mean of the squares; no bias correction."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float = 1e-2,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
    ) -> None:
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, tau=tau)

    def _follow(self, v: Tensor, square: Tensor, beta2: float) -> None:
        v.mul_(beta2).add_(square, alpha=1.0 - beta2)
